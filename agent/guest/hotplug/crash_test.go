package hotplug_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

// The environment of a child: where the node's files are, and what it is to do.
const (
	childDir  = "HOTPLUG_TEST_DIR"
	childWant = "HOTPLUG_TEST_WANT"
)

// child is a process that changes the vCPUs and is killed meanwhile.
func child(dir string) int {
	want, err := strconv.Atoi(os.Getenv(childWant))
	if err == nil {
		p := hotplug.New(hotplug.Config{
			Node: node, Tree: pmxcfs.Open(dir), RunDir: dir, LockDir: dir, Gate: qmp.NewGate(qmp.GateConfig{}), Log: slog.New(slog.DiscardHandler),
		})
		_, err = p.CPUs(context.Background(), target, want)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// TestKilled kills the process with SIGKILL at each of the moments in which QEMU is asked something: before it does so, and when
// it has done so and has not answered. Then the config is whole, Mend brings it in line with what runs, and a repeat completes.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, way := range []struct{ from, to int }{{1, 3}, {3, 1}} {
		total := killed(t, way.from, way.to, -1, false)
		if total < 6 {
			t.Errorf("%d -> %d asks QEMU %d times only", way.from, way.to, total)
		}
		for at := range total {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%d to %d at %d %v", way.from, way.to, at, after), func(t *testing.T) {
					t.Parallel()
					killed(t, way.from, way.to, at, after)
				})
			}
		}
	}
}

// killed has a child change the vCPUs, and kills it at its command number at, or never. It returns the number of commands.
func killed(t *testing.T, from, to, at int, after bool) int {
	t.Helper()
	s := with(t, strings.Replace(usual, "vcpus: 1\n", fmt.Sprintf("vcpus: %d\n", from), 1), qmptest.Config{VCPUs: from})
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+s.dir, childWant+"="+strconv.Itoa(to))
	k := &killer{q: s.vm.fake, at: at, after: after, ready: make(chan struct{}), dead: make(chan struct{})}
	k.watch()
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k.process = cmd.Process
	close(k.ready)
	err := cmd.Wait()
	close(k.dead)
	k.stop()
	if at < 0 {
		if err != nil {
			t.Fatalf("the child: %v: %s", err, said.String())
		}
		s.true(to)
		return k.seen
	}
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child was not killed: %v: %s", err, said.String())
	}
	running := s.vm.fake.VCPUs()
	if _, err := s.plugger().Mend(t.Context(), target); err != nil {
		t.Error(err)
	}
	s.true(running)
	s.become(running, to)
	return k.seen
}

// killer ends a process at one of the commands that QEMU is sent.
type killer struct {
	q       *qmptest.QEMU
	at      int
	after   bool
	ready   chan struct{} // closed when process is set
	dead    chan struct{} // closed when it has ended
	process *os.Process

	mu   sync.Mutex // guards seen
	seen int
}

// commands are those of a change, and what they are without a killer.
func (k *killer) commands() map[string]func(args json.RawMessage) any {
	plain := func(command string) func(json.RawMessage) any {
		return func(args json.RawMessage) any {
			k.q.Handle(command, nil)
			defer k.handle(command)
			reply, err := k.q.Execute(command, args)
			if err != nil {
				panic(err) // the child sends what QEMU takes
			}
			return reply
		}
	}
	all := map[string]func(json.RawMessage) any{}
	for _, command := range []string{"query-cpus-fast", "query-hotpluggable-cpus", "device_add", "device_del"} {
		all[command] = plain(command)
	}
	return all
}

func (k *killer) watch() {
	for command := range k.commands() {
		k.handle(command)
	}
}

func (k *killer) stop() {
	for command := range k.commands() {
		k.q.Handle(command, nil)
	}
}

func (k *killer) handle(command string) {
	k.q.Handle(command, func(args json.RawMessage) (any, error) {
		<-k.ready
		k.mu.Lock()
		now := k.seen == k.at
		k.seen++
		k.mu.Unlock()
		if now && !k.after {
			k.kill()
			return struct{}{}, nil
		}
		reply := k.commands()[command](args)
		if now {
			k.kill()
		}
		return reply, nil
	})
}

func (k *killer) kill() {
	_ = k.process.Kill()
	<-k.dead
}
