package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// TestCrash kills agents at each moment of their operations, lets them come back, and looks at what there is then: one
// VM or none, and nothing half made.
func TestCrash(t *testing.T) {
	t.Run("simulated", func(t *testing.T) {
		w := crashNodes(t, 6, pvesim.Fake, 0)
		w.carryOut(t, crashEach(crashTable(t, w), crashStride))
	})
	if !crashReally {
		return
	}
	t.Run("real", func(t *testing.T) {
		w := crashNodes(t, 2, pvesim.Auto, 0)
		if !w.Real() {
			t.Skipf("skipped: needs QEMU (%s); enable with: %s", w.Sim.Why(), rig.InstallQEMU)
		}
		w.carryOut(t, crashReal(crashTable(t, w)))
	})
}

// crashEnough failed rows tell what is wrong.
const crashEnough = 12

// carryOut runs the rows, each on a node of its own.
func (w *crashWorld) carryOut(t *testing.T, table []crashCase) {
	t.Helper()
	begin := time.Now()
	rows := make(chan crashCase)
	var workers sync.WaitGroup
	for _, n := range w.Sim.Nodes() {
		workers.Go(func() {
			var life *crashLife
			for c := range rows {
				t.Run(c.name, func(t *testing.T) { life = w.row(t, n.Name, life, c) })
			}
			if life != nil {
				if err := life.stop(); err != nil {
					t.Errorf("stop the agent of %s: %v", n.Name, err)
				}
			}
		})
	}
	for _, c := range table {
		if w.failures() > crashEnough {
			t.Errorf("gave up: more than %d rows have failed", crashEnough)
			break
		}
		rows <- c
	}
	close(rows)
	workers.Wait()
	w.print(t)
	// What a crash in the middle of a write has left is swept a minute later.
	if _, err := record.New(record.Config{Dir: filepath.Join(w.Sim.Tree(), "priv", "pve-rigaud")}).Sweep(time.Now().Add(crashAge)); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(w.Sim.Tree(), "priv", "pve-rigaud", "vms"))
	if err != nil || len(left) > 0 && !t.Failed() {
		t.Errorf("records left: %v, %v", left, err)
	}
	t.Logf("%d rows in %.1f s", len(table), time.Since(begin).Seconds())
}

// row runs one row on a node and returns the agent that lives there at its end.
func (w *crashWorld) row(t *testing.T, node string, life *crashLife, c crashCase) *crashLife {
	t.Helper()
	begin := time.Now()
	r := &crashRow{
		crashWorld: w, crashCase: c, node: node, vm: w.newName(), life: life,
		told: make(chan struct{}), muted: make(chan struct{}), made: make(chan struct{}), remade: make(chan struct{}),
		clones: map[string]int{}, release: func() {},
	}
	w.put(node, r)
	defer w.put(node, nil)
	if life == nil {
		if err := r.live(crashPoint{}); err != nil {
			t.Fatal(err)
		}
	}
	r.lives = 1
	err := r.run()
	exists, _ := r.wanted()
	outcome := map[bool]string{true: "one VM", false: "no VM"}[exists]
	if err != nil {
		outcome = crashFailed
		t.Errorf("%s (%s on %s): %v", c.name, r.vm, node, err)
		if r.life.provider != nil {
			r.life.kill()
		}
		t.Logf("its last agent said:\n%s", r.life.log.String())
		r.life = nil
	}
	w.note(fmt.Sprintf("%-70s %2d lives %6.2f s  %s", c.name, r.lives, time.Since(begin).Seconds(), outcome))
	return r.life
}

