package qmp

import (
	"errors"

	"github.com/pve-rigaud/pve-rigaud/qmp/internal/wire"
)

// Error is QEMU's refusal of one command: Command, Class and Desc. The session
// is fine after it.
type Error = wire.Error

// OpError wraps every error of a session: Op is what was being done
// ("connect", "greeting", "negotiate", or a command), Path the socket.
type OpError = wire.OpError

// Error classes of QEMU (QAPI QapiErrorClass). All others are "GenericError".
const (
	ClassCommandNotFound = "CommandNotFound" // unknown to this QEMU
	ClassDeviceNotFound  = "DeviceNotFound"  // no device of that id
	ClassDeviceNotActive = "DeviceNotActive" // query-balloon and balloon without a balloon device
)

var (
	// ErrBusy means that somebody else holds the monitor (EAGAIN on connect, or no
	// greeting in time), or, from a Gate, this process does.
	ErrBusy = wire.ErrBusy
	// ErrGone means that there is no QEMU behind the socket any more: no socket, nobody
	// listening, or the connection was closed. The VM was stopped or migrated
	// away; look its owner up again.
	ErrGone = wire.ErrGone
	// ErrClosed means that the session was closed, or an earlier command of it failed.
	ErrClosed = wire.ErrClosed
	// ErrTimeout means that there was no answer within Options.Command or Options.Hold. The
	// command may still be carried out: re-read the state, do not repeat
	// blindly. It is context.DeadlineExceeded, too.
	ErrTimeout = wire.ErrTimeout
	// ErrProtocol means that what came back is no QMP.
	ErrProtocol = wire.ErrProtocol
	// ErrForbidden refuses a command that only Proxmox VE itself may send. Nothing
	// was sent.
	ErrForbidden = errors.New("command is reserved for Proxmox VE")
	// ErrTooSoon means that a background session with this VM was asked for within
	// GateConfig.Interval of the one before.
	ErrTooSoon = errors.New("too soon after the last session")
)
