package route

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	pb "github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// uuid is that of every VM here, and its first part what ids carry of it.
const uuid = "01234567-89ab-cdef-0123-456789abcdef"

// pve is /etc/pve of three nodes, of which the router is on pve1.
type pve struct {
	*testing.T
	root    string
	version int
	vms     map[int]string // VMID to node
	offline map[string]bool
	quorate bool
	watcher *pmxcfs.Watcher
	records *record.Store
	placed  []string // what became of choices
	*Router
}

func newPVE(t *testing.T) *pve {
	t.Helper()
	p := &pve{T: t, root: t.TempDir(), vms: map[int]string{}, offline: map[string]bool{}, quorate: true}
	for _, dir := range []string{"priv", "nodes/pve1/qemu-server", "nodes/pve2/qemu-server", "nodes/pve3/qemu-server", "nodes/pve1/lxc", "nodes/pve2/lxc", "nodes/pve3/lxc"} {
		p.must(os.MkdirAll(filepath.Join(p.root, dir), 0o700))
	}
	p.write("storage.cfg", nil)
	p.sync()
	p.watcher = pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(p.root), Node: "pve1", MaxAge: time.Hour})
	p.records = record.New(record.Config{Dir: filepath.Join(p.root, "priv", "pve-rigaud")})
	p.Router = New(Config{
		Node: "pve1", Watcher: p.watcher, Records: p.records, Client: func(context.Context) string { return "me" },
		Place: func(_ context.Context, req any) (forward.Way, error) { return p.place(req) },
		Placed: func(_ context.Context, way forward.Way, err error) {
			p.placed = append(p.placed, fmt.Sprint(way.Node, " ", err))
		},
		Quorate:  func() []string { return nil },
		Stranger: func(node string) string { return map[string]string{"pve3": "it is too old"}[node] },
		Status: func(err error) error {
			code := codes.FailedPrecondition
			if fault.Of(err) == fault.Internal {
				code = codes.Internal
			}
			return status.Error(code, err.Error())
		},
	})
	p.must(p.Refresh(t.Context()))
	return p
}

func (p *pve) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

func (p *pve) write(name string, content any) {
	p.Helper()
	raw, isText := content.([]byte)
	if !isText && content != nil {
		var err error
		raw, err = json.Marshal(content)
		p.must(err)
	}
	p.must(os.WriteFile(filepath.Join(p.root, name), raw, 0o600))
}

// sync writes the files that tell the rest.
func (p *pve) sync() {
	p.Helper()
	p.version++
	ids, nodes := map[string]any{}, map[string]any{}
	for id, node := range p.vms {
		ids[fmt.Sprint(id)] = map[string]any{"node": node, "type": "qemu", "version": p.version}
	}
	for i, node := range []string{"pve1", "pve2", "pve3"} {
		nodes[node] = map[string]any{"id": i + 1, "online": map[bool]int{false: 1}[p.offline[node]], "ip": fmt.Sprintf("192.0.2.%d", i+1)}
	}
	p.write(".version", map[string]any{"starttime": 1, "clinfo": p.version, "vmlist": p.version, "storage.cfg": 1})
	p.write(".vmlist", map[string]any{"version": p.version, "ids": ids})
	p.write(".members", map[string]any{
		"nodename": "pve1", "version": p.version, "nodelist": nodes,
		"cluster": map[string]any{"name": "c", "version": 1, "nodes": 3, "quorate": map[bool]int{true: 1}[p.quorate]},
	})
}

// put puts a VM on a node, wherever it was.
func (p *pve) put(id int, node string) {
	p.Helper()
	for _, n := range []string{"pve1", "pve2", "pve3"} {
		if err := os.Remove(filepath.Join(p.root, "nodes", n, "qemu-server", fmt.Sprintf("%d.conf", id))); err != nil && !errors.Is(err, os.ErrNotExist) {
			p.Fatal(err)
		}
	}
	p.write(fmt.Sprintf("nodes/%s/qemu-server/%d.conf", node, id), []byte("name: vm\nsmbios1: uuid="+uuid+"\n"))
	p.vms[id] = node
	p.sync()
}