// discover lets an agent live through all operations and returns the writes of its journal, by request.
func discover(t *testing.T, w *crashWorld) map[string][]string {
	t.Helper()
	r := &crashRow{crashWorld: w, node: w.Sim.Nodes()[0].Name, vm: w.newName(), clones: map[string]int{}}
	if err := r.live(crashPoint{}); err != nil {
		t.Fatal(err)
	}
	w.put(r.node, r)
	defer w.put(r.node, nil)
	found := map[string][]string{}
	for _, s := range []struct {
		op  string
		ask func() error
	}{
		{crashCreate, func() (err error) { r.firstID, err = r.settleCreate(r.life); return err }},
		{crashOn, func() error { return r.settlePower(r.life, providerpb.PowerOp_POWER_OP_ON) }},
		{crashOff, func() error { return r.settlePower(r.life, providerpb.PowerOp_POWER_OP_OFF) }},
		{"", func() error { return r.settlePower(r.life, providerpb.PowerOp_POWER_OP_ON) }},
		{crashDelete, func() error { return r.settleDelete(r.life) }},
		{"undo", func() error {
			r.refuse.Store(true)
			_, err := r.settleCreate(r.life)
			if err == nil || !strings.Contains(err.Error(), crashRefusal) {
				return fmt.Errorf("create without a config: %w", err)
			}
			return nil
		}},
	} {
		if err := r.life.arm(crashPoint{}); err != nil {
			t.Fatal(err)
		}
		from := len(r.life.writes(0))
		if err := s.ask(); err != nil {
			t.Fatalf("%s: %v", s.op, err)
		}
		if err := r.idle(r.life); err != nil {
			t.Fatal(err)
		}
		if err := r.life.arm(crashPoint{}); err != nil { // by then it has told of all its writes
			t.Fatal(err)
		}
		found[s.op] = r.life.writes(from)
	}
	if err := r.life.stop(); err != nil {
		t.Fatal(err)
	}
	return found
}

// crashMoments are both sides of each write.
func crashMoments(writes []string) []crashPoint {
	var all []crashPoint
	for i := range writes {
		all = append(all, crashPoint{Write: i + 1}, crashPoint{Write: i + 1, After: true})
	}
	return all
}

func (p crashPoint) text(writes []string) string {
	side := "before"
	if p.After {
		side = "after"
	}
	return fmt.Sprintf("%02d %s %s", p.Write, side, writes[p.Write-1])
}

// find returns the number of a write.
func crashWrite(t *testing.T, writes []string, what string) int {
	t.Helper()
	i := slices.Index(writes, what)
	if i < 0 {
		t.Fatalf("no write %q among %v", what, writes)
	}
	return i + 1
}

// crashCalls are the changes that an operation asks of PVE.
var crashCalls = map[string][]crashCall{
	crashCreate: {
		{method: http.MethodPost, path: "/nodes/*/qemu/*/clone"},
		{method: http.MethodPut, path: "/nodes/*/qemu/*/config"},
		{method: http.MethodPut, path: "/nodes/*/qemu/*/resize"},
	},
	crashDelete: {
		{method: http.MethodPost, path: "/nodes/*/qemu/*/status/stop"},
		{method: http.MethodDelete, path: "/nodes/*/qemu/*"},
	},
	crashOn:  {{method: http.MethodPost, path: "/nodes/*/qemu/*/status/start"}},
	crashOff: {{method: http.MethodPost, path: "/nodes/*/qemu/*/status/stop"}},
}

// crashTasks are the tasks that these changes start.
var crashTasks = map[string]string{
	"/nodes/*/qemu/*/clone": "qmclone", "/nodes/*/qemu/*/resize": "resize", "/nodes/*/qemu/*/status/stop": "qmstop",
	"/nodes/*/qemu/*": "qmdestroy", "/nodes/*/qemu/*/status/start": "qmstart",
}

