// Package qmp holds one short conversation with one QEMU over its QMP socket.
//
// A QMP socket serves one client at a time, and on a Proxmox VE node that
// client is usually somebody else: qm, the web interface, or pvestatd, which
// reads every VM's statistics one after the other and waits up to 3 s for each.
// So a [Session] is opened for one need, runs a few commands, and is closed.
// It is never kept, pooled or shared; every step has a deadline; a session
// whose command timed out is dead, because QEMU may still carry that command
// out and its late reply would be taken for another's. [Gate] keeps the
// sessions of one process apart: one per VM, few per node, and background
// reads of one VM far from each other.
//
// Commands that change what Proxmox VE believes about a VM (quit, stop,
// migrations, block devices, ...) are refused before they are sent; they belong
// to its API.
//
// Session implements go-qemu's qmp.Monitor, so that the typed commands of
// go-qemu's package qmp/raw can be used ([Session.Raw]). go-qemu's own
// SocketMonitor has no deadlines and loses replies of more than 64 KiB.
package qmp
