package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

func (l *lab) membersAre(v *nodepb.View, want ...*nodepb.Member) {
	l.t.Helper()
	got, err := l.service().Members(l.t.Context(), &nodepb.MembersRequest{})
	if err != nil {
		l.t.Fatal(err)
	}
	if diff := cmp.Diff(&nodepb.MembersResponse{View: v, Members: want}, got, protocmp.Transform()); diff != "" {
		l.t.Errorf("members (-want +got):\n%s", diff)
	}
}

func goodView() *nodepb.View {
	return &nodepb.View{Node: "pve1", Cluster: "lab", Version: "1.0.0", Quorate: true, ReadAtUnixMs: now.UnixMilli() - 500, AgeMs: 500}
}

func pve(i int, online bool) *nodepb.PVENode {
	return &nodepb.PVENode{Online: online, Ip: fmt.Sprintf("192.0.2.%d", i)}
}

func agent(i int, alive bool) *nodepb.Agent {
	return &nodepb.Agent{
		Address: fmt.Sprintf("192.0.2.%d:9443", i), Version: "1.0.0", ProtocolMin: 1, ProtocolMax: 1, Compatible: true,
		Alive: alive, SinceMs: 60_000,
	}
}

func gossiped(i byte, alive bool) cluster.Peer {
	return cluster.Peer{Member: member(i), Alive: alive, Compatible: true, Since: now.Add(-time.Minute)}
}

func TestMembers(t *testing.T) {
	l := newLab(t)
	self := gossiped(1, true)
	self.Self = true
	self.State = view.Node{DigestAt: now.Add(-1500 * time.Millisecond), Digest: view.Digest{
		Incarnation: 7, Sequence: 8, MemoryFree: 1, MemoryTotal: 2, MemoryPromised: 3, VCPUs: 4, VCPUsPromised: 5,
		Load: 123, PSICPU: 25, PSIMemory: 50, PSIIO: 10000, Cordoned: true, Quorate: true, Draining: true,
	}}
	newer := gossiped(3, false)
	newer.Version, newer.Protocol, newer.Compatible = "9.0.0", cluster.Protocols{Min: 5, Max: 6}, false
	stranger := cluster.Peer{Member: cluster.Member{Name: "pve9"}} // not in .members; its metadata cannot be read
	l.peers = []cluster.Peer{self, gossiped(2, true), newer, stranger}
	l.links = []forward.Link{
		{Node: "pve2"},
		{Node: "pve3", Since: now.Add(-12 * time.Second), LastError: "connection refused"},
		{Node: "left-long-ago", Since: now, LastError: "no route to host"},
	}
	third := agent(3, false)
	third.Version, third.ProtocolMin, third.ProtocolMax, third.Compatible = "9.0.0", 5, 6, false
	l.membersAre(
		goodView(),
		&nodepb.Member{Name: "pve1", Self: true, Pve: pve(1, true), Agent: agent(1, true), Capacity: &nodepb.Capacity{
			AgeMs: 1500, MemoryTotal: 2, MemoryFree: 1, MemoryPromised: 3, Cpus: 4, VcpusPromised: 5, Load: 1.23,
			PressureCpu: 0.25, PressureMemory: 0.5, PressureIo: 100, Cordoned: true, Draining: true, Quorate: true,
		}},
		&nodepb.Member{Name: "pve2", Pve: pve(2, true), Agent: agent(2, true), Link: &nodepb.Link{Up: true}},
		&nodepb.Member{
			Name: "pve3", Pve: pve(3, true), Agent: third,
			Link: &nodepb.Link{DownMs: 12_000, LastError: "connection refused"},
		},
		&nodepb.Member{Name: "pve9", Agent: &nodepb.Agent{}},
	)
}

func TestMembersWithoutGossip(t *testing.T) {
	l := newLab(t)
	l.members(1, "pve1", "pve3")
	l.look()
	l.membersAre(goodView(), &nodepb.Member{Name: "pve1", Self: true, Pve: pve(1, true)},
		&nodepb.Member{Name: "pve2", Pve: pve(2, false)}, &nodepb.Member{Name: "pve3", Pve: pve(3, true)})

	cfg := l.service().cfg // as wired where there is neither gossip nor forwarding
	cfg.Peers, cfg.Links, cfg.Now = nil, nil, nil
	if _, err := New(cfg).Members(t.Context(), nil); err != nil {
		t.Error(err)
	}
}

