package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/node"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

var update = flag.Bool("update", false, "write what the commands print to testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeAgent is a node service that says what a test wants, on a real socket.
type fakeAgent struct {
	nodepb.UnimplementedNodeServer
	socket  string
	members *nodepb.MembersResponse
	vms     *nodepb.VMsResponse
	err     error
	node    string // of the last VMsRequest
	snaps   bool   // of the last VMsRequest
}

func (a *fakeAgent) Members(context.Context, *nodepb.MembersRequest) (*nodepb.MembersResponse, error) {
	return a.members, a.err
}

func (a *fakeAgent) VMs(_ context.Context, req *nodepb.VMsRequest) (*nodepb.VMsResponse, error) {
	a.node, a.snaps = req.GetNode(), req.GetSnapshots()
	return a.vms, a.err
}

// shortDir is a directory whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// serve runs the agent's socket until the test ends, with another service on it if one is given.
func (a *fakeAgent) serve(t *testing.T, service ...nodepb.NodeServer) {
	t.Helper()
	a.socket = filepath.Join(shortDir(t), "agent.sock")
	s := node.NewServer(node.ServerConfig{Socket: a.socket, Service: append(service, a)[0]})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case err := <-done:
		done <- err
		t.Fatal(err)
	}
}

// command runs the program.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, func(string) (string, bool) { return "", false }, &out, &err)
	return code, out.String(), err.String()
}

// golden compares what was printed with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; go test ./cmd/pve-rigaud -update writes it anew):\n%s", path, diff)
	}
}

const gibi = 1 << 30

func fine() *nodepb.View {
	return &nodepb.View{Node: "pve1", Cluster: "lab", Version: "1.2.0", Quorate: true, ReadAtUnixMs: 1772366399500, AgeMs: 480}
}

func noQuorum() *nodepb.View {
	v := fine()
	v.Quorate, v.Stale = false, "node pve1 has no quorum: the others may have changed since"
	return v
}

func up(address string) *nodepb.Agent {
	return &nodepb.Agent{Address: address, Version: "1.2.0", ProtocolMin: 1, ProtocolMax: 2, Compatible: true, Alive: true, SinceMs: 3 * 3600_000}
}

func down(a *nodepb.Agent, ms int64) *nodepb.Agent {
	a.Alive, a.SinceMs = false, ms
	return a
}

// manyMembers has a node in each state.
func manyMembers() []*nodepb.Member {
	incompatible := up("192.0.2.6:9443")
	incompatible.Version, incompatible.ProtocolMin, incompatible.ProtocolMax, incompatible.Compatible = "9.0.0", 7, 8, false
	online := func(ip string) *nodepb.PVENode { return &nodepb.PVENode{Online: true, Ip: ip} }
	return []*nodepb.Member{
		{Name: "pve1", Self: true, Pve: online("192.0.2.1"), Agent: up("192.0.2.1:9443"), Capacity: &nodepb.Capacity{
			AgeMs: 300, MemoryTotal: 64 * gibi, MemoryFree: 41*gibi + gibi/4, MemoryPromised: 48 * gibi, Cpus: 16, VcpusPromised: 24,
			Load: 1.5, PressureCpu: 0.25, PressureMemory: 1, PressureIo: 12.5, Quorate: true,
		}},
		{
			Name: "pve2", Pve: online("192.0.2.2"), Agent: up("192.0.2.2:9443"), Link: &nodepb.Link{DownMs: 12_400, LastError: "dial tcp 192.0.2.2:9443:\nconnection \x1b[31mrefused"},
			Capacity: &nodepb.Capacity{AgeMs: 16_200, MemoryTotal: 64 * gibi, MemoryFree: 60 * gibi, Cpus: 16, Cordoned: true, Draining: true, Quorate: true},
		},
		{Name: "pve3", Pve: &nodepb.PVENode{Ip: "192.0.2.3"}, Agent: down(up("192.0.2.3:9443"), 5*60_000), Capacity: &nodepb.Capacity{
			AgeMs: 5 * 60_000, MemoryTotal: 64 * gibi, MemoryFree: 10 * gibi, MemoryPromised: 70 * gibi, Cpus: 16, VcpusPromised: 40, Load: 22.13,
		}},
		{Name: "pve4", Pve: online("192.0.2.4")},
		{Name: "pve5", Pve: online("192.0.2.5"), Agent: down(up("192.0.2.5:9443"), 100_000), Link: &nodepb.Link{Up: true}},
		{Name: "pve6", Pve: online("192.0.2.6"), Agent: incompatible},
		{Name: "pve7", Agent: up("[2001:db8::7]:9443")},
		{Name: "pve8", Pve: &nodepb.PVENode{Ip: "192.0.2.8"}, Agent: up("192.0.2.8:9443"), Link: &nodepb.Link{Up: true}},
	}
}

