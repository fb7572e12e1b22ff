package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// TestAStoppedDeleteIsEndedByTheNextStart: nobody asks for it again when the manager has gone, too.
func TestAStoppedDeleteIsEndedByTheNextStart(t *testing.T) {
	t.Parallel()
	s := start(t)
	before := s.inventory()
	id := s.create(everyStep("web-01"))
	release := s.sim.HoldTasks("qmdestroy")
	defer release()
	ctx, giveUp := context.WithCancel(s.ctx)
	done := make(chan error)
	go func() {
		_, err := s.agent.Provider.Delete(ctx, &providerpb.DeleteRequest{Id: id})
		done <- err
	}()
	s.eventually("PVE destroys", func() bool { return s.sim.TaskCount("qmdestroy") == 1 })
	giveUp()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("the caller gave up and got %v", err)
	}
	s.stop()
	s.startAgent()
	release()
	s.eventually("the VM is gone", func() bool { return len(s.records()) == 0 })
	s.eventually("the operation is over", func() bool { return strings.Contains(s.scrape("/metrics"), `running{kind="delete"} 0`) })
	s.nothingLeft(before)
	s.must(s.delete(id))
}

// TestStoppingLetsRequestsEnd that are under way, for a while; balancers hear of it first.
func TestStoppingLetsRequestsEnd(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	conn, err := grpc.NewClient(s.agent.Conn.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	defer func() { s.must(conn.Close()) }()
	ctx, stopWatching := context.WithCancel(s.ctx)
	defer stopWatching()
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(ctx, &grpc_health_v1.HealthCheckRequest{Service: providerpb.Provider_ServiceDesc.ServiceName})
	s.must(err)
	s.serving(watch, grpc_health_v1.HealthCheckResponse_SERVING)

	release := s.sim.HoldTasks("qmdestroy")
	defer release()
	deleted, stopped := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := providerpb.NewProviderClient(conn).Delete(s.ctx, &providerpb.DeleteRequest{Id: "500"})
		deleted <- err
	}()
	s.eventually("PVE destroys", func() bool { return s.sim.TaskCount("qmdestroy") == 1 })
	go func() { stopped <- s.agent.Stop() }()
	s.serving(watch, grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	stopWatching()
	select {
	case err := <-deleted:
		t.Fatalf("the request ended before its work: %v", err)
	case err := <-stopped:
		t.Fatalf("the agent ended before a request that is under way: %v", err)
	default:
	}
	release()
	if err := <-deleted; err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// serving waits for a health status.
func (s *stage) serving(watch grpc_health_v1.Health_WatchClient, want grpc_health_v1.HealthCheckResponse_ServingStatus) {
	s.Helper()
	for {
		h, err := watch.Recv()
		if err != nil {
			s.Fatalf("waiting for %s: %v", want, err)
		}
		if h.GetStatus() == want {
			return
		}
	}
}

func TestHealthPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, path := range []string{"/healthz", "/readyz"} {
		if code, body := s.get(path); code != http.StatusOK || body != "ok\n" {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	s.must(s.sim.SetQuorate(false))
	s.troubled("quorum")
	if code, body := s.get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "quorum") {
		t.Errorf("/readyz without quorum: %d %q", code, body)
	}
	if code, _ := s.get("/healthz"); code != http.StatusOK {
		t.Errorf("/healthz without quorum: %d, but a restart would not help", code)
	}
	if code, _ := s.get("/debug/pprof/"); code != http.StatusNotFound {
		t.Errorf("/debug/pprof/: %d", code)
	}
	h, err := grpc_health_v1.NewHealthClient(s.agent.Conn).Check(s.ctx, &grpc_health_v1.HealthCheckRequest{Service: providerpb.Provider_ServiceDesc.ServiceName})
	if err != nil || h.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("grpc.health.v1: %v, err %v", h, err)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.add(500, nil)
	s.on("500")
	_, err := s.describe("abc")
	refused(t, err, codes.InvalidArgument)
	page := s.scrape("/metrics")
	for _, want := range []string{
		"go_goroutines ", "process_resident_memory_bytes ", "pve_rigaud_build_info{",
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Power",grpc_service="provider.v1.Provider",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Describe",grpc_service="provider.v1.Provider",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Delete",grpc_service="provider.v1.Provider",grpc_type="unary"} 0`,
		`pve_rigaud_pve_api_request_duration_seconds_count{code="200",method="POST",path="/nodes/{node}/qemu/{vmid}/status/start"} 1`,
		`pve_rigaud_operations_running{kind="create"} 0`, `pve_rigaud_operations_running{kind="power"} 0`, "pve_rigaud_operations_oldest_seconds 0",
		"pve_rigaud_journal_bytes ", "pve_rigaud_qmp_sessions_total ", "pve_rigaud_qmp_busy_total ", "pve_rigaud_qmp_longest_hold_seconds ",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(page, "vmid=\"500\"") || strings.Contains(page, "/qemu/500") {
		t.Error("a series for one VM: their number has no bound")
	}
}

func TestTwoAgentsWithOneJournal(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, err := s.rig.StartAgent(s.ctx, "pve1", []string{"--listen-grpc=127.0.0.1:0", "--metrics=127.0.0.1:0"})
	if err == nil || !strings.Contains(err.Error(), "journal") || !strings.Contains(err.Error(), "running already") {
		t.Errorf("a second agent on the same state directory: %v", err)
	}
	s.validate()
}

func TestAnAddressInUse(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, err := s.rig.StartAgent(s.ctx, "pve1", []string{"--state-dir=" + filepath.Join(s.rig.Dir, "other")})
	if err == nil || !strings.Contains(err.Error(), "listen.grpc") {
		t.Errorf("a second agent on the same address: %v", err)
	}
}

// notified receives what an agent tells systemd. It changes the environment, so that its test cannot run beside others.
func notified(t *testing.T) func() []string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	t.Setenv("WATCHDOG_USEC", "20000")
	var seen []string
	return func() []string {
		buf := make([]byte, 4096)
		for {
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			n, err := conn.Read(buf)
			if err != nil {
				return seen
			}
			seen = append(seen, string(buf[:n]))
		}
	}
}

//nolint:paralleltest // sets environment variables
func TestSystemdIsTold(t *testing.T) {
	told := notified(t)
	s := raise(t)
	if got := told(); len(got) != 0 {
		t.Errorf("told %q before the start", got)
	}
	s.startAgent()
	s.eventually("ready, and alive twice", func() bool {
		got := told()
		watchdogs := 0
		for _, m := range got {
			if m == "WATCHDOG=1" {
				watchdogs++
			}
		}
		return slices.Contains(got, "READY=1") && watchdogs >= 2
	})
	if slices.Contains(told(), "STOPPING=1") {
		t.Errorf("stopping before it was asked to: %q", told())
	}
	s.stop()
	if got := told(); !slices.Contains(got, "STOPPING=1") {
		t.Errorf("told %q, and nothing of the stop", got)
	}
}

// TestUnmountedPMXCFS: everything that is not known is an error, never an empty world. When /etc/pve is back the agent
// goes on without a restart.
func TestUnmountedPMXCFS(t *testing.T) {
	t.Parallel()
	for name, mount := range map[string]setting{"a directory": {}, "FUSE": fuse} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := start(t, mount)
			s.add(500, nil)
			id := s.create(request("web-01"))
			s.must(s.sim.SetMounted("pve1", false))
			s.failsWithoutPMXCFS(id)
			s.must(s.sim.SetMounted("pve1", true))
			s.healthy()
			s.described(id)
			s.on("500")
			s.must(s.delete(id))
			if got := len(s.list()); got != 1 {
				t.Errorf("%d VMs are listed, want one", got)
			}
		})
	}
}

