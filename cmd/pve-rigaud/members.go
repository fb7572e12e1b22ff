package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// The states of a member; docs/cli.md says what each means.
const (
	stateUp           = "up"
	stateOffline      = "offline"
	stateNoAgent      = "no-agent"
	stateAgentDown    = "agent-down"
	stateIncompatible = "incompatible"
	stateNoLink       = "no-link"
	stateNoCorosync   = "no-corosync"
	stateNotInPVE     = "not-in-pve"
)

// membersObject is the JSON answer of `pve-rigaud members`. Every key is always there; null is what is not known.
type membersObject struct {
	view
	Members []memberObject `json:"members"` // by name
}

type memberObject struct {
	Name     string          `json:"name"`
	State    string          `json:"state"`
	Self     bool            `json:"self"` // the node that answered
	PVE      *pveObject      `json:"pve"`  // null: not in .members
	Agent    *agentObject    `json:"agent"`
	Link     *linkObject     `json:"link"`
	Capacity *capacityObject `json:"capacity"`
}

type pveObject struct {
	Online bool   `json:"online"`
	IP     string `json:"ip"`
}

type agentObject struct {
	Address      string  `json:"address"`
	Version      string  `json:"version"`
	ProtocolMin  uint32  `json:"protocol_min"`
	ProtocolMax  uint32  `json:"protocol_max"`
	Compatible   bool    `json:"compatible"`
	Alive        bool    `json:"alive"`
	SinceSeconds float64 `json:"since_seconds"` // how long alive has been so
}

type linkObject struct {
	Up          bool    `json:"up"`
	DownSeconds float64 `json:"down_seconds"`
	LastError   string  `json:"last_error"`
}

type capacityObject struct {
	AgeSeconds            float64 `json:"age_seconds"`
	MemoryTotalBytes      uint64  `json:"memory_total_bytes"`
	MemoryFreeBytes       uint64  `json:"memory_free_bytes"`
	MemoryPromisedBytes   uint64  `json:"memory_promised_bytes"`
	CPUs                  uint32  `json:"cpus"`
	VCPUsPromised         uint32  `json:"vcpus_promised"`
	Load                  float64 `json:"load"`
	PressureCPUPercent    float64 `json:"pressure_cpu_percent"`
	PressureMemoryPercent float64 `json:"pressure_memory_percent"`
	PressureIOPercent     float64 `json:"pressure_io_percent"`
	Cordoned              bool    `json:"cordoned"`
	Draining              bool    `json:"draining"`
	Quorate               bool    `json:"quorate"`
}

func askMembers(ctx context.Context, client nodepb.NodeClient, _ *question) (any, func(io.Writer) error, error) {
	resp, err := client.Members(ctx, &nodepb.MembersRequest{})
	if err != nil {
		return nil, nil, err
	}
	return membersOf(resp), membersTable(resp).write, nil
}

func membersOf(resp *nodepb.MembersResponse) membersObject {
	out := membersObject{view: viewOf(resp.GetView()), Members: []memberObject{}}
	for _, m := range resp.GetMembers() {
		o := memberObject{Name: m.GetName(), State: memberState(resp.GetView(), m), Self: m.GetSelf(), Capacity: capacityOf(m.GetCapacity())}
		if p := m.GetPve(); p != nil {
			o.PVE = &pveObject{Online: p.GetOnline(), IP: p.GetIp()}
		}
		if a := m.GetAgent(); a != nil {
			o.Agent = &agentObject{
				Address: a.GetAddress(), Version: a.GetVersion(), ProtocolMin: a.GetProtocolMin(), ProtocolMax: a.GetProtocolMax(),
				Compatible: a.GetCompatible(), Alive: a.GetAlive(), SinceSeconds: seconds(a.GetSinceMs()),
			}
		}
		if l := m.GetLink(); l != nil {
			o.Link = &linkObject{Up: l.GetUp(), DownSeconds: seconds(l.GetDownMs()), LastError: l.GetLastError()}
		}
		out.Members = append(out.Members, o)
	}
	return out
}

