package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

const (
	// planTime is how long planning may take: the agent asks nobody for it but itself, and the node may be far.
	planTime = 60 * time.Second
	// patience is how long the agent may not answer while it is at work, as when it is restarted.
	patience = 60 * time.Second
)

// pollEvery is how often a command asks how far the agent is.
var pollEvery = 500 * time.Millisecond

// errand is a command that has the agents do something with a node.
type errand struct {
	name, summary string

	socket   string
	json     bool
	node     string
	reason   string
	dryRun   bool
	parallel int32
	stopped  bool
	force    bool

	flags func(e *errand, f *pflag.FlagSet)
	do    func(ctx context.Context, e *errand, client nodepb.NodeClient, out io.Writer) (code int, err error)
}

// errands are the commands of that kind.
func errands() map[string]*errand {
	evacuations := func(e *errand, f *pflag.FlagSet) {
		f.BoolVar(&e.dryRun, "dry-run", false, "only print the plan")
		f.Int32Var(&e.parallel, "parallel", 2, "move `N` VMs at a time")
	}
	return map[string]*errand{
		"cordon": {
			name: "cordon", summary: "keep new VMs away from a node; those it has stay", do: doCordon,
			flags: func(e *errand, f *pflag.FlagSet) { f.StringVar(&e.reason, "reason", "", "why, in words: `TEXT`") },
		},
		"uncordon": {
			name: "uncordon", summary: "let new VMs come to a node again", do: doCordon, flags: func(*errand, *pflag.FlagSet) {},
		},
		"drain": {
			name: "drain", summary: "cordon a node, and move its VMs to other nodes while they run", do: doEvacuate,
			flags: func(e *errand, f *pflag.FlagSet) {
				evacuations(e, f)
				f.BoolVar(&e.stopped, "stopped", false, "move VMs that do not run, too")
				f.BoolVar(&e.force, "force", false, "begin although some VMs cannot be moved")
			},
		},
		"restore": {
			name: "restore", summary: "uncordon a node, and move back what drain has moved away", do: doEvacuate, flags: evacuations,
		},
	}
}

func (e *errand) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := pflag.NewFlagSet(e.name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&e.json, "json", false, "print one JSON object at the end")
	f.StringVar(&e.socket, "socket", defaultSocket, "the agent's unix `PATH`")
	e.flags(e, f)
	err := f.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		say(stdout, fmt.Sprintf("pve-rigaud %s NODE: %s\n\nFlags:\n%s", e.name, e.summary, f.FlagUsages()))
		return exitOK
	}
	switch {
	case err != nil:
	case f.NArg() == 0:
		err = errors.New("which node? Its name is missing")
	case f.NArg() > 1:
		err = fmt.Errorf("unexpected argument %q", f.Arg(1))
	case f.Lookup("parallel") != nil && e.parallel < 1:
		err = errors.New("--parallel: at least 1")
	}
	if err != nil {
		say(stderr, fmt.Sprintf("pve-rigaud %s: %v\nSee: pve-rigaud %s --help\n", e.name, err, e.name))
		return exitUsage
	}
	e.node = f.Arg(0)
	code, err := e.carryOut(ctx, stdout)
	if err != nil {
		say(stderr, fmt.Sprintf("pve-rigaud %s: %v\n", e.name, err))
		return exitFailed
	}
	return code
}

func (e *errand) carryOut(ctx context.Context, stdout io.Writer) (int, error) {
	conn, err := dial(ctx, e.socket)
	if err != nil {
		return exitFailed, err
	}
	code, err := e.do(ctx, e, nodepb.NewNodeClient(conn), stdout)
	return code, errors.Join(err, conn.Close())
}

// cordonObject is the JSON answer of `pve-rigaud cordon` and `uncordon`.
type cordonObject struct {
	view
	Changed bool `json:"changed"` // it was not so before
}

func doCordon(ctx context.Context, e *errand, client nodepb.NodeClient, out io.Writer) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := client.Cordon(ctx, &nodepb.CordonRequest{Node: e.node, Uncordon: e.name == "uncordon", Reason: e.reason})
	if err != nil {
		return exitFailed, explain(err)
	}
	if e.json {
		return exitOK, printJSON(out, cordonObject{view: viewOf(resp.GetView()), Changed: resp.GetChanged()})
	}
	_, err = fmt.Fprintf(out, "node %s %s\n", e.node, cordonText(e.name == "uncordon", resp.GetChanged()))
	return exitOK, err
}