func (p *pve) record(name string, vmid int, node string, state record.State) {
	p.Helper()
	_, err := p.records.Take(record.Record{Owner: "me", Name: name, VMID: vmid, UUID: uuid, Node: node, State: state})
	p.must(err)
}

// goesTo checks where a request is sent.
func (p *pve) goesTo(want, method string, req any) {
	p.Helper()
	got, err := p.Route(p.Context(), method, req)
	if err != nil || got.Node != want {
		p.Errorf("%s: to %q, %v; want %s", about(method, req), got.Node, err, want)
	}
}

// place chooses the node that the request names where a real one names a template.
func (p *pve) place(req any) (forward.Way, error) {
	switch q := req.(type) {
	case *pb.CreateRequest:
		if q.GetImageJson() == "far" {
			return forward.Way{Node: "pve3", Note: "pve3 " + q.GetName()}, nil
		}
	case *pb.CloneRequest:
		return forward.Way{Node: "pve2", Note: "pve3 " + q.GetTargetName()}, nil
	}
	return forward.Way{}, fault.New(fault.Precondition, "no node fits")
}

// every holds a request of each method that is about VM id, or about the name.
func every(id, name string) map[string]any {
	return map[string]any{
		pb.Provider_Delete_FullMethodName:          &pb.DeleteRequest{Id: id},
		pb.Provider_Power_FullMethodName:           &pb.PowerRequest{Id: id},
		pb.Provider_Reconfigure_FullMethodName:     &pb.ReconfigureRequest{Id: id},
		pb.Provider_HardwareUpgrade_FullMethodName: &pb.HardwareUpgradeRequest{Id: id},
		pb.Provider_Describe_FullMethodName:        &pb.DescribeRequest{Id: id},
		pb.Provider_SnapshotCreate_FullMethodName:  &pb.SnapshotCreateRequest{VmId: id},
		pb.Provider_SnapshotDelete_FullMethodName:  &pb.SnapshotDeleteRequest{VmId: id},
		pb.Provider_SnapshotRevert_FullMethodName:  &pb.SnapshotRevertRequest{VmId: id},
		pb.Provider_ExportDisk_FullMethodName:      &pb.ExportDiskRequest{VmId: id},
		pb.Provider_GetDiskInfo_FullMethodName:     &pb.GetDiskInfoRequest{VmId: id},
		pb.Provider_Clone_FullMethodName:           &pb.CloneRequest{SourceVmId: id, TargetName: name},
		pb.Provider_TaskStatus_FullMethodName:      &pb.TaskStatusRequest{Task: &pb.TaskRef{Id: "create/pve2/" + id + "/op"}},
		pb.Provider_Create_FullMethodName:          &pb.CreateRequest{Name: name, ImageJson: "far"},
		pb.Provider_ImagePrepare_FullMethodName:    &pb.ImagePrepareRequest{TargetName: name},
		pb.Provider_ImportDisk_FullMethodName:      &pb.ImportDiskRequest{TargetName: name},
		pb.Provider_Validate_FullMethodName:        &pb.ValidateRequest{},
		pb.Provider_GetCapabilities_FullMethodName: &pb.GetCapabilitiesRequest{},
		pb.Provider_ListVMs_FullMethodName:         &pb.ListVMsRequest{},
	}
}

// TestEveryMethodHasItsSubject: a method that is forgotten would be answered by whoever is asked.
func TestEveryMethodHasItsSubject(t *testing.T) {
	methods := map[string]bool{}
	for _, m := range pb.Provider_ServiceDesc.Methods {
		methods["/"+pb.Provider_ServiceDesc.ServiceName+"/"+m.MethodName] = true
	}
	for name := range methods {
		if _, ok := subjects[name]; !ok {
			t.Errorf("%s is not in the table", name)
		}
	}
	if len(subjects) != len(methods) || len(methods) != 18 {
		t.Errorf("%d methods, %d in the table", len(methods), len(subjects))
	}
}

