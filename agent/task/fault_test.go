package task

import (
	"context"
	"crypto/tls"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
)

// said is an answer of PVE with a message, failed the end of a task.
func said(message string) error {
	return &pve.Error{Method: "POST", Path: "/nodes/pve1/qemu/100/x", Status: 500, Message: message}
}

func failed(exit string) error {
	return &pve.TaskError{UPID: "UPID:pve1:00000001:00000001:65000000:qmstart:100:root@pam:", ExitStatus: exit}
}

func lost(err error) error {
	return &pve.TransportError{Method: "POST", Path: "/nodes/pve1/qemu/100/x", Err: err}
}

// kinds has an error of every kind with what becomes of it: whose trouble it is, and whether waiting may help.
var kinds = map[pve.Kind]struct {
	err     error
	reason  fault.Reason
	passing bool
}{
	pve.KindOther:          {said("something odd"), fault.Precondition, false},
	pve.KindNoSuchVM:       {said("Configuration file 'nodes/pve1/qemu-server/100.conf' does not exist"), fault.Aborted, false},
	pve.KindNoNode:         {said("no such cluster node 'pve9'"), fault.Precondition, false},
	pve.KindLocked:         {said("VM is locked (backup)"), fault.Precondition, false},
	pve.KindLockTimeout:    {failed("can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout"), fault.Aborted, true},
	pve.KindPermission:     {&pve.Error{Status: 403, Message: "Permission check failed (/vms/100, VM.PowerMgmt)"}, fault.Permission, false},
	pve.KindAuth:           {&pve.Error{Status: 401, Message: "Authentication failed!"}, fault.Unavailable, true},
	pve.KindTLS:            {lost(&tls.CertificateVerificationError{Err: errors.New("unknown authority")}), fault.Unavailable, false},
	pve.KindExists:         {said("unable to create VM 100: config file already exists"), fault.Exists, false},
	pve.KindAlreadyRunning: {failed("VM 100 already running"), fault.Precondition, false},
	pve.KindNotRunning:     {said("VM 100 not running"), fault.Precondition, false},
	pve.KindGuestTimeout:   {failed("VM quit/powerdown failed - got timeout"), fault.Precondition, false},
	pve.KindNoAgent:        {said("QEMU guest agent is not running"), fault.Precondition, false},
	pve.KindProtected:      {said("can't remove VM 100 - protection mode enabled"), fault.Precondition, false},
	pve.KindTemplate:       {failed("you can't start a vm if it's a template"), fault.Precondition, false},
	pve.KindTemplateInUse:  {failed("base volume 'x' is still in use by linked cloned"), fault.Precondition, false},
	pve.KindNoLinkedClone:  {said("Linked clone feature is not supported for 'x' (scsi0)"), fault.Precondition, false},
	pve.KindLocalStorage:   {said("can't clone VM to node 'pve2' (VM uses local storage)"), fault.Precondition, false},
	pve.KindNoStorage:      {said("storage 'x' does not exist"), fault.Precondition, false},
	pve.KindNoSpace:        {failed("clone failed: No space left on device"), fault.Exhausted, false},
	pve.KindNoVolume:       {said("volume 'local:100/x.qcow2' does not exist"), fault.Precondition, false},
	pve.KindNoSnapshot:     {said("snapshot 'x' does not exist"), fault.NotFound, false},
	pve.KindNoBridge:       {failed("bridge 'vmbr9' does not exist"), fault.Precondition, false},
	pve.KindNoSnapshots:    {failed("snapshot feature is not available"), fault.Precondition, false},
	pve.KindNotNewest:      {failed("can't rollback, 's1' is not most recent snapshot on 'local-zfs:vm-100-disk-0'"), fault.Precondition, false},
	pve.KindTooManyCPUs:    {failed("MAX 4 vcpus allowed per VM on this node"), fault.Precondition, false},
	pve.KindDigest:         {said("detected modified configuration - file changed by other user? Try again."), fault.Aborted, false},
	pve.KindNoQuorum:       {said("cluster not ready - no quorum?"), fault.Precondition, true},
	pve.KindParameter:      {&pve.Error{Status: 400, Message: "Parameter verification failed.", Params: map[string]string{"cores": "type check failed"}}, fault.Invalid, false},
	pve.KindNoTask:         {&pve.Error{Status: 400, Params: map[string]string{"upid": "no such task"}}, fault.Aborted, true},
	pve.KindNoMethod:       {&pve.Error{Status: 501, Message: "Method 'POST /x' not implemented"}, fault.Precondition, false},
	pve.KindUnreachable:    {lost(errors.New("connection refused")), fault.Unavailable, true},
	pve.KindTimeout:        {lost(context.DeadlineExceeded), fault.Aborted, true},
	pve.KindCanceled:       {lost(context.Canceled), fault.Aborted, false},
}

func TestEveryKindOfErrorHasAReason(t *testing.T) {
	for _, kind := range constants(t, "../pve/kind.go", "Kind") {
		x, ok := kinds[pve.Kind(kind)]
		switch {
		case kind == "": // no error
			continue
		case !ok:
			t.Errorf("nobody has thought about errors of kind %q", kind)
			continue
		case pve.KindOf(x.err) != pve.Kind(kind):
			t.Errorf("%v is of kind %q, not %q: this table is wrong", x.err, pve.KindOf(x.err), kind)
		}
		err := Explain("start VM 100", x.err)
		if got := fault.Of(err); got != x.reason {
			t.Errorf("%s: reason %q, want %q", kind, got, x.reason)
		}
		if !errors.Is(err, x.err) || !strings.HasPrefix(err.Error(), "start VM 100: ") || !strings.Contains(err.Error(), x.err.Error()) {
			t.Errorf("%s: %q does not name the act and what PVE said", kind, err)
		}
		if got := Passing(x.err); got != x.passing {
			t.Errorf("%s: passing %v, want %v", kind, got, x.passing)
		}
	}
}

// constants returns the values of all string constants of a type in a source file.
func constants(t *testing.T, file, typ string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); !ok || id.Name != typ {
			return false
		}
		for _, v := range spec.Values {
			if lit, ok := v.(*ast.BasicLit); ok {
				text, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				values = append(values, text)
			}
		}
		return false
	})
	if len(values) < 5 {
		t.Fatalf("%d constants of type %s in %s", len(values), typ, file)
	}
	return values
}

func TestAMissingPrivilegeIsExplained(t *testing.T) {
	err := Explain("start VM 100", kinds[pve.KindPermission].err)
	for _, want := range []string{"lacks VM.PowerMgmt on /vms/100", "pveum acl modify /vms/100"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// TestADefectIsNoFaultOfTheVM: an error that nobody explained is internal.
func TestADefectIsNoFaultOfTheVM(t *testing.T) {
	if got := fault.Of(errors.New("index out of range")); got != fault.Internal {
		t.Errorf("reason %q", got)
	}
}
