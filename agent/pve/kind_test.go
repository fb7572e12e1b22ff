package pve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// recordedKinds says what each recorded error is.
var recordedKinds = map[string]Kind{
	"immediately: VM on pve3 through pve1":             KindUnreachable,
	"VM on pve3 through pve1":                          KindUnreachable,
	"config of VM on pve3 through pve1":                KindUnreachable,
	"VM on pve3 through pve1, pve3 pveproxy down":      KindUnreachable,
	"nextid taken":                                     KindExists,
	"PUT config wrong digest":                          KindDigest,
	"move_disk same storage":                           KindParameter,
	"bad snapshot name":                                KindParameter,
	"clone linked of non-template":                     KindNoLinkedClone,
	"linked clone with storage given":                  KindParameter,
	"clone duplicate id":                               KindExists,
	"clone to other node, local storage":               KindLocalStorage,
	"agent ifaces before agent runs":                   KindNoAgent,
	"agent disabled VM":                                KindNoAgent,
	"agent on stopped VM":                              KindNotRunning,
	"agent ping while a foreign client holds VMID.qga": KindNoAgent,
	"task status unknown upid":                         KindNoTask,
	"task status garbage upid":                         KindParameter,
	"task of another user with nopriv token":           KindPermission,
	"unknown VM status":                                KindNoSuchVM,
	"unknown VM delete":                                KindNoSuchVM,
	"wrong node: VM 200 asked on pve1":                 KindNoSuchVM,
	"bad token secret":                                 KindAuth,
	"unknown token":                                    KindAuth,
	"no auth":                                          KindAuth,
	"no privilege: status":                             KindPermission,
	"no privilege: start":                              KindPermission,
	"audit: start":                                     KindPermission,
	"audit: config change":                             KindPermission,
	"audit: create":                                    KindPermission,
	"args as token (root only)":                        KindPermission,
	"skiplock as token":                                KindPermission,
	"invalid parameter name":                           KindParameter,
	"invalid value memory":                             KindParameter,
	"invalid value cores=0":                            KindParameter,
	"invalid scsi1":                                    KindParameter,
	"missing parameter (snapshot without name)":        KindParameter,
	"invalid vmid in path":                             KindParameter,
	"vmid too small":                                   KindParameter,
	"no such path":                                     KindNoMethod,
	"storage missing on create":                        KindNoStorage,
	"storage missing on PUT config":                    KindNoStorage,
	"storage missing on clone":                         KindNoStorage,
	"volume missing":                                   KindNoVolume,
	"duplicate vmid":                                   KindExists,
	"PUT config with lock held":                        KindLocked,
	"POST config with lock held":                       KindLocked,
	"clone with lock held":                             KindLocked,
	"unknown node":                                     KindNoNode,
	"no quorum: PUT config":                            KindNoQuorum,

	"start again: task outcome":                KindAlreadyRunning,
	"ACPI shutdown (no agent)":                 KindGuestTimeout,
	"resize shrink":                            KindParameter,
	"resize no such disk":                      KindNoVolume,
	"duplicate snapshot name":                  KindExists,
	"rollback s1 (not most recent; dir/qcow2)": KindLockTimeout,
	"delete unknown":                           KindNoSnapshot,
	"start template":                           KindTemplate,
	"delete template with linked clone":        KindTemplateInUse,
	"unknown VM start":                         KindNoSuchVM,
	"bridge missing: start":                    KindNoBridge,
	"start with lock held":                     KindLocked,
	"snapshot with lock held":                  KindLocked,
	"resize with lock held":                    KindLocked,
	"delete with lock held":                    KindLocked,
}