func TestASubjectGoesToItsNode(t *testing.T) {
	p := newPVE(t)
	p.put(500, "pve2")
	p.record("taken", 500, "pve2", record.Ready)
	here := map[string]bool{
		pb.Provider_Validate_FullMethodName: true, pb.Provider_GetCapabilities_FullMethodName: true, pb.Provider_ListVMs_FullMethodName: true,
		pb.Provider_ImagePrepare_FullMethodName: true,
	}
	for method, req := range every("500-01234567", "taken") {
		want := "pve2"
		if here[method] {
			want = "pve1"
		}
		p.goesTo(want, method, req)
	}
	// A VM that has moved is found where it is, not where it was made.
	p.put(500, "pve3")
	p.must(p.Refresh(t.Context()))
	p.goesTo("pve3", pb.Provider_Describe_FullMethodName, &pb.DescribeRequest{Id: "500"})
	p.goesTo("pve3", pb.Provider_Create_FullMethodName, &pb.CreateRequest{Name: "taken"})
}

// TestANumberOfAStranger: a name does not stand for the VM that has the number of its own by now.
func TestANumberOfAStranger(t *testing.T) {
	p := newPVE(t)
	p.put(500, "pve3")
	_, err := p.records.Take(record.Record{Owner: "me", Name: "gone", VMID: 500, UUID: "fedcba98-89ab-cdef-0123-456789abcdef", Node: "pve2", State: record.Ready})
	p.must(err)
	p.must(p.Refresh(t.Context()))
	p.goesTo("pve2", pb.Provider_Create_FullMethodName, &pb.CreateRequest{Name: "gone"})
}

// TestAFreeNameIsPlaced: who chooses says where to, and is told what became of it.
func TestAFreeNameIsPlaced(t *testing.T) {
	p := newPVE(t)
	p.goesTo("pve3", pb.Provider_Create_FullMethodName, &pb.CreateRequest{Name: "new", ImageJson: "far"})
	p.goesTo("pve2", pb.Provider_Clone_FullMethodName, &pb.CloneRequest{TargetName: "new", SourceVmId: "500"})
	p.goesTo("pve1", pb.Provider_ImportDisk_FullMethodName, &pb.ImportDiskRequest{TargetName: "new"})
	way, err := p.Route(t.Context(), pb.Provider_Create_FullMethodName, &pb.CreateRequest{Name: "new"})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no node fits") {
		t.Errorf("%v, %v", way, err)
	}
	p.Answered(t.Context(), forward.Way{Node: "pve3"}, errors.New("full"))
	if len(p.placed) != 1 || p.placed[0] != "pve3 full" {
		t.Errorf("told of %q", p.placed)
	}
}

// TestWhatIsBeingMade: its config may not be there yet, and its maker alone knows how far it is.
func TestWhatIsBeingMade(t *testing.T) {
	p := newPVE(t)
	p.record("making", 600, "pve2", record.Creating)
	for method, req := range map[string]any{
		pb.Provider_Describe_FullMethodName: &pb.DescribeRequest{Id: "600-01234567"},
		pb.Provider_Delete_FullMethodName:   &pb.DeleteRequest{Id: "600"},
		pb.Provider_Create_FullMethodName:   &pb.CreateRequest{Name: "making", ImageJson: "far"},
	} {
		p.goesTo("pve2", method, req)
	}
	p.goesTo("pve1", pb.Provider_Describe_FullMethodName, &pb.DescribeRequest{Id: "600-76543210"}) // an earlier VM of that number
	p.goesTo("pve1", pb.Provider_Describe_FullMethodName, &pb.DescribeRequest{Id: "not an id"})
}

