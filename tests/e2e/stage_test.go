package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/pmxfuse"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// template is the number of the template that most VMs here are made from.
const template = pvesim.TemplateID

// stage is a cluster with an agent on its first node.
type stage struct {
	*testing.T
	rig   *rig.Rig
	sim   *pvesim.Cluster
	agent *rig.Agent
	ctx   context.Context //nolint:containedctx // of the test
	marks int             // see set

	patience time.Duration // how long to wait for something that has to happen
}

// setting changes what start makes.
type setting struct {
	sim     func(*pvesim.Config)
	limit   time.Duration // of all that the test does; 0 is 4 minutes
	flags   []string      // of the agent
	options []agent.Option
	scene   func(*stage) // what there is before the first agent starts
}

// fuse mounts /etc/pve as a node does: without quorum nothing can be written.
var fuse = setting{sim: func(c *pvesim.Config) { c.PMXCFS = pvesim.FUSE }}

// start starts a cluster of one node without VMs, and its agent. Everything is quick; nothing is timed.
func start(t *testing.T, settings ...setting) *stage {
	t.Helper()
	s := raise(t, settings...)
	s.startAgent(settings...)
	return s
}

// raise is start without the agent.
func raise(t *testing.T, settings ...setting) *stage {
	t.Helper()
	cfg := rig.Config{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Sim: pvesim.Config{
		Nodes: 1, QEMU: pvesim.Fake, AuthDelay: -1, AgentWait: 200 * time.Millisecond, PollUnit: 20 * time.Millisecond,
		HADelay: time.Millisecond, Scan: 20 * time.Millisecond, LockTimeout: 300 * time.Millisecond,
	}}
	limit := 4 * time.Minute
	for _, x := range settings {
		limit = max(limit, x.limit)
		if x.sim != nil {
			x.sim(&cfg.Sim)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	r, err := rig.Start(ctx, cfg)
	if missing, ok := errors.AsType[*pmxfuse.MissingError](err); ok {
		t.Skipf("skipped: %v", missing)
	}
	if missing, ok := errors.AsType[*disk.MissingError](err); ok {
		t.Skipf("skipped: %v", missing)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, e := range r.Sim.SchemaErrors() {
			t.Errorf("a request that PVE's schema does not allow: %s", e)
		}
	})
	return &stage{T: t, rig: r, sim: r.Sim, ctx: ctx, patience: 30 * time.Second}
}

func (s *stage) startAgent(settings ...setting) {
	s.Helper()
	s.agent = s.startAgentOn("pve1", settings...)
}

func (s *stage) startAgentOn(node string, settings ...setting) *rig.Agent {
	s.Helper()
	flags := []string{"--watch=100ms"}
	var options []agent.Option
	for _, x := range settings {
		flags = append(flags, x.flags...)
		options = append(options, x.options...)
	}
	a, err := s.rig.StartAgent(s.ctx, node, flags, options...)
	if err != nil {
		s.Fatal(err)
	}
	return a
}

// stop stops the agent as SIGTERM does.
func (s *stage) stop() {
	s.Helper()
	if err := s.agent.Stop(); err != nil {
		s.Fatalf("stop the agent: %v", err)
	}
}

// within returns the stage for a subtest.
func (s *stage) within(t *testing.T) *stage {
	c := *s
	c.T = t
	return &c
}

// eventually waits until a condition holds.
func (s *stage) eventually(what string, holds func() bool) {
	s.Helper()
	deadline := time.After(s.patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			s.Fatalf("did not come about: %s", what)
		}
	}
}

// refused checks that err has a code and names things.
func refused(t testing.TB, err error, code codes.Code, names ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Errorf("code %s, want %s: %v", status.Code(err), code, err)
		return
	}
	for _, n := range names {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("the message does not say %q: %v", n, err)
		}
	}
}