func TestMembersWithoutQuorum(t *testing.T) {
	l := newLab(t)
	l.members(0, "pve1")
	l.look()
	v := goodView()
	v.Quorate, v.Stale = false, "node pve1 has no quorum: the others may have changed since"
	l.membersAre(v, &nodepb.Member{Name: "pve1", Self: true, Pve: pve(1, true)},
		&nodepb.Member{Name: "pve2", Pve: pve(2, false)}, &nodepb.Member{Name: "pve3", Pve: pve(3, false)})
}

// TestMembersWithoutPVE needs gossip alone.
func TestMembersWithoutPVE(t *testing.T) {
	l := newLab(t)
	l.gone = errors.New("/etc/pve: last read 9s ago: transport endpoint is not connected")
	l.peers = []cluster.Peer{gossiped(2, true)}
	second := &nodepb.Member{Name: "pve2", Agent: agent(2, true)}
	l.membersAre(&nodepb.View{Node: "pve1", Version: "1.0.0", Stale: l.gone.Error()}, &nodepb.Member{Name: "pve1", Self: true}, second)

	l.old = true // the watcher gives away what it last read
	v := goodView()
	v.Quorate, v.Stale = false, l.gone.Error()
	second.Pve = pve(2, true)
	l.membersAre(v, &nodepb.Member{Name: "pve1", Self: true, Pve: pve(1, true)}, second, &nodepb.Member{Name: "pve3", Pve: pve(3, true)})
}

func (l *lab) vms(node string) *nodepb.VMsResponse {
	l.t.Helper()
	resp, err := l.service().VMs(l.t.Context(), &nodepb.VMsRequest{Node: node})
	if err != nil {
		l.t.Fatal(err)
	}
	return resp
}

// is compares what is said of one guest, by number, or by name if it has none.
func (l *lab) is(want *nodepb.VM) {
	l.t.Helper()
	var got []*nodepb.VM
	for _, vm := range l.vms("").GetVms() {
		if vm.GetVmid() == want.GetVmid() && (want.GetVmid() != 0 || vm.GetName() == want.GetName()) {
			got = append(got, vm)
		}
	}
	if diff := cmp.Diff([]*nodepb.VM{want}, got, protocmp.Transform()); diff != "" {
		l.t.Errorf("VM %d (-want +got):\n%s", want.GetVmid(), diff)
	}
}

const (
	uuidA = "aaaaaaaa-0000-4000-8000-000000000001"
	uuidB = "bbbbbbbb-0000-4000-8000-000000000002"
)

func conf(name, uuid string, more ...string) string {
	return "memory: 512\nname: " + name + "\nsmbios1: uuid=" + uuid + "\n" + strings.Join(more, "\n") + "\n"
}

func rec(name string, vmid int, uuid string, state record.State) record.Record {
	return record.Record{Owner: "manager", Name: name, VMID: vmid, UUID: uuid, Node: "pve2", State: state}
}

func pbRecord(state string) *nodepb.Record {
	return &nodepb.Record{Owner: "manager", State: state, Node: "pve2", AgeMs: 60_000}
}