// failsWithoutPMXCFS checks every RPC; id and 500 are VMs, 12345 is none.
func (s *stage) failsWithoutPMXCFS(id string) {
	s.Helper()
	s.eventually("Describe fails", func() bool {
		d, err := s.describe(id)
		if err == nil && !d.GetExists() {
			s.Fatal("a VM is said to be gone because /etc/pve is")
		}
		return err != nil
	})
	const place = "/etc/pve"
	for _, id := range []string{id, "12345"} {
		_, err := s.describe(id)
		refused(s, err, codes.FailedPrecondition, strings.SplitN(id, "-", 2)[0], place)
	}
	_, err := s.tryPower("500", powerOn)
	refused(s, err, codes.FailedPrecondition, "500", place)
	for _, gone := range []string{"500", "12345"} {
		refused(s, s.delete(gone), codes.FailedPrecondition, gone, place)
	}
	_, err = s.agent.Provider.Create(s.ctx, request("web-02"))
	refused(s, err, codes.FailedPrecondition, "web-02", place)
	s.troubled(place)
	_, err = s.agent.Provider.ListVMs(s.ctx, &providerpb.ListVMsRequest{})
	refused(s, err, codes.FailedPrecondition, "ListVMs", place)
}

// TestQuorumIsLostInTheMiddle of a create. PVE itself cannot take back then what it has made: it leaves a config that
// says "lock: clone" and nothing else, which PVE refuses to delete. With quorum everything of it goes, and a repeat works.
func TestQuorumIsLostInTheMiddle(t *testing.T) {
	t.Parallel()
	s := start(t, fuse, quick)
	before := s.inventory()
	release := s.sim.HoldTasks("qmclone")
	defer release()
	c := s.began(everyStep("web-01"))
	s.eventually("PVE has begun", func() bool { _, err := s.sim.Config(10000); return err == nil })
	s.must(s.sim.SetQuorate(false))
	release()
	s.eventually("PVE has failed for want of quorum", func() bool { return s.sim.Tasks()[0].Exit() != "" })
	d, err := s.describe(c.GetId())
	if err == nil && (!d.GetExists() || d.GetPowerState() != "Off") {
		t.Errorf("without quorum the VM in creation is %v", d)
	}
	if err != nil { // it is known already that there is none
		refused(t, err, codes.FailedPrecondition, "10000", "no quorum")
	}
	s.must(s.sim.SetQuorate(true))
	if failure := s.outcome(c.GetTask()); !strings.Contains(failure, "clone VM 9000 to VM 10000") || !strings.Contains(failure, "10000.conf") {
		t.Errorf("the task says %q", failure)
	}
	s.nothingLeft(before)
	id := s.create(everyStep("web-01"))
	s.wellFormed(id)
	s.must(s.delete(id))
	s.nothingLeft(before)
}

