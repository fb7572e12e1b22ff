//go:build netns || soak

package netns

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const (
	mib        = 1 << 20
	burstVMs   = 200
	burstSize  = 256 * mib  // of each VM
	reserve    = 1024 * mib // of each node, by default
	inFlight   = 20         // requests that a manager has under way with one agent
	burstClass = `{"CPU":1,"MemoryMiB":256}`
	golden     = "golden" // a template that every node has
	shared     = "linux-template-shared"
)

// burst is a cluster of three equal nodes whose agents are asked for many VMs at once.
type burst struct {
	*testing.T
	w      *World
	memory int64 // of each node, bytes
}

func newBurst(t *testing.T, memory int64) *burst {
	t.Helper()
	b := &burst{T: t, memory: memory, w: newWorld(t, func(c *pvesim.Config) {
		c.Memory, c.CPUs, c.TaskDelay = memory, 64, 20*time.Millisecond
	})}
	for _, n := range b.w.sim.Nodes() {
		if err := b.w.sim.AddVM(9200+n.Index, n.Name, map[string]string{"template": "1", "name": golden}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range b.w.sim.Nodes() {
		b.knowsAll(n)
	}
	return b
}

// knowsAll waits until the agent of a node takes every node for one that can have a VM.
func (b *burst) knowsAll(n *pvesim.Node) {
	b.Helper()
	conn, err := grpc.NewClient("unix:"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for end := time.Now().Add(20 * time.Second); ; {
		resp, err := nodepb.NewNodeClient(conn).Place(b.Context(), &nodepb.PlaceRequest{Name: "web", Image: golden, Memory: burstSize, Cpus: 1})
		fit := 0
		for _, row := range resp.GetPlacement().GetRows() {
			if row.GetFits() {
				fit++
			}
		}
		if fit == len(b.w.Nodes()) {
			return
		}
		if time.Now().After(end) {
			b.Fatalf("the agent of %s does not know all nodes: %v, %v", n.Name, resp, err)
		}
		_ = b.w.Wait(b.Context(), 50*time.Millisecond)
	}
}

// answer is how the making of a VM ended.
type answer struct {
	id  string
	err error // of Create, or the task's
}

// create asks for VMs all at once, each through the next agent, and returns when all are made or refused.
func (b *burst) create(template string, names ...string) map[string]answer {
	b.Helper()
	clients := map[string]providerpb.ProviderClient{}
	for _, node := range b.w.Nodes() {
		client, hangUp, err := b.w.Dial(node)
		if err != nil {
			b.Fatal(err)
		}
		defer func() { _ = hangUp() }()
		clients[node] = client
	}
	var (
		group   sync.WaitGroup
		mu      sync.Mutex // guards answers
		answers = map[string]answer{}
	)
	for i, node := range b.w.Nodes() {
		queue := make(chan string, len(names))
		for k := i; k < len(names); k += len(b.w.Nodes()) {
			queue <- names[k]
		}
		close(queue)
		for range inFlight {
			group.Go(func() {
				for name := range queue {
					a := b.one(clients[node], template, name)
					mu.Lock()
					answers[name] = a
					mu.Unlock()
				}
			})
		}
	}
	group.Wait()
	return answers
}

// one makes a VM as a manager does.
func (b *burst) one(client providerpb.ProviderClient, template, name string) answer {
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	c, err := client.Create(ctx, &providerpb.CreateRequest{
		Name: name, ClassJson: burstClass, ImageJson: `{"TemplateName":"` + template + `","Format":"template"}`, NetworksJson: "null", DisksJson: "null",
	})
	for err == nil && c.GetTask().GetId() != "" {
		var st *providerpb.TaskStatusResponse
		if st, err = client.TaskStatus(ctx, &providerpb.TaskStatusRequest{Task: c.GetTask()}); err == nil && st.GetError() != "" {
			err = fmt.Errorf("task %s: %s", c.GetTask().GetId(), st.GetError())
		}
		if st.GetDone() {
			break
		}
		_ = b.w.Wait(ctx, 50*time.Millisecond) // the call says that the time is over
	}
	return answer{c.GetId(), err}
}

// made counts the VMs of each node by their files, and checks what the answers say of them.
func (b *burst) made(answers map[string]answer) map[string]int {
	b.Helper()
	vms, err := b.w.sim.VMs()
	if err != nil {
		b.Fatal(err)
	}
	names, nodes := map[string]int{}, map[string]int{}
	for _, node := range b.w.Nodes() {
		nodes[node] = 0
	}
	for _, v := range vms {
		if v.Template {
			continue
		}
		names[v.Name]++
		nodes[v.Node]++
		if id := answers[v.Name].id; v.Lock != "" || !strings.HasPrefix(id, fmt.Sprintf("%d-", v.ID)) {
			b.Errorf("VM %d (%s) on %s, locked %q; the answer was %q", v.ID, v.Name, v.Node, v.Lock, id)
		}
	}
	for name, a := range answers {
		if want := map[bool]int{true: 1}[a.err == nil]; names[name] != want {
			b.Errorf("%s: %d VMs, the answer was %q, %v", name, names[name], a.id, a.err)
		}
	}
	for node, n := range nodes {
		if int64(n)*burstSize > b.memory-reserve {
			b.Errorf("%s has %d VMs of %d MiB, and %d MiB for them", node, n, burstSize/mib, (b.memory-reserve)/mib)
		}
	}
	return nodes
}

// even checks that the most loaded node has at most 15 % more than the least.
func (b *burst) even(nodes map[string]int) {
	b.Helper()
	counts := slices.Sorted(maps.Values(nodes))
	if least, most := counts[0], counts[len(counts)-1]; float64(most) > 1.15*float64(least) {
		b.Errorf("%d VMs on one node, %d on another: %v", most, least, nodes)
	}
}

func numbered(prefix string, n int) []string {
	names := make([]string, 0, n)
	for i := range n {
		names = append(names, fmt.Sprintf("%s-%03d", prefix, i))
	}
	return names
}

// TestBurst: many VMs at once, through three agents that hear of one another only a second later, are spread evenly.
func TestBurst(t *testing.T) {
	needWorlds(t)
	t.Parallel()
	for _, template := range []string{golden, shared} {
		t.Run(template, func(t *testing.T) {
			t.Parallel()
			b := newBurst(t, 64<<30)
			begin := time.Now()
			answers := b.create(template, numbered("web", burstVMs)...)
			took := time.Since(begin)
			for name, a := range answers {
				if a.err != nil {
					t.Errorf("%s: %v", name, a.err)
				}
			}
			nodes := b.made(answers)
			b.even(nodes)
			t.Logf("%d VMs in %s: %v", len(answers), took.Round(time.Millisecond), nodes)
		})
	}
}

// TestBurstBeyondRoom: of more VMs than there is memory for, exactly those are refused that do not fit.
func TestBurstBeyondRoom(t *testing.T) {
	needWorlds(t)
	t.Parallel()
	const fit = 150
	b := newBurst(t, reserve+fit/3*burstSize+burstSize/2)
	begin := time.Now()
	answers := b.create(golden, numbered("web", burstVMs)...)
	took := time.Since(begin)
	var ids, refused []string
	for name, a := range answers {
		if a.err == nil {
			ids = append(ids, a.id)
			continue
		}
		refused = append(refused, name)
		if text := status.Convert(a.err).Message(); status.Code(a.err) != codes.ResourceExhausted || !strings.Contains(text, "no node fits") || !strings.Contains(text, "memory (needs ") {
			t.Errorf("%s: %v", name, a.err)
		}
	}
	if len(ids) != fit {
		t.Errorf("%d VMs are made, there is memory for %d", len(ids), fit)
	}
	t.Logf("%d VMs, %d refused in %s: %v", len(ids), len(refused), took.Round(time.Millisecond), b.made(answers))
	if t.Failed() {
		return
	}
	const freed = 15
	for name, a := range b.delete(answers, freed) {
		if a.err != nil {
			t.Errorf("delete %s: %v", name, a.err)
		}
	}
	begin = time.Now()
	b.repeat(answers, refused[:freed])
	t.Logf("%d of the refused have the room of %d that were deleted after %s: %v", freed, freed, time.Since(begin).Round(time.Millisecond), b.made(answers))
}

// delete deletes some of the VMs that are made, and takes them out of the answers.
func (b *burst) delete(answers map[string]answer, some int) map[string]answer {
	b.Helper()
	client, hangUp, err := b.w.Dial("pve1")
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = hangUp() }()
	gone := map[string]answer{}
	for _, name := range slices.Sorted(maps.Keys(answers)) {
		if answers[name].err != nil || len(gone) == some {
			continue
		}
		_, err := client.Delete(b.Context(), &providerpb.DeleteRequest{Id: answers[name].id})
		gone[name] = answer{answers[name].id, err}
		delete(answers, name)
	}
	return gone
}

// repeat asks for VMs again, as a manager does, until all are made.
func (b *burst) repeat(answers map[string]answer, names []string) {
	b.Helper()
	for end := time.Now().Add(45 * time.Second); len(names) > 0; {
		var left []string
		for name, a := range b.create(golden, names...) {
			if answers[name] = a; a.err != nil {
				left = append(left, name)
			}
		}
		if names = left; len(left) > 0 && time.Now().After(end) {
			b.Fatalf("there is room for %s: %v", left[0], answers[left[0]].err)
		}
		_ = b.w.Wait(b.Context(), 200*time.Millisecond)
	}
}
