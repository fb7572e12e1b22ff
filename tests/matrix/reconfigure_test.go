package matrix

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// running is what the VMs are made with that are changed: 2 vCPUs and 2 GiB, with room for more.
const running = `{"CPU":2,"MemoryMiB":2048,"PerformanceProfile":{"CPUHotAddEnabled":true,"MemoryHotAddEnabled":true}}`

// TestReconfigure changes a VM that runs, a new one for each question.
func TestReconfigure(t *testing.T) {
	t.Parallel()
	f := read(t, "reconfigure")
	answers := map[string][][]string{}
	all := versions(t)
	for _, v := range all {
		l := newLab(t, v)
		for _, q := range f.questions {
			answers[v] = append(answers[v], l.change(q))
		}
	}
	f.compare(t, all, answers)
}

// change makes a VM, starts it, asks for a change, and tells the calls and what is different afterwards.
func (l *lab) change(q question) []string {
	l.Helper()
	c, err := l.agent.Provider.Create(l.ctx, &providerpb.CreateRequest{
		Name: "vm", ClassJson: running, ImageJson: `{"TemplateName":"9000"}`, NetworksJson: "null", DisksJson: `[{"Name":"data","SizeGiB":2}]`, Tags: []string{"web"},
	})
	l.must(err)
	defer l.delete(c.GetId())
	_, err = l.agent.Provider.Power(l.ctx, &providerpb.PowerRequest{Id: c.GetId(), Op: providerpb.PowerOp_POWER_OP_ON})
	l.must(err)
	before := l.state(c.GetId())
	l.seen.take()
	l.said.take()
	_, err = l.agent.Provider.Reconfigure(l.ctx, &providerpb.ReconfigureRequest{Id: c.GetId(), DesiredJson: l.desired(q)})
	answer := append(against(nil, l.seen.take()), l.said.take()...)
	if err != nil {
		return append(answer, failure(err)...)
	}
	after := l.state(c.GetId())
	keys := slices.Collect(maps.Keys(before))
	for k := range after {
		if _, was := before[k]; !was {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if before[k] != after[k] {
			answer = append(answer, steady(fmt.Sprintf("%s: %s -> %s", k, before[k], after[k])))
		}
	}
	return answer
}

// desired is the wish behind a Reconfigure, as the manager sends it: everything of the VM.
func (l *lab) desired(q question) string {
	desired := `{"Name":"vm","Class":` + running + `,"Image":{"TemplateName":"9000"},"Networks":null,"Disks":[{"Name":"data","SizeGiB":2}],"UserData":null,"MetaData":null,"Placement":null,"Tags":["web"]}`
	for _, p := range q.parts {
		if p.name != "desired" {
			l.Fatalf("%s: no part of a Reconfigure is called %q", q.title, p.name)
		}
		desired = merged(l.T, desired, p.value)
	}
	return desired
}

// state is what can be seen of a VM: its config, what waits there for the next start, and what QEMU has.
func (l *lab) state(id string) map[string]string {
	l.Helper()
	number, _, _ := strings.Cut(id, "-")
	vmid, err := strconv.Atoi(number)
	l.must(err)
	conf, err := l.rig.Sim.Config(vmid)
	l.must(err)
	state := map[string]string{}
	for k, v := range conf {
		state["config "+k] = v
	}
	raw, err := l.rig.Sim.Pending(vmid)
	l.must(err)
	for k, v := range raw {
		state["pending "+k] = v
	}
	if q, ok := l.rig.Sim.QEMU(vmid); ok {
		state["QEMU vCPUs"] = fmt.Sprint(q.VCPUs())
		state["QEMU balloon"] = fmt.Sprintf("%d MiB", q.Balloon()>>20)
	}
	return state
}