func TestVMs(t *testing.T) {
	for _, test := range []struct {
		name    string
		guest   guest
		records []record.Record
		power   string
		offline bool // node pve2
		want    *nodepb.VM
	}{
		{
			name: "ours, on this node", guest: guest{100, "pve1", "qemu", conf("web", uuidA)}, power: "on",
			records: []record.Record{rec("web", 100, uuidA, record.Ready)},
			want:    &nodepb.VM{Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "on", Record: pbRecord("ready")},
		},
		{
			name: "foreign, power not known", guest: guest{100, "pve1", "qemu", conf("web", uuidA)},
			want: &nodepb.VM{Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "unknown"},
		},
		{
			name: "foreign without a name or uuid", guest: guest{100, "pve1", "qemu", "memory: 1\n"}, power: "off",
			want: &nodepb.VM{Id: "100", Node: "pve1", Type: "qemu", Power: "off"},
		},
		{
			name: "elsewhere: this node cannot know its power", guest: guest{100, "pve2", "qemu", conf("web", uuidA)}, power: "on",
			want: &nodepb.VM{Id: "100-aaaaaaaa", Name: "web", Node: "pve2", Type: "qemu", Power: "unknown"},
		},
		{
			name: "its node is offline", guest: guest{100, "pve2", "qemu", conf("web", uuidA)}, offline: true,
			want: &nodepb.VM{Id: "100-aaaaaaaa", Name: "web", Node: "pve2", Type: "qemu", Power: "unknown", Stale: "node pve2 is offline"},
		},
		{
			name: "a stranger with a number that was ours", guest: guest{100, "pve1", "qemu", conf("web", uuidB)},
			records: []record.Record{rec("db", 100, uuidA, record.Ready)},
			want:    &nodepb.VM{Id: "100-bbbbbbbb", Name: "web", Node: "pve1", Type: "qemu", Power: "unknown"},
		},
		{
			name: "a stranger with a number that was to be ours", guest: guest{100, "pve1", "qemu", conf("web", uuidB)},
			records: []record.Record{rec("db", 100, uuidA, record.Creating)},
			want:    &nodepb.VM{Id: "100-bbbbbbbb", Name: "web", Node: "pve1", Type: "qemu", Power: "unknown"},
		},
		{
			name: "being cloned: the id is the one it will have", guest: guest{100, "pve1", "qemu", "memory: 1\nlock: clone\n"},
			records: []record.Record{rec("web", 100, uuidA, record.Creating)},
			want: &nodepb.VM{
				Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "unknown", Lock: "clone", Record: pbRecord("creating"),
			},
		},
		{
			name: "cloned, with PVE's uuid still", guest: guest{100, "pve1", "qemu", conf("web", uuidB)},
			records: []record.Record{rec("web", 100, uuidA, record.Creating)},
			want:    &nodepb.VM{Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "unknown", Record: pbRecord("creating")},
		},
		{
			name: "somebody else clones: no id yet", guest: guest{100, "pve1", "qemu", conf("copy", uuidB, "lock: clone")},
			want: &nodepb.VM{Name: "copy", Node: "pve1", Type: "qemu", Power: "unknown", Lock: "clone"},
		},
		{
			name: "a template", guest: guest{100, "pve1", "qemu", conf("golden", uuidA, "template: 1", "lock: backup")}, power: "off",
			want: &nodepb.VM{Id: "100-aaaaaaaa", Name: "golden", Node: "pve1", Type: "qemu", Template: true, Power: "off", Lock: "backup"},
		},
		{
			name: "a container", guest: guest{100, "pve1", "lxc", ""}, power: "on",
			want: &nodepb.VM{Node: "pve1", Type: "lxc", Power: "unknown"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t)
			if test.offline {
				l.members(1, "pve1", "pve3")
			}
			l.guests([]guest{test.guest})
			l.look()
			for _, r := range test.records {
				l.take(r)
			}
			l.power[100] = test.power
			test.want.Vmid, test.want.Listed = 100, true
			l.is(test.want)
			if asked := len(l.asked) > 0; asked != (test.guest.node == "pve1" && test.guest.kind == "qemu") {
				t.Errorf("power asked for: %v", asked)
			}
			if v := l.vms("").GetView(); v.GetStale() != "" || v.GetNode() != "pve1" {
				t.Errorf("view %v", v)
			}
		})
	}
}

