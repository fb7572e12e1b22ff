package task

import (
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// reasons says, for each thing PVE may tell us, who can mend it. What concerns one VM is never Unavailable or
// Internal: those open the manager's circuit breaker for all VMs. A kind that is not here is Precondition: PVE
// refused this change of this VM, in words that the message carries.
var reasons = map[pve.Kind]fault.Reason{
	pve.KindNoSuchVM:    fault.Aborted, // it was there a moment ago: moved or removed under our hands
	pve.KindLockTimeout: fault.Aborted,
	pve.KindDigest:      fault.Aborted,
	pve.KindTimeout:     fault.Aborted,
	pve.KindCanceled:    fault.Aborted,
	pve.KindNoTask:      fault.Aborted,
	pve.KindNoSnapshot:  fault.NotFound,
	pve.KindPermission:  fault.Permission,
	pve.KindExists:      fault.Exists,
	pve.KindNoSpace:     fault.Exhausted,
	pve.KindParameter:   fault.Invalid,
	pve.KindAuth:        fault.Unavailable,
	pve.KindTLS:         fault.Unavailable,
	pve.KindUnreachable: fault.Unavailable,
}

// Explain turns an error of the PVE client into a failure that names the act, the thing, the reason and, where it
// helps, the next step. act says what was tried.
func Explain(act string, err error) error {
	kind := pve.KindOf(err)
	reason, ok := reasons[kind]
	if !ok {
		reason = fault.Precondition
	}
	if kind == pve.KindPermission {
		if path, privilege, ok := pve.PermissionDetail(err); ok {
			return fault.New(reason, "%s: the token lacks %s on %s (grant a role that has it: pveum acl modify %s --tokens <token id> --roles <role>): %w",
				act, privilege, path, path, err)
		}
	}
	return fault.New(reason, "%s: %w", act, err)
}

// Passing reports whether an error of PVE may go away by itself while an operation waits: PVE restarts, a lock is held for
// a moment, quorum is lost for a while.
func Passing(err error) bool {
	switch pve.KindOf(err) {
	case pve.KindUnreachable, pve.KindLockTimeout, pve.KindNoQuorum, pve.KindAuth, pve.KindTimeout, pve.KindNoTask:
		return true
	default:
		return false
	}
}
