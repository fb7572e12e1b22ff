// Package qmptest stands in for QEMU and its guest agent on real unix sockets.
//
// [QEMU] is a machine with a state: it answers the commands that this project
// and Proxmox VE's conventions need, with QEMU's own errors, and its sockets
// serve one client at a time, as QEMU's do: two further clients connect and
// wait without a greeting, the next is refused with EAGAIN. [Replay] plays a
// recorded conversation and checks what it is sent. [Process] is the process
// that a running VM has.
//
// It does not import testing, so that simulators can be built on it.
package qmptest