func cordonText(uncordon, changed bool) string {
	switch {
	case uncordon && changed:
		return "takes new VMs again"
	case uncordon:
		return "was not cordoned"
	case changed:
		return "is cordoned"
	}
	return "was cordoned already"
}

func printJSON(out io.Writer, object any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(object)
}

// doEvacuate begins a drain or a restore, or joins it, and tells how it goes until it ends.
func doEvacuate(ctx context.Context, e *errand, client nodepb.NodeClient, out io.Writer) (int, error) {
	resp, err := e.begin(ctx, client)
	if err != nil {
		return exitFailed, explain(err)
	}
	p := &progress{errand: e, client: client, out: out, told: map[int32]string{}}
	if !e.json {
		if err := planTable(resp).write(out); err != nil {
			return exitFailed, err
		}
	}
	if !e.dryRun {
		if resp, err = p.follow(ctx, resp); err != nil {
			return exitFailed, err
		}
	}
	if e.json {
		err = printJSON(out, evacuationOf(resp))
	} else if !e.dryRun {
		_, err = io.WriteString(out, ending(resp))
	}
	return exitOf(resp), err
}

func (e *errand) begin(ctx context.Context, client nodepb.NodeClient) (*nodepb.DrainResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, planTime)
	defer cancel()
	if e.name == "restore" {
		return client.Restore(ctx, &nodepb.RestoreRequest{Node: e.node, DryRun: e.dryRun, Parallel: e.parallel})
	}
	return client.Drain(ctx, &nodepb.DrainRequest{Node: e.node, DryRun: e.dryRun, Parallel: e.parallel, Stopped: e.stopped, Force: e.force})
}

// exitOf is 0 if everything is where it should be, or would be.
func exitOf(resp *nodepb.DrainResponse) int {
	for _, m := range resp.GetMoves() {
		if m.GetState() == "stays" || m.GetState() == "failed" {
			return exitFailed
		}
	}
	if s := resp.GetState(); s != "done" && s != "planned" {
		return exitFailed
	}
	return exitOK
}

// progress follows a drain or a restore.
type progress struct {
	*errand
	client nodepb.NodeClient
	out    io.Writer
	told   map[int32]string // what was last said of a VM
}

func (p *progress) follow(ctx context.Context, resp *nodepb.DrainResponse) (*nodepb.DrainResponse, error) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	heard := time.Now()
	interrupted := ctx.Done()
	ctx = context.WithoutCancel(ctx)
	for {
		if err := p.tell(resp); err != nil {
			return nil, err
		}
		if s := resp.GetState(); s != "running" && s != "stopping" {
			return resp, nil
		}
		next := p.look
		select {
		case <-tick.C:
		case <-interrupted:
			interrupted, next = nil, p.stop
			signal.Reset(syscall.SIGINT, syscall.SIGTERM) // the next one ends this command, and nothing else
		}
		got, err := next(ctx)
		switch {
		case err == nil:
			resp, heard = got, time.Now()
		case status.Code(err) == codes.NotFound || time.Since(heard) > patience:
			return nil, fmt.Errorf("%w\nIt may go on without this command; to follow it again: pve-rigaud %s %s", explain(err), p.name, p.node)
		}
	}
}

func (p *progress) look(ctx context.Context) (*nodepb.DrainResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return p.client.Evacuation(ctx, &nodepb.EvacuationRequest{Node: p.node})
}

func (p *progress) stop(ctx context.Context) (*nodepb.DrainResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	resp, err := p.client.StopEvacuation(ctx, &nodepb.StopEvacuationRequest{Node: p.node})
	if err == nil && !p.json {
		_, err = io.WriteString(p.out, "stopping: no further move begins, those under way end\n")
	}
	return resp, err
}

// tell writes a line for each VM of which there is something new.
func (p *progress) tell(resp *nodepb.DrainResponse) error {
	if p.json {
		return nil
	}
	var lines strings.Builder
	for _, m := range resp.GetMoves() {
		line := moveLine(m)
		if line != "" && line != p.told[m.GetVmid()] {
			p.told[m.GetVmid()] = line
			lines.WriteString(line + "\n")
		}
	}
	_, err := io.WriteString(p.out, lines.String())
	return err
}