// request is what the manager sends for a small VM.
func request(name string, change ...func(*providerpb.CreateRequest)) *providerpb.CreateRequest {
	r := &providerpb.CreateRequest{
		Name: name, ClassJson: payloads.MinimalClass, ImageJson: payloads.Image, NetworksJson: payloads.NoNetworks, DisksJson: payloads.NoDisks,
	}
	for _, f := range change {
		f(r)
	}
	return r
}

// from makes a request's image one that names a template.
func from(template string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) {
		r.ImageJson = `{"TemplateName":"` + template + `","Format":"template"}`
	}
}

// placed limits a request to a node, or a group of nodes.
func placed(node string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) { r.PlacementJson = `{"Cluster":"` + node + `"}` }
}

// class gives a request a class.
func class(json string) func(*providerpb.CreateRequest) {
	return func(r *providerpb.CreateRequest) { r.ClassJson = json }
}

// create makes a VM, waits for it and returns its id.
func (s *stage) create(r *providerpb.CreateRequest) string {
	s.Helper()
	c, err := s.agent.Provider.Create(s.ctx, r)
	if err != nil {
		s.Fatalf("create %s: %v", r.GetName(), err)
	}
	if failure := s.outcome(c.GetTask()); failure != "" {
		s.Fatalf("create %s: %s", r.GetName(), failure)
	}
	return c.GetId()
}

// tryCreate makes a VM and returns how that ended, whether the RPC says it or the task.
func (s *stage) tryCreate(r *providerpb.CreateRequest) error {
	s.Helper()
	c, err := s.agent.Provider.Create(s.ctx, r)
	if err == nil && c.GetTask().GetId() != "" {
		s.Errorf("create %s: took longer than the sync wait, its outcome would be a text without a code", r.GetName())
	}
	return err
}

// outcome waits for a task and returns its error text. No task has ended well.
func (s *stage) outcome(task *providerpb.TaskRef) (failure string) {
	s.Helper()
	if task.GetId() == "" {
		return ""
	}
	s.eventually("the end of "+task.GetId(), func() bool {
		st := s.poll(task)
		failure = st.GetError()
		return st.GetDone()
	})
	return failure
}

func (s *stage) poll(task *providerpb.TaskRef) *providerpb.TaskStatusResponse {
	s.Helper()
	st, err := s.agent.Provider.TaskStatus(s.ctx, &providerpb.TaskStatusRequest{Task: task})
	if err != nil {
		s.Fatalf("poll %s: %v", task.GetId(), err)
	}
	return st
}

func (s *stage) describe(id string) (*providerpb.DescribeResponse, error) {
	return s.agent.Provider.Describe(s.ctx, &providerpb.DescribeRequest{Id: id})
}

// described is describe for a VM that is there.
func (s *stage) described(id string) *providerpb.DescribeResponse {
	s.Helper()
	d, err := s.describe(id)
	if err != nil {
		s.Fatalf("describe %s: %v", id, err)
	}
	if !d.GetExists() {
		s.Fatalf("describe %s: does not exist", id)
	}
	return d
}

// raw decodes provider_raw_json, which has to hold strings alone.
func (s *stage) raw(d *providerpb.DescribeResponse) map[string]string {
	s.Helper()
	var m map[string]string
	if err := json.Unmarshal([]byte(d.GetProviderRawJson()), &m); err != nil {
		s.Fatalf("provider_raw_json %s: %v", d.GetProviderRawJson(), err)
	}
	return m
}

func (s *stage) delete(id string) error {
	s.Helper()
	t, err := s.agent.Provider.Delete(s.ctx, &providerpb.DeleteRequest{Id: id})
	if err == nil && t.GetTask().GetId() != "" {
		s.Errorf("delete %s: answered with a task, which the manager ignores", id)
	}
	return err
}

func (s *stage) power(id string, op providerpb.PowerOp) error {
	s.Helper()
	t, err := s.agent.Provider.Power(s.ctx, &providerpb.PowerRequest{Id: id, Op: op, GracefulTimeoutSeconds: 60})
	if err != nil {
		return err
	}
	if failure := s.outcome(t.GetTask()); failure != "" {
		return status.Error(codes.Unknown, failure)
	}
	return nil
}