// crashTable is the whole table.
func crashTable(t *testing.T, w *crashWorld) []crashCase {
	t.Helper()
	writes := discover(t, w)
	var table []crashCase
	add := func(c crashCase, format string, args ...any) {
		c.name = c.op + " " + fmt.Sprintf(format, args...)
		table = append(table, c)
	}
	for _, op := range []string{crashCreate, crashDelete, crashOn, crashOff} {
		for _, p := range crashMoments(writes[op]) {
			at := p.text(writes[op])
			add(crashCase{op: op, kills: []crashPoint{p}}, "%s", at)
			add(crashCase{op: op, kills: []crashPoint{p}, alone: true}, "%s, not repeated", at)
			if op == crashCreate || op == crashDelete {
				add(crashCase{op: op, kills: []crashPoint{p}, lost: true}, "%s, journal lost", at)
			}
		}
		for i := range writes[op] {
			p := crashPoint{Write: i + 1, After: true}
			add(crashCase{op: op, kills: []crashPoint{p, {Write: 1, After: true}}}, "%s, and after the next", p.text(writes[op]))
		}
		first := crashPoint{Write: 1, After: true}
		// A life has to get one step further, and it may repeat a note before that.
		add(crashCase{op: op, kills: []crashPoint{first}, every: crashPoint{Write: 2, After: true}}, "after every second write")
		add(crashCase{op: op, kills: []crashPoint{first}, every: crashPoint{Write: 3}}, "before every third write")
		add(crashCase{op: op, kills: []crashPoint{first}, every: crashPoint{Write: 2, After: true}, alone: true}, "after every second write, not repeated")
		for _, call := range crashCalls[op] {
			for _, answered := range []bool{false, true} {
				call.answered = answered
				at := "at the call of " + call.method + strings.ReplaceAll(call.path, "/", " ")
				if answered {
					at = "before the answer of " + call.method + strings.ReplaceAll(call.path, "/", " ")
				}
				add(crashCase{op: op, call: &call}, "%s", at)
				if task := crashTasks[call.path]; task != "" {
					add(crashCase{op: op, call: &call, hold: task}, "%s, %s slow", at, task)
					add(crashCase{op: op, call: &call, hold: task, alone: true}, "%s, %s slow, not repeated", at, task)
				}
			}
		}
	}
	return append(table, crashSpecials(t, writes)...)
}