func TestVMsThatPVEDoesNotShow(t *testing.T) {
	l := newLab(t)
	l.guests([]guest{{100, "pve1", "qemu", conf("web", uuidA)}, {101, "pve2", "qemu", ""}, {102, "pve2", "qemu", ""}})
	l.look()
	l.take(rec("moving", 101, uuidA, record.Ready))
	l.take(rec("gone", 150, uuidB, record.Ready))
	l.take(rec("begun", 0, "", record.Creating))
	l.take(rec("numbered", 151, uuidA, record.Creating))

	got := map[string]*nodepb.VM{}
	var order []string
	for _, vm := range l.vms("").GetVms() {
		order = append(order, fmt.Sprint(vm.GetVmid(), vm.GetName()))
		got[vm.GetName()] = vm
	}
	if diff := cmp.Diff([]string{"0begun", "100web", "101moving", "102", "150gone", "151numbered"}, order); diff != "" {
		t.Fatalf("order (-want +got):\n%s", diff)
	}
	for _, vm := range []*nodepb.VM{got["moving"], got[""]} {
		if !strings.HasPrefix(vm.GetStale(), "its config could not be read: ") || !vm.GetListed() || vm.GetId() != "" || vm.GetNode() != "" {
			t.Errorf("a config that cannot be read: %v", vm)
		}
	}
	if got["moving"].GetRecord() == nil || got[""].GetRecord() != nil {
		t.Errorf("records of configs that cannot be read: %v, %v", got["moving"], got[""])
	}
	l.is(&nodepb.VM{Name: "begun", Node: "pve2", Type: "qemu", Power: "unknown", Record: pbRecord("creating")})
	l.is(&nodepb.VM{Vmid: 151, Id: "151-aaaaaaaa", Name: "numbered", Node: "pve2", Type: "qemu", Power: "unknown", Record: pbRecord("creating")})
	l.is(&nodepb.VM{
		Vmid: 150, Id: "150-bbbbbbbb", Name: "gone", Node: "pve2", Type: "qemu", Power: "unknown", Record: pbRecord("ready"),
		Stale: "only its record is there: no such guest in .vmlist",
	})
}

func TestVMsOfOneNode(t *testing.T) {
	l := newLab(t)
	l.guests([]guest{{100, "pve1", "qemu", conf("web", uuidA)}, {101, "pve2", "qemu", conf("db", uuidB)}})
	l.look()
	for node, want := range map[string]int{"": 2, "pve1": 1, "pve2": 1, "pve3": 0} {
		if got := l.vms(node).GetVms(); len(got) != want {
			t.Errorf("node %q: %v", node, got)
		}
	}
	_, err := l.service().VMs(t.Context(), &nodepb.VMsRequest{Node: "pve7"})
	if status.Code(err) != codes.NotFound || !strings.Contains(err.Error(), `no node "pve7"`) {
		t.Errorf("a node that is not there: %v", err)
	}
}

func TestVMsWithoutQuorumOrPVE(t *testing.T) {
	l := newLab(t)
	l.guests([]guest{{100, "pve1", "qemu", conf("web", uuidA)}})
	l.members(0, "pve1")
	l.look()
	if resp := l.vms(""); len(resp.GetVms()) != 1 || resp.GetView().GetQuorate() || !strings.Contains(resp.GetView().GetStale(), "no quorum") {
		t.Errorf("without quorum: %v", resp)
	}
	l.gone = errors.New("transport endpoint is not connected")
	if _, err := l.service().VMs(t.Context(), nil); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), l.gone.Error()) {
		t.Errorf("an empty list would say that there are no VMs; got %v", err)
	}
	l.old = true
	if resp := l.vms(""); len(resp.GetVms()) != 1 || !strings.Contains(resp.GetView().GetStale(), l.gone.Error()+"; node pve1 has no quorum") {
		t.Errorf("with an old reading: %v", resp)
	}
}

func TestVMsWithBrokenRecords(t *testing.T) {
	l := newLab(t)
	l.guests([]guest{{100, "pve1", "qemu", conf("web", uuidA)}})
	l.look()
	l.take(rec("web", 100, uuidA, record.Ready))
	dir := filepath.Join(l.etc, "priv", "pve-rigaud", "vms")
	good, err := os.ReadDir(dir)
	if err != nil || len(good) != 1 {
		t.Fatal(good, err)
	}
	hash, generation, _ := strings.Cut(good[0].Name(), ".")
	for digit, text := range map[string]string{"0": "", "1": "{}\n"} {
		name := strings.Repeat(digit, len(hash)) + "." + generation
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	resp := l.vms("")
	if resp.GetVms()[0].GetRecord() == nil || !strings.HasPrefix(resp.GetRecordsError(), "records that cannot be read: 1 being written, or left so by a crash; ") {
		t.Errorf("some are broken: %v", resp)
	}
	l.listErr = errors.New("input/output error")
	if resp := l.vms(""); len(resp.GetVms()) != 1 || resp.GetRecordsError() != "records cannot be read: input/output error" {
		t.Errorf("none can be read: %v", resp)
	}
}

func TestAgeIsNeverNegative(t *testing.T) {
	if got := age(now, now.Add(time.Hour)); got != 0 {
		t.Errorf("got %d", got)
	}
}
