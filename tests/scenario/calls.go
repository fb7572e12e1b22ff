package scenario

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
)

// The manager's own times.
const (
	createTimeout   = 5 * time.Minute
	changeTimeout   = 2 * time.Minute // delete, power, list
	describeTimeout = 30 * time.Second
	taskTimeout     = 10 * time.Second
	pollEvery       = 5 * time.Second
	describeEvery   = 10 * time.Second
	requeue         = 5 * time.Second
	taskPatience    = 30 * time.Minute
	hastyPatience   = 2 * time.Minute // of who has set a deadline
)

// call carries out a step that goes through agents.
func (r *Runner) call(ctx context.Context, s Step, j *job) outcome {
	switch s.Verb {
	case "create":
		return r.create(ctx, s, j)
	case "delete", "off":
		return r.change(ctx, s)
	case "describe":
		return r.describe(ctx, s)
	case "list":
		return r.list(ctx, s.Via[0])
	case "duplicate":
		return r.duplicate(ctx, s)
	case "race":
		r.fault("race")
		return r.race(ctx, s.Args[0], s)
	case "burst":
		return r.burst(ctx, s)
	case "task":
		return r.task(ctx, s)
	}
	return outcome{text: "no such call"}
}

// with makes one call of a node's agent, over a connection of its own, as somebody behind a balancer.
func with[T any](ctx context.Context, w World, node string, limit time.Duration, f func(context.Context, providerpb.ProviderClient) (T, error)) (T, error) {
	var none T
	client, hangUp, err := w.Dial(node)
	if err != nil {
		return none, err
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := f(ctx, client)
	_ = hangUp()
	return v, err
}

// patient makes a call wait for a connection, as the manager's do.
var patient = grpc.WaitForReady(true)

func failure(err error) outcome {
	s := status.Convert(err)
	if s.Code() == codes.DeadlineExceeded { // the text says which connection it waited for, or none
		return outcome{text: "error DeadlineExceeded", kind: "error DeadlineExceeded"}
	}
	return outcome{text: fmt.Sprintf("error %s: %s", s.Code(), s.Message()), kind: "error " + s.Code().String()}
}

func request(name string, s Step) *providerpb.CreateRequest {
	image := payloads.Image
	if s.On != "" {
		image = `{"TemplateName":"` + TemplateOn(s.On) + `","Format":"template"}`
	}
	rq := &providerpb.CreateRequest{
		Name: name, ClassJson: payloads.MinimalClass, ImageJson: image, NetworksJson: payloads.NoNetworks, DisksJson: payloads.NoDisks,
	}
	if s.Data {
		rq.UserData = []byte("#cloud-config\nhostname: " + name + "\n")
	}
	return rq
}

// TemplateOn is the name of the template that a world has on each node.
func TemplateOn(node string) string { return "template-" + node }

// create does what the manager does: it asks, polls the task, and with retry asks again after an error.
func (r *Runner) create(ctx context.Context, s Step, j *job) outcome {
	until := time.Now().Add(s.Retry)
	for attempt := 0; ; attempt++ {
		out := r.createOnce(ctx, s, s.Via[attempt%len(s.Via)], j)
		if out.kind == "ok" || !time.Now().Before(until) || ctx.Err() != nil {
			return out
		}
		_ = r.world.Wait(ctx, requeue) // its error is that of ctx
	}
}

func (r *Runner) createOnce(ctx context.Context, s Step, node string, j *job) outcome {
	name := s.Args[0]
	resp, err := with(ctx, r.world, node, cmp.Or(s.Limit, createTimeout), func(ctx context.Context, c providerpb.ProviderClient) (*providerpb.CreateResponse, error) {
		return c.Create(ctx, request(name, s), patient)
	})
	if err != nil {
		return failure(err)
	}
	p := r.ledger.tell(name, resp.GetId())
	if ref := resp.GetTask().GetId(); ref != "" {
		j.mu.Lock()
		j.ref = ref
		j.mu.Unlock()
		if failed := r.follow(ctx, ref, node, s); failed != "" {
			r.ledger.become(p, failed2stage(failed))
			return outcome{text: fmt.Sprintf("failed %s: %s", p.Alias, failed), kind: "error task"}
		}
		if out := r.confirm(ctx, p, node, s); out.kind != "exists" {
			r.ledger.become(p, failed)
			return outcome{text: "not made: " + out.text, kind: "error task"}
		}
	}
	r.ledger.become(p, made)
	return outcome{text: "ok " + p.Alias, kind: "ok"}
}

// unknownEnd is the text of a task whose end was not seen.
const unknownEnd = "its end was not seen"

func failed2stage(text string) stage {
	if text == unknownEnd {
		return told
	}
	return failed
}

// confirm looks at what a task has made: that it is done says nothing else, and the manager does the same. An error is
// no answer.
func (r *Runner) confirm(ctx context.Context, p *promise, node string, s Step) (out outcome) {
	at := max(0, slices.Index(s.Via, node))
	for waited := time.Duration(0); waited < s.patience() && ctx.Err() == nil; waited += describeEvery {
		out = r.describeThrough(ctx, p, s.Via[at%len(s.Via)], cmp.Or(s.Limit, describeTimeout))
		if out.kind == "exists" || out.kind == "gone" {
			return out
		}
		at++
		_ = r.world.Wait(ctx, describeEvery)
	}
	return out
}

// patience is how long a task is polled.
func (s Step) patience() time.Duration {
	if s.Limit > 0 {
		return hastyPatience
	}
	return taskPatience
}

// follow polls a task until its end and returns its error text. Errors of polls are no end; after one the next node is
// asked, as behind a balancer.
func (r *Runner) follow(ctx context.Context, ref, node string, s Step) string {
	at := max(0, slices.Index(s.Via, node))
	for waited := time.Duration(0); waited < s.patience() && ctx.Err() == nil; waited += pollEvery {
		st, err := r.poll(ctx, ref, s.Via[at%len(s.Via)])
		switch {
		case err != nil:
			at++
		case st.GetDone():
			return st.GetError()
		}
		_ = r.world.Wait(ctx, pollEvery)
	}
	return unknownEnd
}

func (r *Runner) poll(ctx context.Context, ref, node string) (*providerpb.TaskStatusResponse, error) {
	return with(ctx, r.world, node, taskTimeout, func(ctx context.Context, c providerpb.ProviderClient) (*providerpb.TaskStatusResponse, error) {
		return c.TaskStatus(ctx, &providerpb.TaskStatusRequest{Task: &providerpb.TaskRef{Id: ref}}, patient)
	})
}

// task asks for the task of a step in the background.
func (r *Runner) task(ctx context.Context, s Step) outcome {
	j := r.jobs[s.Args[0]]
	if j == nil {
		return outcome{text: "no such job"}
	}
	j.mu.Lock()
	ref := j.ref
	j.mu.Unlock()
	if ref == "" {
		return outcome{text: "no task yet", kind: "ok"}
	}
	st, err := r.poll(ctx, ref, s.Via[0])
	switch {
	case err != nil:
		return failure(err)
	case st.GetDone() && st.GetError() != "":
		return outcome{text: "failed: " + st.GetError(), kind: "error task"}
	case st.GetDone():
		return outcome{text: "done", kind: "ok"}
	}
	return outcome{text: "under way", kind: "ok"}
}

// target is what a name in a story stands for.
func (r *Runner) target(name string) (*promise, outcome) {
	p := r.ledger.find(name)
	if p == nil {
		return nil, outcome{text: "nobody was told an id of " + name, kind: "error nobody"}
	}
	return p, outcome{}
}

// change deletes a VM, or switches it off.
func (r *Runner) change(ctx context.Context, s Step) outcome {
	p, out := r.target(s.Args[0])
	if p == nil {
		return out
	}
	until := time.Now().Add(s.Retry)
	for attempt := 0; ; attempt++ {
		out := r.changeOnce(ctx, s.Verb, p, s.Via[attempt%len(s.Via)], cmp.Or(s.Limit, changeTimeout))
		if out.kind == "ok" || !time.Now().Before(until) || ctx.Err() != nil {
			return out
		}
		_ = r.world.Wait(ctx, requeue) // its error is that of ctx
	}
}

func (r *Runner) changeOnce(ctx context.Context, verb string, p *promise, node string, limit time.Duration) outcome {
	if verb == "delete" {
		r.ledger.become(p, leaving)
	}
	_, err := with(ctx, r.world, node, limit, func(ctx context.Context, c providerpb.ProviderClient) (*providerpb.TaskResponse, error) {
		if verb == "delete" {
			return c.Delete(ctx, &providerpb.DeleteRequest{Id: p.ID}, patient)
		}
		return c.Power(ctx, &providerpb.PowerRequest{Id: p.ID, Op: providerpb.PowerOp_POWER_OP_OFF, GracefulTimeoutSeconds: 60}, patient)
	})
	if err != nil {
		return failure(err)
	}
	if verb == "delete" {
		r.ledger.become(p, deleted)
	}
	return outcome{text: "ok " + p.Alias, kind: "ok"}
}

func (r *Runner) describe(ctx context.Context, s Step) outcome {
	p, out := r.target(s.Args[0])
	if p == nil {
		return out
	}
	return r.describeThrough(ctx, p, s.Via[0], cmp.Or(s.Limit, describeTimeout))
}

// describeThrough asks for a VM and judges the answer: a "no" is checked against what is there before and after.
func (r *Runner) describeThrough(ctx context.Context, p *promise, node string, limit time.Duration) outcome {
	before, err := look(r.world.Dir())
	if err != nil {
		return outcome{text: err.Error()}
	}
	stage := r.ledger.stageOf(p)
	d, err := with(ctx, r.world, node, limit, func(ctx context.Context, c providerpb.ProviderClient) (*providerpb.DescribeResponse, error) {
		return c.Describe(ctx, &providerpb.DescribeRequest{Id: p.ID}, patient)
	})
	if err != nil {
		return failure(err)
	}
	if d.GetExists() {
		return outcome{text: "exists " + p.Alias + " " + d.GetPowerState(), kind: "exists"}
	}
	after, err := look(r.world.Dir())
	if err != nil {
		return outcome{text: err.Error()}
	}
	if stage == made && r.ledger.stageOf(p) == made || before.has(p.ID) && after.has(p.ID) {
		r.ledger.mu.Lock()
		r.ledger.false0++
		r.ledger.mu.Unlock()
		r.ledger.violate("describe %s via %s: said not to exist (it is there: %v)", p.Alias, node, after.has(p.ID))
	}
	return outcome{text: "gone " + p.Alias, kind: "gone"}
}

func (r *Runner) list(ctx context.Context, node string) outcome {
	resp, err := with(ctx, r.world, node, changeTimeout, func(ctx context.Context, c providerpb.ProviderClient) (*providerpb.ListVMsResponse, error) {
		return c.ListVMs(ctx, &providerpb.ListVMsRequest{}, patient)
	})
	if err != nil {
		return failure(err)
	}
	var lines []string
	for _, v := range resp.GetVms() {
		line := v.GetName() + " " + v.GetId() + " " + v.GetPowerState()
		if v.GetProviderRaw()["stale"] == "true" {
			line += " stale"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return outcome{text: strings.Join(append(lines, fmt.Sprintf("%d VMs", len(lines))), "\n"), kind: "ok"}
}

// duplicate delivers a request twice at once, and again after the answers.
func (r *Runner) duplicate(ctx context.Context, s Step) outcome {
	verb := s.Args[0]
	s.Verb, s.Args = verb, s.Args[1:]
	if verb != "create" && verb != "delete" && verb != "off" {
		return outcome{text: "duplicate what?"}
	}
	r.fault("duplicate delivery")
	r.fault("duplicate delivery")
	outs := make([]outcome, 2)
	var wg sync.WaitGroup
	for i := range outs {
		wg.Go(func() { outs[i] = r.call(ctx, s, &job{}) })
	}
	wg.Wait()
	slices.SortFunc(outs, func(a, b outcome) int { return strings.Compare(b.text, a.text) }) // ok first
	outs = append(outs, r.call(ctx, s, &job{}))
	var lines []string
	for _, o := range outs {
		lines = append(lines, o.text)
	}
	return outcome{text: strings.Join(lines, "\n"), kind: outs[2].kind}
}

// raceTime is how long the nodes may take to agree on a VM.
const raceTime = 10 * time.Minute

// race creates a VM through several nodes at once; each repeats until it gets an id.
func (r *Runner) race(ctx context.Context, name string, s Step) outcome {
	outs := make([]outcome, len(s.Via))
	var wg sync.WaitGroup
	for i, node := range s.Via {
		wg.Go(func() {
			one := Step{Args: []string{name}, Via: []string{node}, On: s.On, Data: s.Data, Retry: raceTime, Limit: s.Limit}
			outs[i] = r.create(ctx, one, &job{})
		})
	}
	wg.Wait()
	texts := map[string]bool{}
	for _, o := range outs {
		texts[o.text] = true
	}
	if len(texts) == 1 {
		return outs[0]
	}
	var lines []string
	for i, o := range outs {
		lines = append(lines, s.Via[i]+": "+o.text)
	}
	return outcome{text: strings.Join(lines, "\n"), kind: "differ"}
}

// burst races for N names, and deletes each VM.
func (r *Runner) burst(ctx context.Context, s Step) outcome {
	n, _ := strconv.Atoi(s.Args[0])
	var odd []string
	for i := range n {
		r.fault("race")
		name := fmt.Sprintf("%s-%d", s.Args[1], i+1)
		out := r.race(ctx, name, s)
		t, err := look(r.world.Dir())
		if err == nil && len(t.named(name)) != 1 {
			err = fmt.Errorf("%d VMs", len(t.named(name)))
		}
		if out.kind != "ok" || err != nil {
			odd = append(odd, fmt.Sprintf("%s: %s (%v)", name, out.text, err))
			continue
		}
		if del := r.changeOnce(ctx, "delete", r.ledger.find(name), s.Via[i%len(s.Via)], changeTimeout); del.kind != "ok" {
			odd = append(odd, name+": delete: "+del.text)
		}
	}
	if len(odd) > 0 {
		return outcome{text: strings.Join(odd, "\n"), kind: "differ"}
	}
	return outcome{text: fmt.Sprintf("%d times one VM, one id", n), kind: "ok"}
}