// crashSpecials are the rows that only some operations have.
func crashSpecials(t *testing.T, writes map[string][]string) []crashCase {
	t.Helper()
	var table []crashCase
	add := func(c crashCase, format string, args ...any) {
		c.name = c.op + " " + fmt.Sprintf(format, args...)
		table = append(table, c)
	}
	for op, tasks := range map[string]map[string]string{
		crashCreate: {"task clone": "qmclone", "task grow": "resize"}, crashOn: {"task on": "qmstart"}, crashOff: {"task off": "qmstop"},
	} {
		for write, task := range tasks {
			for _, after := range []bool{false, true} {
				p := crashPoint{Write: crashWrite(t, writes[op], write), After: after}
				add(crashCase{op: op, kills: []crashPoint{p}, hold: task}, "%s, %s slow", p.text(writes[op]), task)
				add(crashCase{op: op, kills: []crashPoint{p}, hold: task, alone: true}, "%s, %s slow, not repeated", p.text(writes[op]), task)
			}
		}
	}
	clone := crashCall{method: http.MethodPost, path: "/nodes/*/qemu/*/clone", answered: true, told: true}
	add(crashCase{op: crashCreate, call: &clone, hold: "qmclone"}, "told the id, qmclone slow")
	add(crashCase{op: crashCreate, call: &clone, hold: "qmclone", lost: true}, "told the id, qmclone slow, journal lost")
	add(crashCase{op: crashCreate, call: &clone, hold: "qmclone", withdraw: true}, "told the id, qmclone slow, then deleted")
	add(crashCase{op: crashCreate, call: &clone, withdraw: true}, "told the id, then deleted")
	add(crashCase{op: crashCreate, call: &clone, withdraw: true, lost: true}, "told the id, journal lost, then deleted")
	add(crashCase{op: crashCreate, call: &clone, hold: "qmclone", withdraw: true, lost: true}, "told the id, qmclone slow, journal lost, then deleted")
	add(crashCase{op: crashCreate, call: &clone, mute: true}, "qmclone waits for its lock")
	add(crashCase{op: crashCreate, call: &clone, mute: true, alone: true}, "qmclone waits for its lock, not repeated")
	add(crashCase{op: crashCreate, call: &clone, mute: true, lost: true}, "qmclone waits for its lock, journal lost")
	early := crashCall{method: clone.method, path: clone.path, told: true}
	add(crashCase{op: crashCreate, call: &early, late: true}, "PVE clones only when it is asked again")
	for op, at := range map[string][]string{
		crashCreate: {"begin claim", "begin snippets", "begin clone", "task clone", "task grow", "begin configure", "end configure"},
		crashDelete: {"begin destroy", "begin forget"}, crashOn: {"begin on", "task on"}, crashOff: {"begin off", "task off"},
	} {
		for _, write := range at {
			p := crashPoint{Write: crashWrite(t, writes[op], write), After: true}
			add(crashCase{op: op, kills: []crashPoint{p}, dark: 3}, "%s, API closed", p.text(writes[op]))
			add(crashCase{op: op, kills: []crashPoint{p}, blind: true, alone: true}, "%s, pmxcfs late, not repeated", p.text(writes[op]))
		}
	}
	claimed := crashWrite(t, writes[crashCreate], "end claim")
	for _, p := range crashMoments(writes[crashCreate]) {
		if p.Write >= claimed {
			add(crashCase{op: crashCreate, kills: []crashPoint{p}, lost: true, alone: true, aged: true}, "%s, journal lost, settled later", p.text(writes[crashCreate]))
		}
	}
	add(crashCase{op: crashCreate, call: &clone, hold: "qmclone", lost: true, alone: true, aged: true}, "told the id, qmclone slow, journal lost, settled later")
	torn := crashPoint{Write: claimed - 1}
	add(crashCase{op: crashCreate, kills: []crashPoint{torn}, torn: true}, "while the record is written")
	add(crashCase{op: crashCreate, kills: []crashPoint{torn}, torn: true, lost: true}, "while the record is written, journal lost")

	undo := writes["undo"]
	for _, p := range crashMoments(undo) {
		if p.Write < crashWrite(t, undo, "begin undo")-1 {
			continue
		}
		add(crashCase{op: crashCreate, kills: []crashPoint{p}, broken: true}, "refused, %s", p.text(undo))
		add(crashCase{op: crashCreate, kills: []crashPoint{p}, broken: true, alone: true}, "refused, %s, not repeated", p.text(undo))
		add(crashCase{op: crashCreate, kills: []crashPoint{p}, broken: true, lost: true}, "refused, %s, journal lost", p.text(undo))
	}
	add(crashCase{op: crashCreate, kills: []crashPoint{{Write: 1, After: true}}, every: crashPoint{Write: 2, After: true}, broken: true, alone: true}, "refused, after every second write, not repeated")
	for _, answered := range []bool{false, true} {
		destroy := crashCall{method: http.MethodDelete, path: "/nodes/*/qemu/*", answered: answered}
		add(crashCase{op: crashCreate, call: &destroy, broken: true}, "refused, destroy called, answered: %v", answered)
		add(crashCase{op: crashCreate, call: &destroy, broken: true, hold: "qmdestroy"}, "refused, destroy called, answered: %v, qmdestroy slow", answered)
	}
	return table
}

// crashEach returns every nth row.
func crashEach(table []crashCase, n int) []crashCase {
	var some []crashCase
	for i := 0; i < len(table); i += n {
		some = append(some, table[i])
	}
	return some
}

// crashReal are the rows that real VMs go through: enough to see that they behave as the others.
func crashReal(table []crashCase) []crashCase {
	var some, simple []crashCase
	for _, c := range table {
		if (c.op == crashCreate || c.op == crashDelete) && c.call == nil && !c.alone && !c.lost && !c.broken && c.every.Write == 0 && len(c.kills) == 1 && c.hold == "" {
			simple = append(simple, c)
		}
	}
	for i := range simple {
		if side := i / 2 % 2; i%2 == side { // before the first write, after the second, ...
			some = append(some, simple[i])
		}
	}
	return some
}