func capacityOf(c *nodepb.Capacity) *capacityObject {
	if c == nil {
		return nil
	}
	return &capacityObject{
		AgeSeconds:       seconds(c.GetAgeMs()),
		MemoryTotalBytes: c.GetMemoryTotal(), MemoryFreeBytes: c.GetMemoryFree(), MemoryPromisedBytes: c.GetMemoryPromised(),
		CPUs: c.GetCpus(), VCPUsPromised: c.GetVcpusPromised(), Load: c.GetLoad(),
		PressureCPUPercent: c.GetPressureCpu(), PressureMemoryPercent: c.GetPressureMemory(), PressureIOPercent: c.GetPressureIo(),
		Cordoned: c.GetCordoned(), Draining: c.GetDraining(), Quorate: c.GetQuorate(),
	}
}

// memberState is a node's state in one word: the first trouble that there is, the most basic first.
func memberState(v *nodepb.View, m *nodepb.Member) string {
	pve, agent := m.GetPve(), m.GetAgent()
	offline := pve != nil && !pve.GetOnline()
	switch {
	case agent.GetAlive() || m.GetSelf():
		return reachedState(v, m, offline)
	case offline:
		return stateOffline
	case agent == nil:
		return stateNoAgent
	}
	return stateAgentDown
}

// reachedState is the state of a node whose agent is heard of.
func reachedState(v *nodepb.View, m *nodepb.Member, offline bool) string {
	agent, link := m.GetAgent(), m.GetLink()
	switch {
	case agent != nil && !agent.GetCompatible():
		return stateIncompatible
	case m.GetPve() == nil && v.GetReadAtUnixMs() != 0:
		return stateNotInPVE
	case offline:
		return stateNoCorosync
	case link != nil && !link.GetUp():
		return stateNoLink
	}
	return stateUp
}

func membersTable(resp *nodepb.MembersResponse) *table {
	t := newTable("NODE", "STATE", "SINCE", "ADDRESS", "VERSION", "GIB FREE/TOTAL/PROMISED", "VCPUS/CPUS", "LOAD", "AGE", "NOTE")
	t.remark("stale", resp.GetView().GetStale())
	for _, m := range resp.GetMembers() {
		name, since, address := m.GetName(), "", m.GetPve().GetIp()
		if m.GetSelf() {
			name += "*"
		}
		if a := m.GetAgent(); a != nil {
			since, address = span(a.GetSinceMs()), a.GetAddress()
		}
		memory, cpus, load, age := "", "", "", ""
		if c := m.GetCapacity(); c != nil {
			memory = gib(c.GetMemoryFree()) + "/" + gib(c.GetMemoryTotal()) + "/" + gib(c.GetMemoryPromised())
			cpus = fmt.Sprintf("%d/%d", c.GetVcpusPromised(), c.GetCpus())
			load, age = fmt.Sprintf("%.2f", c.GetLoad()), span(c.GetAgeMs())
		}
		t.add(name, memberState(resp.GetView(), m), since, address, m.GetAgent().GetVersion(), memory, cpus, load, age, memberNote(m))
	}
	return t
}

// memberNote is what else there is to know of a node.
func memberNote(m *nodepb.Member) string {
	var notes []string
	if m.GetCapacity().GetCordoned() {
		notes = append(notes, "cordoned")
	}
	if m.GetCapacity().GetDraining() {
		notes = append(notes, "draining")
	}
	if m.GetCapacity() != nil && !m.GetCapacity().GetQuorate() {
		notes = append(notes, "no quorum there")
	}
	if l := m.GetLink(); l != nil && !l.GetUp() {
		notes = append(notes, strings.TrimSuffix(fmt.Sprintf("link down %s: %s", span(l.GetDownMs()), l.GetLastError()), ": "))
	}
	return strings.Join(notes, ", ")
}
