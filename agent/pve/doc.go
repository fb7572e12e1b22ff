// Package pve is the Proxmox VE HTTP API as Go calls: a token or a ticket, tasks, typed errors, and nothing else.
//
// A Client speaks to one endpoint, as a rule that of its own node: pveproxy (https, port 8006) or pvedaemon
// itself (http, port 85, loopback only). It keeps connections alive, has no more than MaxInFlight calls under way
// because PVE serves them with a few blocking workers, and stops asking for a while when PVE refuses its
// credentials, because PVE delays each such answer by three seconds.
//
// What PVE answers is turned into an *Error (an HTTP answer) or a *TaskError (the end of a task); a call without an
// answer is a *TransportError. KindOf names what happened in all three, by the words PVE uses: its status codes say
// little (an unknown VM is a 500). Uncertain tells whether a failed change may have happened nevertheless.
package pve