const (
	powerOn  = providerpb.PowerOp_POWER_OP_ON
	powerOff = providerpb.PowerOp_POWER_OP_OFF
	reboot   = providerpb.PowerOp_POWER_OP_REBOOT
	graceful = providerpb.PowerOp_POWER_OP_SHUTDOWN_GRACEFUL
)

// on and off change a VM's power and check it.
func (s *stage) on(id string) {
	s.Helper()
	s.turn(id, powerOn, "On")
}

func (s *stage) off(id string) {
	s.Helper()
	s.turn(id, powerOff, "Off")
}

func (s *stage) turn(id string, op providerpb.PowerOp, want string) {
	s.Helper()
	if err := s.power(id, op); err != nil {
		s.Fatalf("power %s %s: %v", op, id, err)
	}
	if got := s.described(id).GetPowerState(); got != want {
		s.Fatalf("%s is %s after %s, want %s", id, got, op, want)
	}
}

// config returns the options of a VM as they stand in its file.
func (s *stage) config(id string) map[string]string {
	s.Helper()
	conf, err := s.sim.Config(vmid(s, id))
	if err != nil {
		s.Fatal(err)
	}
	return conf
}

// add adds a stopped VM that somebody else has made to the agent's node, and waits until the agent knows it.
func (s *stage) add(id int, options map[string]string) {
	s.Helper()
	s.must(s.sim.AddVM(id, "pve1", options))
	s.eventually("the agent knows the new VM", func() bool {
		d, err := s.describe(fmt.Sprint(id))
		return err == nil && d.GetExists()
	})
}

// set changes options of such a VM, or of a template, as an administrator does, and waits until the agent has seen it.
func (s *stage) set(id int, options map[string]string) {
	s.Helper()
	s.marks++
	mark := fmt.Sprintf("mark-%d", s.marks)
	options = maps.Clone(options)
	options["tags"] = mark
	s.must(s.sim.SetConfig(id, options))
	s.eventually("the agent knows the change", func() bool { return s.raw(s.described(fmt.Sprint(id)))["tags"] == mark })
}

// vmid returns the number in an id.
func vmid(t testing.TB, id string) int {
	t.Helper()
	n, _, _ := strings.Cut(id, "-")
	var v int
	if err := json.Unmarshal([]byte(n), &v); err != nil {
		t.Fatalf("id %q: %v", id, err)
	}
	return v
}

// background are the requests that the agent makes by itself: after its own health, and once a minute for what the node
// has to offer.
var background = map[string]bool{"GET /nodes": true, "GET /version": true, "GET /nodes/{node}/storage": true}

// calls counts the requests to PVE's API that are made for somebody.
func (s *stage) calls() int {
	n := 0
	for what, count := range s.sim.Requests() {
		if !background[what] {
			n += count
		}
	}
	return n
}

// silent checks that f makes no call of PVE's API.
func (s *stage) silent(what string, f func()) {
	s.Helper()
	before := s.calls()
	f()
	if n := s.calls() - before; n != 0 {
		s.Errorf("%s made %d calls of PVE: %v", what, n, s.sim.Requests())
	}
}

// watch records the requests that match from now on, as "METHOD /path?query", without touching them.
func (s *stage) watch(method, pattern string) func() []string {
	var log requestLog
	match := pvesim.Match(method, pattern)
	s.sim.Fail(func(r *http.Request) bool {
		if match(r) {
			log.add(r)
		}
		return false
	}, 0, "", -1)
	return log.all
}

// file reads a file below the cluster's directory.
func (s *stage) file(elem ...string) []byte {
	s.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{s.rig.Dir}, elem...)...))
	if err != nil {
		s.Fatal(err)
	}
	return b
}

// must ends the test when something that only prepares it goes wrong.
func (s *stage) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}
