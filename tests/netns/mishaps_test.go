//go:build netns || soak

package netns

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// mishaps makes up a story with that many faults: a seed gives the same one each time. Work goes on in the background
// while something is out of order, and is waited for when everything is repaired.
func mishaps(seed uint64, nodes []string, faults int) string {
	m := &maker{
		dice: rand.New(rand.NewPCG(seed, 2)), nodes: nodes, busy: map[string]bool{}, gone: map[string]bool{}, //nolint:gosec // a story that can be told again
	}
	m.say("wait 5s")
	for m.faults < faults {
		m.disturb()
		for range 1 + m.dice.IntN(2) {
			m.work()
		}
		m.say("wait %dms", 100+m.dice.IntN(1400))
		if len(m.undo) >= manyUndo || len(m.jobs) >= manyJobs {
			m.repair()
		}
	}
	m.repair()
	m.say("settle")
	m.say("vms")
	m.say("check")
	return strings.Join(m.lines, "\n") + "\n"
}

// How many steps in the background are begun, and how much is out of order, before everything is repaired and waited for.
const (
	manyJobs = 7
	manyUndo = 3
)

// maker is a story as far as it is made up.
type maker struct {
	dice   *rand.Rand
	nodes  []string
	lines  []string
	faults int

	names []string
	busy  map[string]bool // names that something works on
	gone  map[string]bool // names that were deleted last
	jobs  []string        // in the background
	down  []string        // nodes whose agents do not run
	undo  []string        // lines that repair what is out of order
}

func (m *maker) say(format string, args ...any) {
	m.lines = append(m.lines, fmt.Sprintf(format, args...))
}

func (m *maker) some(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[m.dice.IntN(len(list))]
}

// shuffled are the nodes in some order.
func (m *maker) shuffled() []string {
	list := slices.Clone(m.nodes)
	m.dice.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// idle is a VM that nothing works on, "" if there is none.
func (m *maker) idle() string {
	return m.some(slices.DeleteFunc(slices.Clone(m.names), func(n string) bool { return m.busy[n] || m.gone[n] }))
}

// disturb adds a fault that needs to be repaired, or a migration.
func (m *maker) disturb() {
	n := m.shuffled()
	switch p := m.dice.IntN(100); {
	case p < 30:
		m.kill(n[0])
	case p < 40:
		m.powerFails(n[0])
	case p < 50:
		m.fault("heal", "partition %s|%s,%s", n[0], n[1], n[2])
	case p < 60:
		m.fault("heal", "cut %s>%s", n[0], n[1])
	case p < 65:
		m.fault("heal", "cut-agents %s %s", n[0], n[1])
	case p < 80:
		m.fault(fmt.Sprintf("lose %s %s 0%%", n[0], n[1]), "lose %s %s 20%%", n[0], n[1])
	case p < 85:
		m.fault(fmt.Sprintf("gossip heal %s %s", n[0], n[1]), "gossip cut %s %s", n[0], n[1])
	default:
		// Not while something is cut: PVE would leave the VM locked, for an operator to look at.
		if name := m.idle(); name != "" && len(m.undo) == 0 {
			m.fault("", "migrate %s %s", name, n[0])
		}
	}
}

// fault adds a line that is one, and remembers the line that repairs it.
func (m *maker) fault(undo, format string, args ...any) {
	m.say(format, args...)
	m.faults++
	if undo != "" && !slices.Contains(m.undo, undo) {
		m.undo = append(m.undo, undo)
	}
}

// kill is kill -9 of an agent, one at a time. Every other one comes back at once.
func (m *maker) kill(node string) {
	if len(m.down) > 0 {
		return
	}
	again := "start agent " + node
	if m.dice.IntN(2) == 0 {
		m.fault("", "kill agent %s", node)
		m.say("%s", again)
		return
	}
	m.down = append(m.down, node)
	m.fault(again, "kill agent %s", node)
}

func (m *maker) powerFails(node string) {
	if len(m.down) > 0 {
		return
	}
	m.down = append(m.down, node)
	// It takes 3 s until the others take it in.
	m.fault(fmt.Sprintf("node %s on\nstart agent %s\nwait 4s", node, node), "node %s off", node)
}

// repair makes everything right and waits for the work.
func (m *maker) repair() {
	m.lines = append(m.lines, m.undo...)
	for _, job := range m.jobs {
		m.say("await %s", job)
	}
	m.undo, m.down, m.jobs = nil, nil, nil
	clear(m.busy)
}

// work begins a step in the background that several nodes are asked for, one after the other or all at once.
func (m *maker) work() {
	name := m.idle()
	if name == "" || m.dice.IntN(5) < 2 {
		m.create()
		return
	}
	switch m.dice.IntN(6) {
	case 0:
		m.say("switch-on %s %s", name, m.some(m.nodes))
	case 1:
		m.begin(name, "off "+name)
	case 2:
		m.begin(name, "create "+name) // which exists
	case 3, 4:
		m.gone[name] = true
		m.begin(name, "delete "+name)
	default:
		m.gone[name] = true
		m.begin(name, "duplicate delete "+name)
		m.faults += 2
	}
	if m.dice.IntN(2) == 0 {
		m.say("describe %s via %s deadline 5s", name, m.some(m.nodes))
	}
}

// create creates a VM, now and then with the name of one that was deleted.
func (m *maker) create() {
	name := m.some(slices.DeleteFunc(slices.Clone(m.names), func(n string) bool { return m.busy[n] || !m.gone[n] }))
	if name == "" || m.dice.IntN(3) > 0 {
		name = fmt.Sprintf("web-%d", len(m.names)+1)
		m.names = append(m.names, name)
	}
	delete(m.gone, name)
	switch p := m.dice.IntN(6); {
	case p == 0:
		m.faults += 2
		m.begin(name, "duplicate create "+name)
	case p == 1 && len(m.undo) == 0: // it repeats for minutes what is refused
		m.faults++
		m.begin(name, "race "+name)
	default:
		m.begin(name, "create "+name)
	}
}

func (m *maker) begin(name, line string) {
	on, retry := "", "90s"
	if strings.HasPrefix(line, "duplicate create") {
		retry = "30s" // one that comes late is refused for a minute: the other has got the VM
	}
	if strings.Contains(line, "create") || strings.Contains(line, "race") {
		on = " on " + m.some(m.nodes)
	}
	job := fmt.Sprintf("j%d", len(m.lines))
	m.say("%s via %s%s retry %s deadline 10s in background as %s", line, strings.Join(m.shuffled(), ","), on, retry, job)
	m.jobs, m.busy[name] = append(m.jobs, job), true
}