func manyVMs() []*nodepb.VM {
	return []*nodepb.VM{
		{Name: "begun", Node: "pve2", Type: "qemu", Power: "unknown", Record: &nodepb.Record{Owner: "manager", State: "creating", Node: "pve2", AgeMs: 1500}},
		{Vmid: 100, Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "on", Listed: true, Record: &nodepb.Record{Owner: "manager", State: "ready", Node: "pve1", AgeMs: 86_400_000}},
		{Vmid: 101, Id: "101-bbbbbbbb", Name: "db", Node: "pve2", Type: "qemu", Power: "unknown", Listed: true, Lock: "backup", Stale: "node pve2 is offline"},
		{Vmid: 102, Node: "pve1", Type: "lxc", Power: "unknown", Listed: true},
		{Vmid: 103, Power: "unknown", Listed: true, Stale: "its config could not be read: /etc/pve/nodes/pve2/qemu-server/103.conf: no such file"},
		{Vmid: 900, Id: "900-cccccccc", Name: "golden", Node: "pve1", Type: "qemu", Template: true, Power: "off", Listed: true},
	}
}

// withSnapshots are VMs with trees of snapshots, one of them with a circle in it.
func withSnapshots() []*nodepb.VM {
	const hour = 3600_000
	return []*nodepb.VM{
		{Vmid: 100, Id: "100-aaaaaaaa", Name: "web", Node: "pve1", Type: "qemu", Power: "on", Listed: true, CurrentSnapshot: "v1_2", Snapshots: []*nodepb.Snapshot{
			{Id: "base", Name: "base", AgeMs: 90 * 24 * hour, Description: "by hand"},
			{Id: "v1_1", Name: "v1.1", Parent: "base", AgeMs: 50 * hour, Memory: true},
			{Id: "S-2026", Name: "2026", Parent: "v1_1", AgeMs: 40 * hour},
			{Id: "v1_2", Name: "v1.2", Parent: "base", AgeMs: 30 * hour, State: "delete"},
			{Id: "orphan", Name: "orphan", Parent: "gone"},
		}},
		{Vmid: 101, Id: "101-bbbbbbbb", Name: "db", Node: "pve2", Type: "qemu", Power: "unknown", Listed: true, Stale: "node pve2 is offline", Snapshots: []*nodepb.Snapshot{
			{Id: "x1", Name: "x1", Parent: "x2", AgeMs: hour}, {Id: "x2", Name: "x2", Parent: "x1", AgeMs: hour},
		}},
		{Vmid: 102, Id: "102-cccccccc", Name: "none", Node: "pve1", Type: "qemu", Power: "off", Listed: true},
	}
}

