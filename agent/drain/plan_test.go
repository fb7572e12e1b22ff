package drain

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const gib = 1 << 30

// rooms is a Scheduler over nodes with so much memory left; the fullest that fits is chosen, so that tests can count.
type rooms struct {
	free  map[string]int64
	wants []placement.Want // of the last Plan
}

func (r *rooms) WantOf(_ context.Context, vm *pmxcfs.VM) (placement.Want, error) {
	if vm.Conf.Name() == "broken" {
		return placement.Want{}, errors.New("no such disk")
	}
	return placement.Want{Name: vm.Conf.Name(), Memory: uint64(vm.Conf.MemoryMiB()) << 20}, nil
}

func (r *rooms) Decided(context.Context, string, string, placement.Want, placement.Decision) {}

func (r *rooms) Plan(_ context.Context, wants []placement.Want) ([]placement.Decision, error) {
	r.wants = wants
	free := map[string]int64{}
	for n, f := range r.free {
		free[n] = f
	}
	var out []placement.Decision
	for _, w := range wants {
		d := r.place(w, free)
		if d.Node != "" {
			free[d.Node] -= int64(w.Memory)
		}
		out = append(out, d)
	}
	return out, nil
}

func (r *rooms) place(w placement.Want, free map[string]int64) (d placement.Decision) {
	for _, n := range []string{"pve1", "pve2", "pve3"} {
		row := placement.Row{Node: n, MemoryFree: free[n]}
		add := func(filter, text string) {
			row.Reasons = append(row.Reasons, placement.Reason{Filter: filter, Text: text})
		}
		if n == w.Current {
			add("current", "is where it is now")
		}
		if n == "pve2" { // which is drained, or has just been
			add("cordoned", "is cordoned")
		}
		if w.Only != nil && w.Only[0] != n {
			add("only", "is ruled out")
		}
		if why := w.Never[n]; why != "" {
			add("never", why)
		}
		if int64(w.Memory) > free[n] {
			add("memory", "memory")
		}
		d.Rows = append(d.Rows, row)
		if len(row.Reasons) == 0 && (d.Node == "" || free[n] < free[d.Node]) {
			d.Node = n
		}
	}
	return d
}

