package provider

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// breaks are the codes that count as failures of the endpoint in the manager's circuit breaker.
var breaks = map[codes.Code]bool{codes.Unavailable: true, codes.DeadlineExceeded: true, codes.Internal: true, codes.Unknown: true}

func TestEveryReasonHasACode(t *testing.T) {
	reasons := reasonsOfFault(t)
	if len(reasons) != len(statusCodes) {
		t.Errorf("%d reasons, %d codes", len(reasons), len(statusCodes))
	}
	for _, r := range reasons {
		code, ok := statusCodes[r]
		if !ok || code == codes.OK {
			t.Errorf("reason %q has no code", r)
			continue
		}
		if endpoint := r == fault.Unavailable || r == fault.Internal; breaks[code] != endpoint {
			t.Errorf("reason %q is code %s: what concerns one VM must not stop the others", r, code)
		}
		err := Status(fmt.Errorf("outer: %w", fault.New(r, "start VM 100: something odd")))
		if status.Code(err) != code || status.Convert(err).Message() != "outer: start VM 100: something odd" {
			t.Errorf("reason %q becomes %v", r, err)
		}
	}
	if got := status.Code(Status(errors.New("a defect"))); got != codes.Internal {
		t.Errorf("an error without a reason is %s", got)
	}
}

// TestWantOfRoomIsTold: the agent that has chosen a node learns that this lacks room, and of what.
func TestWantOfRoomIsTold(t *testing.T) {
	lack := fault.New(fault.Exhausted, "memory (needs 8.0 GiB, 3.1 free)")
	err := Status(fmt.Errorf("outer: %w", fault.MovedTo("", "node pve1 cannot take web: %w", lack)))
	if lacks, full := forward.IsFull(err); !full || lacks != lack.Msg || status.Convert(err).Message() != "outer: node pve1 cannot take web: "+lack.Msg {
		t.Errorf("%q, %v: %v", lacks, full, err)
	}
	err = Status(fault.MovedTo("pve2", "node pve1 cannot take web: %w", fault.New(fault.Precondition, "cordoned")))
	node, elsewhere := forward.IsElsewhere(err)
	if _, full := forward.IsFull(err); full || !elsewhere || node != "pve2" {
		t.Errorf("%v: %q", err, node)
	}
}

func reasonsOfFault(t *testing.T) []fault.Reason {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../fault/fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []fault.Reason
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == "Reason" {
			lit, ok := spec.Values[0].(*ast.BasicLit)
			if !ok {
				t.Fatalf("%s is no literal", spec.Names[0])
			}
			text, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fault.Reason(text))
		}
		return false
	})
	if len(all) < 5 {
		t.Fatalf("only %v", all)
	}
	return all
}

func TestSizesAreRoundedUp(t *testing.T) {
	for bytes, want := range map[int64]int32{0: 0, 1: 1, 1 << 30: 1, 1<<30 + 1: 2, 2252 << 20: 3} {
		info := vmInfo(guest.Listing{Disks: []guest.Disk{{Bytes: bytes}}})
		if got := info.GetDisks()[0].GetSizeGib(); got != want {
			t.Errorf("%d bytes are %d GiB, want %d", bytes, got, want)
		}
	}
}

func TestTheFirstNICHasTheAddress(t *testing.T) {
	info := vmInfo(guest.Listing{On: true, IPs: []string{"192.0.2.1", "192.0.2.2"}, NICs: []pmxcfs.NIC{{Key: "net0", MAC: "a"}, {Key: "net1", MAC: "b"}}})
	if n := info.GetNetworks(); len(n) != 2 || n[0].GetIpAddress() != "192.0.2.1" || n[1].GetIpAddress() != "" || info.GetPowerState() != "On" {
		t.Errorf("%v", info)
	}
}