func TestGolden(t *testing.T) {
	for _, test := range []struct {
		name, command string
		agent         fakeAgent
	}{
		{"members", "members", fakeAgent{members: &nodepb.MembersResponse{View: fine(), Members: manyMembers()}}},
		{"members-no-quorum", "members", fakeAgent{members: &nodepb.MembersResponse{View: noQuorum(), Members: manyMembers()[:1]}}},
		{"members-no-pve", "members", fakeAgent{members: &nodepb.MembersResponse{
			View:    &nodepb.View{Node: "pve1", Version: "1.2.0", Stale: "/etc/pve: never read: transport endpoint is not connected"},
			Members: []*nodepb.Member{{Name: "pve1", Self: true}, {Name: "pve2", Agent: up("192.0.2.2:9443"), Link: &nodepb.Link{Up: true}}},
		}}},
		{"vms", "vms", fakeAgent{vms: &nodepb.VMsResponse{View: fine(), Vms: manyVMs()}}},
		{"vms-no-quorum", "vms", fakeAgent{vms: &nodepb.VMsResponse{View: noQuorum(), Vms: manyVMs()[1:2], RecordsError: "records that cannot be read: 1 being written, or left so by a crash"}}},
		{"vms-no-records", "vms", fakeAgent{vms: &nodepb.VMsResponse{View: fine(), Vms: manyVMs()[3:], RecordsError: "records cannot be read: input/output error"}}},
		{"vms-none", "vms", fakeAgent{vms: &nodepb.VMsResponse{View: fine()}}},
		{"vms-snapshots", "vms --snapshots", fakeAgent{vms: &nodepb.VMsResponse{View: fine(), Vms: withSnapshots()}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.agent.serve(t)
			for suffix, flags := range map[string][]string{".txt": nil, ".json": {"--json"}} {
				code, out, stderr := command(t, append(append(strings.Fields(test.command), "--socket", test.agent.socket), flags...)...)
				if code != exitOK || stderr != "" {
					t.Fatalf("exit code %d, %s", code, stderr)
				}
				golden(t, test.name+suffix, out)
				if suffix == ".json" && !json.Valid([]byte(out)) {
					t.Error("no JSON")
				}
			}
		})
	}
}

func TestVMsOfOneNode(t *testing.T) {
	a := fakeAgent{vms: &nodepb.VMsResponse{View: fine()}}
	a.serve(t)
	if code, _, stderr := command(t, "vms", "--node", "pve2", "--socket", a.socket); code != exitOK || a.node != "pve2" {
		t.Errorf("exit code %d, asked for node %q, %s", code, a.node, stderr)
	}
	if a.snaps {
		t.Error("snapshots were asked for")
	}
	if code, _, stderr := command(t, "vms", "--snapshots", "--socket", a.socket); code != exitOK || !a.snaps || a.node != "" {
		t.Errorf("exit code %d, asked for snapshots: %v, %s", code, a.snaps, stderr)
	}
	a.err = status.Error(codes.NotFound, `the cluster has no node "pve7"`)
	code, out, stderr := command(t, "vms", "--node", "pve7", "--json", "--socket", a.socket)
	if want := "pve-rigaud vms: the agent answers NotFound: the cluster has no node \"pve7\"\n"; code != exitFailed || out != "" || stderr != want {
		t.Errorf("exit code %d, %q, %q", code, out, stderr)
	}
}

func TestAnAnswerMayBeLong(t *testing.T) {
	a := fakeAgent{vms: &nodepb.VMsResponse{View: fine()}}
	long := strings.Repeat("x", 1000)
	for range 6000 {
		a.vms.Vms = append(a.vms.Vms, &nodepb.VM{Name: long})
	}
	a.serve(t)
	if code, out, stderr := command(t, "vms", "--socket", a.socket); code != exitOK || strings.Count(out, long) != 6000 {
		t.Errorf("exit code %d, %d bytes, %s", code, len(out), stderr)
	}
}

func TestAgentCannotBeReached(t *testing.T) {
	dir := shortDir(t)
	dead := filepath.Join(dir, "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "none.sock")
	const hint = "\nIs the service running? See: systemctl status pve-rigaud\n"
	for socket, why := range map[string]string{missing: "no such file or directory", dead: "connection refused"} {
		for _, name := range []string{"members", "vms"} {
			code, out, stderr := command(t, name, "--json", "--socket", socket)
			want := "pve-rigaud " + name + ": cannot reach the agent on " + socket + ": connect: " + why + hint
			if code != exitFailed || out != "" || stderr != want {
				t.Errorf("exit code %d, %q, got\n%swant\n%s", code, out, stderr, want)
			}
		}
	}
	err = unreachable("/run/x.sock", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EACCES)})
	if err.Error() != "cannot reach the agent on /run/x.sock: connect: permission denied\nOnly root may use the socket" {
		t.Errorf("not as root: %v", err)
	}
}

