package matrix

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// lab is an agent in front of a simulated PVE of some version.
type lab struct {
	*testing.T
	ctx   context.Context //nolint:containedctx // of the test
	rig   *rig.Rig
	agent *rig.Agent
	seen  recorder
	said  *sayings
}

func newLab(t *testing.T, version string) *lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	l := &lab{T: t, ctx: ctx, said: &sayings{}}
	var err error
	l.rig, err = rig.Start(ctx, rig.Config{Log: slog.New(l.said), Sim: pvesim.Config{
		NodeBridges: map[string][]string{"pve1": {"vmbr0", "vmbr1", "vmbr2", "vmbr3", "vmbr7"}},
		Nodes:       1, QEMU: pvesim.Fake, Version: version, SchemaFile: filepath.Join(filepath.Dir(os.Getenv("PVE_API_SCHEMA")), version+".json"),
		AuthDelay: -1, AgentWait: 200 * time.Millisecond, PollUnit: 20 * time.Millisecond, HADelay: time.Millisecond, Scan: 20 * time.Millisecond,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range l.rig.Sim.SchemaErrors() {
			t.Errorf("PVE %s: a request that its schema does not allow: %s", version, e)
		}
		if err := l.rig.Close(); err != nil {
			t.Error(err)
		}
	})
	l.prepare()
	resolv := filepath.Join(l.rig.Dir, "resolv.conf")
	l.must(os.WriteFile(resolv, []byte("search example.com\nnameserver 192.0.2.1\n"), 0o600))
	flags := []string{"--watch=100ms", "--sync-wait=1m", "--storage-classes=ssd:storage=shared,ssd=1,iothread=1"}
	if l.agent, err = l.rig.StartAgent(ctx, "pve1", flags, agent.WithCPUClock(2000), agent.WithResolvConf(resolv)); err != nil {
		t.Fatal(err)
	}
	l.rig.Sim.BeforeRequest(l.seen.hook)
	return l
}

// sayings are what an agent tells in its log about requests that it carries out otherwise than one might think.
type sayings struct {
	mu    sync.Mutex // guards lines
	lines []string
}

func (s *sayings) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle keeps what names notes, parts or settings.
func (s *sayings) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "notes" || a.Key == "parts" || a.Key == "settings" {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lines = append(s.lines, steady(fmt.Sprintf("log: %s: %v", r.Message, a.Value)))
		}
		return true
	})
	return nil
}

func (s *sayings) WithAttrs([]slog.Attr) slog.Handler { return s }

func (s *sayings) WithGroup(string) slog.Handler { return s }

func (s *sayings) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := s.lines
	s.lines = nil
	return lines
}

// prepare makes what requests name: a pool and an installation medium.
func (l *lab) prepare() {
	l.Helper()
	l.must(l.rig.Sim.AddPool("team-a"))
	media := filepath.Join(l.rig.Dir, "pve1", "vz", "template", "iso")
	l.must(os.MkdirAll(media, 0o755))
	l.must(os.WriteFile(filepath.Join(media, "x.iso"), make([]byte, 1<<20), 0o600))
}

func (l *lab) must(err error) {
	l.Helper()
	if err != nil {
		l.Fatal(err)
	}
}

// failure is an error as it stands in an answer.
func failure(err error) []string {
	s := status.Convert(err)
	return []string{steady(s.Code().String() + ": " + s.Message())}
}

func (l *lab) delete(id string) {
	l.Helper()
	if id == "" {
		return
	}
	_, err := l.agent.Provider.Delete(l.ctx, &providerpb.DeleteRequest{Id: id})
	l.must(err)
	l.seen.take()
}

