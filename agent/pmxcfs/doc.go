// Package pmxcfs reads /etc/pve, the cluster file system of Proxmox VE, as Go values: who owns which
// guest (.vmlist), which nodes are there and whether they have quorum (.members), what changed
// (.version), the VM configs and storage.cfg.
//
// A Tree reads one file at a time and keeps nothing. A Watcher polls .version and keeps a World, an
// immutable picture of the whole cluster, and answers the two questions that need more than a picture:
// Locate (who owns this VM now, proven by opening its config file) and Absent (does this VM really not exist).
//
// An /etc/pve that is not mounted, a truncated file, garbage: each is an error that names the path, never an
// empty world. Nothing here writes.
package pmxcfs