func TestKindOfEachRecordedError(t *testing.T) {
	tested := map[string]bool{}
	for _, e := range recorded(t, "errors.txt") {
		tested[e.title] = true
		t.Run(e.title, func(t *testing.T) {
			err := replay(t, e).Call(t.Context(), e.method, e.path, e.params, nil)
			said, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("%T %v is no *Error", err, err)
			}
			if KindOf(err) != recordedKinds[e.title] {
				t.Errorf("kind %q, want %q: %v", KindOf(err), recordedKinds[e.title], err)
			}
			if said.Status != e.status || said.Method != e.method || said.Path != e.path || !strings.Contains(said.Message, e.reason) {
				t.Errorf("answer lost: %+v, recorded %d %s", said, e.status, e.reason)
			}
			if Uncertain(err) {
				t.Errorf("%v is a certain failure", err)
			}
			if !strings.Contains(err.Error(), e.path) || strings.ContainsAny(err.Error(), "\n\r") && e.status != 400 {
				t.Errorf("text %q", err)
			}
		})
	}
	for title := range tested {
		if _, ok := recordedKinds[title]; !ok {
			t.Errorf("no expectation for the recorded error %q", title)
		}
	}
}

func TestKindOfEachRecordedFailedTask(t *testing.T) {
	for _, e := range recorded(t, "failed-tasks.txt") {
		t.Run(e.title, func(t *testing.T) {
			c := replay(t, e)
			u, err := c.task(t.Context(), e.method, e.path, e.params)
			if err != nil {
				t.Fatal(err)
			}
			err = c.Wait(t.Context(), u)
			failed, ok := errors.AsType[*TaskError](err)
			if !ok {
				t.Fatalf("%T %v is no *TaskError", err, err)
			}
			want, known := recordedKinds[e.title]
			if KindOf(err) != want || !known {
				t.Errorf("kind %q, want %q: %v", KindOf(err), want, err)
			}
			if failed.UPID != u || failed.ExitStatus == "" || len(failed.Log) == 0 ||
				failed.Log[len(failed.Log)-1] != "TASK ERROR: "+failed.ExitStatus {
				t.Errorf("%+v", failed)
			}
			if Uncertain(err) {
				t.Errorf("%v is a certain failure", err)
			}
		})
	}
}

// Texts that were not recorded from a call, from PVE's modules and facts.md.
func TestKindOfFurtherTexts(t *testing.T) {
	for text, want := range map[string]Kind{
		"cfs-lock 'storage-shared' error: got lock request timeout":                               KindLockTimeout,
		"error with cfs lock 'storage-shared': got lock request timeout":                          KindLockTimeout,
		"clone failed: can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout":       KindLockTimeout,
		"cfs-lock 'file-user_cfg' error: no quorum!":                                              KindNoQuorum,
		"cluster not ready - no quorum?":                                                          KindNoQuorum,
		"pve cluster filesystem not online.":                                                      KindNoQuorum,
		"unable to find configuration file for VM 104 on node 'pve1'":                             KindNoSuchVM,
		"no such cluster node 'pve9'":                                                             KindNoNode,
		"disk image '/var/lib/vz/images/100/vm-100-disk-0.raw' already exists":                    KindExists,
		"lvremove 'pve/vm-100-disk-0' error: Failed to find logical volume \"pve/vm-100-disk-0\"": KindNoVolume,
		"proxy not allowed":                             KindNoNode,
		"CT 104 already exists on node 'pve1'":          KindExists,
		"can't remove VM 100 - protection mode enabled": KindProtected,
		"VM 100 is running - destroy failed":            KindAlreadyRunning,
		"VM 100 not running":                            KindNotRunning,
		"storage 'nfs' is not available on node 'pve1'": KindNoStorage,
		"storage 'nfs' is disabled":                     KindNoStorage,
		"clone failed: copy failed: command 'qemu-img convert' failed: No space left on device": KindNoSpace,
		"lvcreate 'pve/vm-100-disk-0' error: Insufficient free space: 100 extents needed":       KindNoSpace,
		"zfs error: cannot create 'rpool/data/vm-100-disk-0': out of space":                     KindNoSpace,
		"MAX 2 vcpus allowed per VM on this node":                                               KindTooManyCPUs,
		"detected modified configuration - file changed by other user? Try again.":              KindDigest,
		"NUMA needs to be enabled for memory hotplug":                                           KindOther,
		"unexpected status": KindOther,
		"":                  KindOther,
		"VM is locked":      KindLocked,
	} {
		got := KindOf(&TaskError{ExitStatus: text})
		if got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
		if want != KindOther && KindOf(&Error{Status: 500, Message: text}) != want {
			t.Errorf("%q differs between answer and task", text)
		}
	}
}

