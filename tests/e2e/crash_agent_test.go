package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// crashEnv makes the test binary an agent: a process that can be killed while the simulated PVE goes on.
const crashEnv = "PVE_RIGAUD_CRASH_AGENT"

// crashOrder is the value of crashEnv.
type crashOrder struct {
	Args []string   // of the agent
	Kill crashPoint // counted from the start
}

// crashPoint is a moment in the life of an agent: one side of the nth write of its journal. Zero: none.
type crashPoint struct {
	Write int
	After bool
}

// crashMain runs the agent if this process was started as one, and does not return then.
func crashMain() {
	text, ok := os.LookupEnv(crashEnv)
	if !ok {
		return
	}
	if err := crashAgent(context.Background(), text); err != nil {
		fmt.Fprintf(os.Stderr, "agent: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// crashAgent is what the program does, with a journal that kills it. It says on standard output when it is ready and
// what it has written; its standard input sets another moment to die at and, when it ends, stops the agent.
func crashAgent(ctx context.Context, text string) error {
	var order crashOrder
	if err := json.Unmarshal([]byte(text), &order); err != nil {
		return err
	}
	cfg, err := config.Load(order.Args, func(string) (string, bool) { return "", false })
	if err != nil {
		return err
	}
	journal := &crashJournal{out: os.Stdout, point: order.Kill}
	a, err := agent.New(ctx, cfg, slog.New(slog.NewTextHandler(os.Stderr, nil)), agent.WithJournalHook(journal.hook))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		defer stop()
		journal.obey(os.Stdin)
	}()
	go func() {
		select {
		case <-a.Ready():
			journal.say("ready %s %s", a.GRPCAddr(), a.MetricsAddr())
		case <-ctx.Done():
		}
	}()
	return a.Run(ctx)
}

// crashJournal watches the writes of a journal and ends the process at one of them.
type crashJournal struct {
	mu     sync.Mutex // guards all below
	out    io.Writer
	point  crashPoint
	writes int
}

func (j *crashJournal) hook(m ops.Moment, ev ops.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if m == ops.BeforeWrite {
		j.writes++
	} else {
		j.lockedSay("wrote %s", strings.TrimSpace(string(ev.What)+" "+ev.Step))
	}
	if j.writes == j.point.Write && (m == ops.AfterWrite) == j.point.After {
		if err := unix.Kill(os.Getpid(), unix.SIGKILL); err != nil {
			panic(err)
		}
		select {} // not one instruction more, in case the signal takes its time
	}
}

func (j *crashJournal) say(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lockedSay(format, args...)
}

func (j *crashJournal) lockedSay(format string, args ...any) {
	if _, err := fmt.Fprintf(j.out, format+"\n", args...); err != nil {
		panic(err) // the parent is gone
	}
}

// obey takes moments to die at, counted from now, until the parent closes our input or dies.
func (j *crashJournal) obey(in io.Reader) {
	for dec := json.NewDecoder(in); ; {
		var p crashPoint
		if err := dec.Decode(&p); err != nil {
			return
		}
		j.mu.Lock()
		j.point, j.writes = p, 0
		j.lockedSay("armed")
		j.mu.Unlock()
	}
}

// crashLife is one life of an agent as the test sees it.
type crashLife struct {
	provider providerpb.ProviderClient
	metrics  string // base URL

	cmd   *exec.Cmd
	stdin io.WriteCloser
	conn  *grpc.ClientConn
	log   bytes.Buffer  // of the agent; complete when it is over
	ready chan string   // what it says when it is ready
	armed chan struct{} // that it has taken a moment to die at
	over  chan struct{} // closed when the process is gone
	ended error         // of the process; valid then

	mu    sync.Mutex // guards wrote
	wrote []string   // the writes of its journal
}

// errCrashed says that an agent was gone before it was ready: it died while it took up its operations.
var errCrashed = errors.New("agent killed before it was ready")

// crashBorn starts an agent process and waits until it is ready.
func crashBorn(ctx context.Context, args []string, kill crashPoint) (*crashLife, error) {
	order, err := json.Marshal(crashOrder{Args: args, Kill: kill})
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := &crashLife{
		cmd: exec.CommandContext(ctx, self), ready: make(chan string, 1), armed: make(chan struct{}, 1), over: make(chan struct{}),
	}
	// A race in the agent ends it, so that its row fails.
	l.cmd.Env = append(os.Environ(), crashEnv+"="+string(order), "GORACE=halt_on_error=1")
	l.cmd.Stderr = &l.log
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	go l.listen(out)
	return l, l.connect()
}

// listen reads what the process says until it is gone.
func (l *crashLife) listen(out io.Reader) {
	defer close(l.over)
	for lines := bufio.NewScanner(out); lines.Scan(); {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "ready":
			l.ready <- rest
		case "armed":
			l.armed <- struct{}{}
		case "wrote":
			l.mu.Lock()
			l.wrote = append(l.wrote, rest)
			l.mu.Unlock()
		}
	}
	l.ended = l.cmd.Wait()
}

func (l *crashLife) connect() error {
	var addresses string
	select {
	case addresses = <-l.ready:
	case <-l.over:
		if l.killed() {
			return errCrashed
		}
		return fmt.Errorf("agent ended before it was ready: %w\n%s", l.ended, l.log.String())
	}
	address, metrics, _ := strings.Cut(addresses, " ")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return errors.Join(err, l.stop())
	}
	l.conn, l.provider, l.metrics = conn, providerpb.NewProviderClient(conn), "http://"+metrics
	return nil
}

// arm makes the process kill itself at a moment counted from now.
func (l *crashLife) arm(p crashPoint) error {
	if err := json.NewEncoder(l.stdin).Encode(p); err != nil {
		return err
	}
	select {
	case <-l.armed:
		return nil
	case <-l.over:
		return errors.New("agent is gone")
	}
}

// kill is kill -9, and returns when the process is gone.
func (l *crashLife) kill() {
	_ = l.cmd.Process.Kill() // it may have died by itself
	<-l.over
}

// killed says whether the process has died of SIGKILL. It is over.
func (l *crashLife) killed() bool {
	status, ok := l.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signal() == unix.SIGKILL
}

// bury releases what a dead process leaves with us.
func (l *crashLife) bury() error {
	<-l.over
	_ = l.stdin.Close() // Wait has closed it already
	if l.conn == nil {
		return nil
	}
	return l.conn.Close()
}

// stop stops the agent as SIGTERM does.
func (l *crashLife) stop() error {
	err := l.stdin.Close()
	if cerr := l.bury(); err == nil {
		err = cerr
	}
	if l.ended != nil {
		return fmt.Errorf("agent: %w\n%s", l.ended, l.log.String())
	}
	return err
}

// writes returns how many writes of its journal the agent has told of, and those from the nth on.
func (l *crashLife) writes(from int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.wrote[from:]...)
}