// TestAgentHangsUp is an agent that takes the connection and does not want it.
func TestAgentHangsUp(t *testing.T) {
	socket := filepath.Join(shortDir(t), "agent.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				done <- nil
				return
			}
			if err := conn.Close(); err != nil {
				done <- err
				return
			}
		}
	}()
	code, _, stderr := command(t, "members", "--socket", socket)
	if code != exitFailed || !strings.HasPrefix(stderr, "pve-rigaud members: the agent answers Unavailable: ") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	if err := errors.Join(l.Close(), <-done); err != nil {
		t.Error(err)
	}
}

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args []string
		code int
		says string // on standard error, or on standard output if all is fine
	}{
		{[]string{"members", "--nonsense"}, exitUsage, "unknown flag: --nonsense\nSee: pve-rigaud members --help\n"},
		{[]string{"members", "--node", "pve1"}, exitUsage, "unknown flag: --node"},
		{[]string{"vms", "pve1"}, exitUsage, `unexpected argument "pve1"`},
		{[]string{"vms", "--socket"}, exitUsage, "needs an argument"},
		{[]string{"vmx"}, exitUsage, `no such command "vmx"`},
		{[]string{"vms", "--help"}, exitOK, "--node NODE"},
		{[]string{"members", "-h"}, exitOK, `(default "/run/pve-rigaud/agent.sock")`},
		{[]string{"help"}, exitOK, "pve-rigaud members "},
		{nil, exitOK, "pve-rigaud vms "},
	} {
		code, out, stderr := command(t, test.args...)
		if test.code != exitOK {
			out, stderr = stderr, out
		}
		if code != test.code || !strings.Contains(out, test.says) || stderr != "" {
			t.Errorf("%q: exit code %d, %q, %q", test.args, code, out, stderr)
		}
	}
}

// TestDocs holds docs/cli.md to what the commands take and tell.
func TestDocs(t *testing.T) {
	raw, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for name, object := range map[string]any{
		"members": membersOf(&nodepb.MembersResponse{View: fine(), Members: manyMembers()}),
		"drain":   evacuationOf(evacuated("drain", "done", "", "moved")),
		"cordon":  cordonObject{},
		"images":  imagesOf(&nodepb.ImagesResponse{View: fine(), Images: manyImages()}),
		"vms":     vmsOf(&question{snapshots: true}, &nodepb.VMsResponse{View: fine(), Vms: append(manyVMs(), withSnapshots()...)}),
	} {
		text, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range keys(t, text) {
			if !strings.Contains(doc, "`"+key+"`") {
				t.Errorf("docs/cli.md does not have the key %s of %s", key, name)
			}
		}
	}
	for _, state := range []string{stateUp, stateOffline, stateNoAgent, stateAgentDown, stateIncompatible, stateNoLink, stateNoCorosync, stateNotInPVE} {
		if !strings.Contains(doc, "`"+state+"`") {
			t.Errorf("docs/cli.md does not have the state %s", state)
		}
	}
}

// keys are all keys of a JSON text, at every depth.
func keys(t *testing.T, text []byte) []string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, inner := range v {
				out = append(out, k)
				walk(inner)
			}
		case []any:
			for _, inner := range v {
				walk(inner)
			}
		}
	}
	walk(v)
	return out
}

func TestSpan(t *testing.T) {
	for ms, want := range map[int64]string{
		0: "0.0s", 480: "0.4s", 9_999: "9.9s", 10_000: "10s", 59_999: "59s", 119_999: "119s", 120_000: "2m", 7_199_999: "119m",
		7_200_000: "2h", 172_799_999: "47h", 172_800_000: "2d", 100 * 86_400_000: "100d",
	} {
		if got := span(ms); got != want {
			t.Errorf("%d ms: %s, want %s", ms, got, want)
		}
	}
}