func TestParameterTextsDoNotMatchWhatTheCallerSent(t *testing.T) {
	err := &Error{Status: 400, Params: map[string]string{"name": "invalid format - got 'can't lock file 'x' - got timeout'"}}
	if KindOf(err) != KindParameter {
		t.Errorf("kind %q", KindOf(err))
	}
	if !strings.Contains(err.Error(), "; name: invalid format") {
		t.Errorf("text %q does not name the parameter", err)
	}
}

func TestKindOfOtherErrors(t *testing.T) {
	lost := func(err error) error { return &TransportError{Method: "GET", Path: "/version", Err: err} }
	for _, tc := range []struct {
		err  error
		want Kind
	}{
		{nil, KindNone},
		{errors.New("x"), KindOther},
		{fmt.Errorf("power: %w", &Error{Status: 403}), KindPermission},
		{fmt.Errorf("power: %w", &TaskError{ExitStatus: "VM is locked (clone)"}), KindLocked},
		{lost(errors.New("connection refused")), KindUnreachable},
		{lost(context.Canceled), KindCanceled},
		{lost(context.DeadlineExceeded), KindTimeout},
		{lost(&tls.CertificateVerificationError{Err: errors.New("x")}), KindTLS},
		{&WaitError{Err: context.DeadlineExceeded, Last: &Error{Status: 595}}, KindTimeout},
		{&Error{Status: 596}, KindUnreachable},
		{&Error{Status: 599}, KindUnreachable},
		{&Error{Status: 600, Message: "x"}, KindOther},
		{&Error{Status: 503}, KindUnreachable},
		{&Error{Status: 501, Message: "for data too large"}, KindParameter},
		{&Error{Status: 400}, KindParameter},
	} {
		if got := KindOf(tc.err); got != tc.want {
			t.Errorf("%v is %q, want %q", tc.err, got, tc.want)
		}
	}
}

func TestUncertain(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{&Error{Method: http.MethodPut, Status: 500}, false},
		{&Error{Method: http.MethodPut, Status: 595}, false},
		{&Error{Method: http.MethodPut, Status: 596}, true}, // pveproxy stops waiting after 30 s
		{&Error{Method: http.MethodGet, Status: 596}, false},
		{&Error{Method: http.MethodPost, Status: 502}, true},
		{&TransportError{Method: http.MethodPost, Sent: true}, true},
		{&TransportError{Method: http.MethodPost, Sent: false}, false},
		{&TransportError{Method: http.MethodGet, Sent: true}, false},
		{&WaitError{}, true},
		{fmt.Errorf("create: %w", &WaitError{}), true},
		{&TaskError{ExitStatus: "unexpected status"}, true}, // the node lost power
		{&TaskError{ExitStatus: ""}, true},
		{&TaskError{ExitStatus: "VM is locked (backup)"}, false},
		{context.DeadlineExceeded, true},
		{errors.New("x"), false},
	} {
		if got := Uncertain(tc.err); got != tc.want {
			t.Errorf("%#v: %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestPermissionDetail(t *testing.T) {
	for _, tc := range []struct {
		err        error
		path, priv string
		ok         bool
	}{
		{&Error{Status: 403, Message: "Permission check failed (/vms/100, VM.PowerMgmt)"}, "/vms/100", "VM.PowerMgmt", true},
		{fmt.Errorf("x: %w", &Error{Status: 403, Message: "Permission check failed (/vms/100, VM.Config.Disk|VM.Config.CPU)"}), "/vms/100", "VM.Config.Disk|VM.Config.CPU", true},
		{&TaskError{ExitStatus: "Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)"}, "/sdn/zones/localnetwork/vmbr0", "SDN.Use", true},
		{&Error{Status: 403, Message: "Permission check failed"}, "", "", false},
		{errors.New("x"), "", "", false},
		{nil, "", "", false},
	} {
		path, priv, ok := PermissionDetail(tc.err)
		if path != tc.path || priv != tc.priv || ok != tc.ok {
			t.Errorf("%v: %q %q %v", tc.err, path, priv, ok)
		}
	}
}