// guests is a world from lines "<vmid> <node> <MiB> <name>"; a name with a "!" runs, and "ct" is a container.
func guests(t *testing.T, lines string) (world *pmxcfs.World, running func(int) bool) {
	t.Helper()
	world = &pmxcfs.World{Node: "pve2", Quorate: true, VMs: map[int]*pmxcfs.VM{}}
	runs := map[int]bool{}
	for line := range strings.Lines(lines) {
		var (
			id, memory int
			node, name string
		)
		if _, err := fmt.Sscan(line, &id, &node, &memory, &name); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if name == "ct" {
			world.VMs[id] = &pmxcfs.VM{ID: id, Node: node, Type: pmxcfs.TypeLXC}
			continue
		}
		name, runs[id] = strings.TrimSuffix(name, "!"), strings.HasSuffix(name, "!")
		text := fmt.Sprintf("name: %s\nmemory: %d\nsmbios1: uuid=%08d-0000-4000-8000-000000000000\n", name, memory, id)
		if name == "golden" {
			text += "template: 1\n"
		}
		conf, err := pmxcfs.ParseConf("x", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		world.VMs[id] = &pmxcfs.VM{ID: id, Node: node, Type: pmxcfs.TypeQEMU, Conf: conf}
	}
	return world, func(id int) bool { return runs[id] }
}

// drainer is a Drainer of pve2, for what it plans.
func drainer(t *testing.T, s Scheduler, running func(int) bool) *Drainer {
	t.Helper()
	return &Drainer{cfg: Config{
		Node: "pve2", Scheduler: s, Running: running, Cordons: cordon.New(cordon.Config{Dir: filepath.Join(t.TempDir(), "x")}),
		Immovable: func(conf *pmxcfs.Conf, _ pmxcfs.Storages, _ bool) string {
			if conf.Name() == "gpu" {
				return "it uses hostpci0"
			}
			return ""
		},
	}}
}

// show is a plan as text.
func show(p proposal) string {
	var b strings.Builder
	for _, m := range p.moves {
		fmt.Fprintf(&b, "%d %s %s->%s %.1f %s\n", m.VMID, m.State, m.From, m.To, float64(m.Memory)/gib, m.Reason)
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}

const fleet = `100 pve2 2048 a!
101 pve2 8192 b!
102 pve2 4096 c
103 pve2 1024 gpu!
104 pve2 512 golden
105 pve2 512 ct
106 pve1 512 other!
107 pve2 6144 d!
`

func TestPropose(t *testing.T) {
	world, running := guests(t, fleet)
	for _, test := range []struct {
		name    string
		free    map[string]int64
		stopped bool
		want    string
		left    int
		refused string
	}{
		{"the largest first, each counted", map[string]int64{"pve1": 9 * gib, "pve3": 64 * gib}, false, `101 planned pve2->pve1 8.0
107 planned pve2->pve3 6.0
100 planned pve2->pve3 2.0
103 stays pve2-> 1.0 it uses hostpci0
105 stays pve2-> 0.0 it is a container
`, 1, "node pve2 cannot be emptied, nothing was begun: VM 103 (gpu) stays: it uses hostpci0. With --force the others are moved"},
		{"one that fits nowhere", map[string]int64{"pve1": 7 * gib, "pve3": 3 * gib}, true, `101 stays pve2-> 8.0 no node fits: pve1 memory, pve2 is where it is now and is cordoned and memory, pve3 memory
107 planned pve2->pve1 6.0
100 planned pve2->pve3 2.0
103 stays pve2-> 1.0 it uses hostpci0
102 planned pve2->pve1 0.0
105 stays pve2-> 0.0 it is a container
`, 0, "VM 101 (b) stays: no node fits"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := drainer(t, &rooms{free: test.free}, running)
			p, err := d.propose(t.Context(), world, test.stopped, map[int]bool{})
			if err != nil || p.stopped != test.left {
				t.Fatalf("%d stopped, %v", p.stopped, err)
			}
			if diff := cmp.Diff(test.want, show(p)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if got := p.refusal("pve2"); !strings.Contains(got, test.refused) || strings.Contains(got, "105") {
				t.Errorf("%s", got)
			}
		})
	}
}

func TestProposeTellsWhatItCannotRead(t *testing.T) {
	world, running := guests(t, "100 pve2 512 broken!\n")
	if _, err := drainer(t, &rooms{}, running).propose(t.Context(), world, false, nil); err == nil || err.Error() != "what VM 100 needs: no such disk" {
		t.Error(err)
	}
	if p, err := drainer(t, &rooms{}, running).propose(t.Context(), world, false, map[int]bool{100: true}); err != nil || len(p.moves) != 0 {
		t.Errorf("what is done already: %v, %v", p, err)
	}
	world, running = guests(t, "")
	world.Unread = map[int]error{
		200: errors.New("open /etc/pve/nodes/pve1/qemu-server/200.conf: input/output error"),
		201: errors.New("open /etc/pve/nodes/pve2/qemu-server/201.conf: input/output error"),
	}
	p, err := drainer(t, &rooms{}, running).propose(t.Context(), world, false, nil)
	if err != nil || len(p.obstacles()) != 1 || !strings.Contains(p.refusal("pve2"), "VM 201 () stays: its config cannot be read") {
		t.Errorf("what cannot be read: %s, %v", p.refusal("pve2"), err)
	}
}

// TestComeBack: the cordon, of which the others may not have heard that it is lifted, is looked through, and nothing else.
func TestComeBack(t *testing.T) {
	world, running := guests(t, `100 pve1 2048 a!
101 pve3 8192 b!
102 pve2 4096 back!
103 pve1 1024 gpu!
104 pve1 4096 another!
106 pve1 7168 big!
`)
	d := drainer(t, &rooms{free: map[string]int64{"pve2": 12 * gib}}, running)
	d.cfg.Cordons = cordon.New(cordon.Config{Dir: filepath.Join(t.TempDir(), "pve-rigaud")})
	var list []cordon.Moved
	for _, id := range []int{100, 101, 102, 103, 104, 105, 106} {
		m := cordon.Moved{VMID: id, ID: record.NewID(id, fmt.Sprintf("%08d-", id)).String(), From: "pve2", Running: true}
		if id == 104 { // the number has another machine now
			m.ID = "104-deadbeef"
		}
		list = append(list, m)
	}
	if err := d.cfg.Cordons.SetMoved("pve2", list); err != nil {
		t.Fatal(err)
	}
	p, err := d.comeBack(t.Context(), world)
	if err != nil {
		t.Fatal(err)
	}
	const want = `101 planned pve3->pve2 8.0
106 stays pve1-> 7.0 pve2 has no memory left for it after the others
100 planned pve1->pve2 2.0
103 stays pve1-> 1.0 it uses hostpci0
`
	if diff := cmp.Diff(want, show(p)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// TestHADrawsBack: a drain cannot keep HA from following its own rules, but it can say so.
func TestHADrawsBack(t *testing.T) {
	world, running := guests(t, "100 pve2 512 a!\n101 pve2 512 b!\n102 pve2 512 c!\n")
	files := pmxcfs.HAFiles{
		Resources: []byte("vm: 100\n\tstate started\n\nvm: 101\n\tstate started\n\nvm: 102\n\tstate ignored\n"),
		Rules:     []byte("node-affinity: home\n\tnodes pve2:2,pve1:1\n\tresources vm:100,vm:102\n\nnode-affinity: any\n\tnodes pve2:1,pve1:1\n\tresources vm:101\n"),
	}
	for i, want := range []string{
		"HA prefers node pve2 for VM 100 and may bring it back at once; to prevent that: ha-manager crm-command node-maintenance enable pve2", "",
	} {
		maintenance := i == 1
		if maintenance {
			files.ManagerStatus = []byte(`{"node_status":{"pve2":"maintenance"},"node_request":{"pve2":{"maintenance":1}}}`)
		}
		world.HA = pmxcfs.ParseHA(files)
		d := drainer(t, &rooms{free: map[string]int64{"pve1": gib, "pve3": gib}}, running)
		p, err := d.propose(t.Context(), world, false, nil)
		if got := p.notes(); err != nil || got != want || len(p.moves) != 3 {
			t.Errorf("in maintenance %v: %q, %v, %v", maintenance, got, world.HA.Problems, err)
		}
		if p.moves[0].HA != true || p.moves[2].HA {
			t.Errorf("what HA moves: %v", p.moves)
		}
	}
}

func TestRowOf(t *testing.T) {
	if r := rowOf(placement.Decision{}, "pve9"); len(r.Reasons) != 1 {
		t.Errorf("a node that nobody knows: %v", r)
	}
}