// parts are the snippets that a VM's cicustom names.
func (l *lab) parts(id string) []string {
	l.Helper()
	number, _, _ := strings.Cut(id, "-")
	vmid, err := strconv.Atoi(number)
	l.must(err)
	conf, err := l.rig.Sim.Config(vmid)
	l.must(err)
	var out []string
	for f := range strings.SplitSeq(conf["cicustom"], ",") {
		part, volume, ok := strings.Cut(f, "=local:")
		if !ok {
			continue
		}
		content, err := os.ReadFile(filepath.Join(l.rig.Dir, "pve1", "vz", volume))
		l.must(err)
		out = append(out, part+":")
		for line := range strings.Lines(string(content)) {
			out = append(out, steady("  | "+strings.TrimRight(line, "\n")))
		}
	}
	return out
}

// ask makes a request for each question and returns the answers. The first question is the base of all others.
func (l *lab) ask(questions []question, make func(question) (id string, err error)) [][]string {
	l.Helper()
	var base []call
	answers := [][]string{}
	for i, q := range questions {
		l.seen.take()
		l.said.take()
		id, err := make(q)
		calls := l.seen.take()
		switch {
		case err != nil && len(calls) > 0:
			answers = append(answers, append(against(nil, calls), failure(err)...))
		case err != nil:
			answers = append(answers, failure(err))
		case i == 0:
			base = calls
			answers = append(answers, against(nil, calls))
		default:
			answers = append(answers, slices.Concat(against(base, calls), l.parts(id), l.said.take()))
		}
		l.delete(id)
	}
	return answers
}

func TestCreate(t *testing.T) {
	t.Parallel()
	run(t, "create", func(l *lab, q question) (string, error) {
		c, err := l.agent.Provider.Create(l.ctx, l.createRequest(q))
		return c.GetId(), err
	})
}

func (l *lab) createRequest(q question) *providerpb.CreateRequest {
	r := &providerpb.CreateRequest{
		Name: "vm", ClassJson: `{"CPU":1,"MemoryMiB":1024}`, ImageJson: `{"TemplateName":"9000","Format":"template"}`, NetworksJson: "null", DisksJson: "null",
	}
	for _, p := range q.parts {
		switch p.name {
		case "name":
			r.Name = p.value
		case "class":
			r.ClassJson = merged(l.T, r.GetClassJson(), p.value)
		case "image":
			r.ImageJson = merged(l.T, "", p.value)
		case "networks":
			r.NetworksJson = p.value
		case "disks":
			r.DisksJson = p.value
		case "placement":
			r.PlacementJson = p.value
		case "user_data":
			r.UserData = []byte(p.value)
		case "meta_data":
			r.MetaData = []byte(p.value)
		case "tag":
			r.Tags = append(r.Tags, p.value)
		default:
			l.Fatalf("%s: no part of a Create is called %q", q.title, p.name)
		}
	}
	return r
}

func TestClone(t *testing.T) {
	t.Parallel()
	run(t, "clone", func(l *lab, q question) (string, error) {
		r := &providerpb.CloneRequest{SourceVmId: "9000", TargetName: "vm"}
		for _, p := range q.parts {
			switch p.name {
			case "name":
				r.TargetName = p.value
			case "class":
				r.ClassJson = merged(l.T, `{"cpu":1,"memory":"1Gi"}`, p.value)
			case "customize":
				r.CustomizeJson = p.value
			case "placement":
				r.PlacementJson = p.value
			case "linked":
				r.Linked = p.value == "true"
			default:
				l.Fatalf("%s: no part of a Clone is called %q", q.title, p.name)
			}
		}
		c, err := l.agent.Provider.Clone(l.ctx, r)
		return c.GetTargetVmId(), err
	})
}

// run asks all questions of a file of each version of PVE.
func run(t *testing.T, name string, make func(*lab, question) (string, error)) {
	t.Helper()
	f := read(t, name)
	answers := map[string][][]string{}
	all := versions(t)
	for _, v := range all {
		l := newLab(t, v)
		answers[v] = l.ask(f.questions, func(q question) (string, error) { return make(l, q) })
	}
	f.compare(t, all, answers)
}