// TestANodeThatIsGone: after 120 s with quorum nobody waits for it any more.
func TestANodeThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPVE(t)
		p.record("making", 600, "pve2", record.Creating)
		p.put(500, "pve2")
		p.record("made", 500, "pve2", record.Ready)
		p.offline["pve2"] = true
		p.sync()
		p.must(p.Refresh(t.Context()))
		task := &pb.TaskStatusRequest{Task: &pb.TaskRef{Id: "create/pve2/600-01234567/op"}}
		create := &pb.CreateRequest{Name: "making", ImageJson: "far"}
		p.goesTo("pve2", pb.Provider_TaskStatus_FullMethodName, task)
		p.goesTo("pve2", pb.Provider_Create_FullMethodName, create)
		// What the name stands for is known without that node.
		p.goesTo("pve1", pb.Provider_Create_FullMethodName, &pb.CreateRequest{Name: "made"})
		time.Sleep(121 * time.Second)
		p.must(p.Refresh(t.Context()))
		p.goesTo("pve1", pb.Provider_TaskStatus_FullMethodName, task)
		p.goesTo("pve3", pb.Provider_Create_FullMethodName, create)
		p.goesTo("pve2", pb.Provider_Describe_FullMethodName, &pb.DescribeRequest{Id: "500"}) // its VMs are still its own
	})
}

func TestWithoutQuorum(t *testing.T) {
	p := newPVE(t)
	p.put(500, "pve1")
	p.quorate = false
	p.sync()
	p.must(p.Refresh(t.Context()))
	requests := every("500-01234567", "name")
	for method, req := range requests {
		node, err := p.Route(t.Context(), method, req)
		switch method {
		case pb.Provider_Validate_FullMethodName, pb.Provider_GetCapabilities_FullMethodName:
			if node.Node != "pve1" || err != nil {
				t.Errorf("%s: %q, %v", method, node, err)
			}
		case pb.Provider_TaskStatus_FullMethodName:
			if node.Node != "pve2" || err != nil {
				t.Errorf("%s: %q, %v: the reference names its node", method, node, err)
			}
		default:
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no quorum") {
				t.Errorf("%s: %q, %v: nothing is decided from a list that may be out of date", method, node, err)
			}
		}
	}
	p.cfg.Quorate = func() []string { return []string{"pve3", "pve2"} }
	p.goesTo("pve3", pb.Provider_Describe_FullMethodName, requests[pb.Provider_Describe_FullMethodName])
	// One that does not answer is not the only one.
	describe := requests[pb.Provider_Describe_FullMethodName]
	if _, err := p.Unreachable(t.Context(), forward.Unreachable{Method: pb.Provider_Describe_FullMethodName, Req: describe, Node: "pve3"}); err == nil {
		t.Error("a node that cannot be asked is no answer")
	}
	p.goesTo("pve2", pb.Provider_Describe_FullMethodName, describe)
}

// TestUnreachable: nothing is said that could not be taken back.
func TestUnreachable(t *testing.T) {
	p := newPVE(t)
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for method, req := range every("500-01234567", "web-01") {
		u := forward.Unreachable{Method: method, Req: req, Node: "pve2", Since: since, Err: errors.New("connection refused"), Sent: true}
		resp, err := p.Unreachable(t.Context(), u)
		if method == pb.Provider_TaskStatus_FullMethodName {
			if st, ok := resp.(*pb.TaskStatusResponse); !ok || err != nil || st.GetDone() || st.GetError() != "" {
				t.Errorf("%v, %v: an error of a task is its end", resp, err)
			}
			continue
		}
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: %v: Unavailable would open the manager's breaker for every VM", method, err)
		}
		for _, word := range []string{"pve2", "2026-01-02T03:04:05Z", "connection refused", "repeat"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v does not say %q", method, err, word)
			}
		}
	}
	_, err := p.Unreachable(t.Context(), forward.Unreachable{Method: pb.Provider_Describe_FullMethodName, Req: &pb.DescribeRequest{Id: "500"}, Node: "pve3"})
	if err == nil || !strings.Contains(err.Error(), "it is too old") {
		t.Errorf("%v", err)
	}
	p.offline["pve2"] = true
	p.sync()
	_, err = p.Unreachable(t.Context(), forward.Unreachable{
		Method: pb.Provider_Describe_FullMethodName, Req: &pb.DescribeRequest{Id: "500-01234567"}, Node: "pve2",
	})
	if err == nil || !strings.Contains(err.Error(), "500-01234567") || !strings.Contains(err.Error(), "offline in the cluster since") {
		t.Errorf("%v", err)
	}
}