func moveLine(m *nodepb.Move) string {
	vm := fmt.Sprintf("VM %d (%s)", m.GetVmid(), m.GetName())
	switch m.GetState() {
	case "moving":
		return printable(fmt.Sprintf("%s: %s -> %s ...", vm, m.GetFrom(), m.GetTo()))
	case "moved":
		return printable(fmt.Sprintf("%s: moved to %s in %s", vm, m.GetTo(), span(m.GetTookMs())))
	case "failed":
		return printable(fmt.Sprintf("%s: not moved: %s", vm, m.GetReason()))
	case "planned":
		if m.GetReason() != "" {
			return printable(fmt.Sprintf("%s: to %s instead: %s", vm, m.GetTo(), m.GetReason()))
		}
	}
	return ""
}

// ending says how it ended and what can be done now.
func ending(resp *nodepb.DrainResponse) string {
	n, all := 0, len(resp.GetMoves())
	for _, m := range resp.GetMoves() {
		if m.GetState() == "moved" {
			n++
		}
	}
	text := fmt.Sprintf("%s of node %s %s: %d of %d moved", resp.GetAct(), resp.GetNode(), resp.GetState(), n, all)
	if m := resp.GetMessage(); m != "" {
		text += " (" + m + ")"
	}
	text = printable(text) + "\n"
	if resp.GetState() != "done" {
		text += fmt.Sprintf("To go on: pve-rigaud %s %s\n", resp.GetAct(), resp.GetNode())
	}
	if resp.GetAct() == "drain" {
		text += fmt.Sprintf("To undo it: pve-rigaud restore %s\n", resp.GetNode())
	}
	return text
}

func planTable(resp *nodepb.DrainResponse) *table {
	t := newTable("VM", "NAME", "GIB", "FROM", "TO", "NOTE")
	t.remark("note", resp.GetMessage())
	if len(resp.GetMoves()) == 0 {
		t.remark("note", "there is no VM to move")
	}
	for _, m := range resp.GetMoves() {
		var notes []string
		if m.GetHa() {
			notes = append(notes, "by HA")
		}
		if !m.GetRunning() && m.GetState() != "stays" {
			notes = append(notes, "does not run")
		}
		if m.GetState() == "stays" {
			notes = append(notes, "stays: "+m.GetReason())
		}
		t.add(strconv.Itoa(int(m.GetVmid())), m.GetName(), gib(m.GetMemory()), m.GetFrom(), m.GetTo(), strings.Join(notes, ", "))
	}
	return t
}

// evacuationObject is the JSON answer of `pve-rigaud drain` and `restore`. Every key is always there.
type evacuationObject struct {
	view
	Of      string       `json:"of"`    // the node that is drained or restored
	Act     string       `json:"act"`   // drain, restore
	State   string       `json:"state"` // planned, running, stopping, done, stopped, failed
	Message string       `json:"message"`
	Op      string       `json:"op"` // the operation in the agent's journal; "" of a plan
	Moves   []moveObject `json:"moves"`
}

type moveObject struct {
	VMID        int32   `json:"vmid"`
	Name        string  `json:"name"`
	From        string  `json:"from"`
	To          string  `json:"to"`    // "" if it stays
	State       string  `json:"state"` // planned, moving, moved, failed, stays
	Reason      string  `json:"reason"`
	HA          bool    `json:"ha"` // HA moves it
	Running     bool    `json:"running"`
	MemoryBytes uint64  `json:"memory_bytes"`
	TookSeconds float64 `json:"took_seconds"`
}

func evacuationOf(resp *nodepb.DrainResponse) evacuationObject {
	out := evacuationObject{
		view: viewOf(resp.GetView()), Of: resp.GetNode(), Act: resp.GetAct(), State: resp.GetState(), Message: resp.GetMessage(), Op: resp.GetOp(), Moves: []moveObject{},
	}
	for _, m := range resp.GetMoves() {
		out.Moves = append(out.Moves, moveObject{
			VMID: m.GetVmid(), Name: m.GetName(), From: m.GetFrom(), To: m.GetTo(), State: m.GetState(), Reason: m.GetReason(),
			HA: m.GetHa(), Running: m.GetRunning(), MemoryBytes: m.GetMemory(), TookSeconds: seconds(m.GetTookMs()),
		})
	}
	return out
}