// TestPMXCFSThatComesBackBeforeTheAgentIsReady: it was there when the configuration was read, and is gone since.
func TestPMXCFSThatComesBackBeforeTheAgentIsReady(t *testing.T) {
	t.Parallel()
	s := raise(t)
	// By way of pvedaemon: the CA that verifies pveproxy is a file of /etc/pve.
	cfg, err := s.rig.Load("pve1", "--watch=100ms", "--pve-endpoint="+s.sim.Node("pve1").Daemon())
	s.must(err)
	s.must(s.sim.SetMounted("pve1", false))
	var said text
	a, err := agent.New(s.ctx, cfg, slog.New(slog.NewTextHandler(&said, nil)))
	s.must(err)
	ctx, cancel := context.WithCancel(s.ctx)
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	s.eventually("it has looked", func() bool { return strings.Contains(said.String(), "not readable") })
	select {
	case <-a.Ready():
		t.Error("ready without /etc/pve")
	default:
	}
	s.must(s.sim.SetMounted("pve1", true))
	select {
	case <-a.Ready():
	case <-time.After(s.patience):
		t.Fatal("not ready although /etc/pve is back")
	}
	c, err := dial(t, a.GRPCAddr(), insecure.NewCredentials()).Create(s.ctx, request("web-01"))
	if err != nil || c.GetId() == "" {
		t.Errorf("%v, err %v", c, err)
	}
}

// text is what was written, for a writer and a reader at the same time.
type text struct {
	mu  sync.Mutex // guards all
	all []byte
}

func (x *text) Write(b []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.all = append(x.all, b...)
	return len(b), nil
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return string(x.all)
}
