// Package netns is a world for stories of package scenario in which everything is real but PVE: each node has a network
// namespace of its own and the program runs in it as a process, killed with SIGKILL; packets between nodes get lost in
// the kernel; /etc/pve is a FUSE mount. The simulated PVE and the client stand at a bridge that all nodes reach.
//
// A test binary enters namespaces of its own first (see [Enter]): networks, mounts and process numbers. Nothing that it
// does touches the machine, and however it ends, the kernel removes its processes, mounts and interfaces with it.
//
// What virtual time has and this world has not: clocks cannot be set ([ErrNotHere]), waiting takes the time it takes.
package netns
