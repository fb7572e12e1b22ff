package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// stub answers Members with its name; what is held is answered later.
type stub struct {
	nodepb.UnimplementedNodeServer
	name    string
	entered chan struct{} // nil: answer at once
	release chan struct{}
	peer    func(context.Context)
}

func (s *stub) Members(ctx context.Context, _ *nodepb.MembersRequest) (*nodepb.MembersResponse, error) {
	if s.peer != nil {
		s.peer(ctx)
	}
	if s.entered != nil {
		close(s.entered)
		select {
		case <-s.release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &nodepb.MembersResponse{View: &nodepb.View{Node: s.name}}, nil
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

// running is a server that runs; stop ends it and returns what Run returned.
type running struct {
	*Server
	cancel context.CancelFunc
	done   chan error
}

func run(t *testing.T, cfg ServerConfig) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r := &running{Server: NewServer(cfg), cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- r.Run(ctx) }()
	select {
	case <-r.Ready():
	case err := <-r.done:
		cancel()
		t.Fatalf("run: %v", err)
	}
	return r
}

func (r *running) stop() error {
	r.cancel()
	return <-r.done
}

// refused runs a server that must not come up.
func refused(t *testing.T, socket string) error {
	t.Helper()
	s := NewServer(ServerConfig{Socket: socket, Service: &stub{}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
		cancel()
		t.Fatalf("it serves on %s; end: %v", socket, <-done)
	case err := <-done:
		if err == nil {
			t.Fatalf("%s: no error", socket)
		}
		return err
	}
	return nil
}

func client(t *testing.T, socket string) nodepb.NodeClient {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return nodepb.NewNodeClient(conn)
}

func answers(t *testing.T, socket, want string) {
	t.Helper()
	resp, err := client(t, socket).Members(t.Context(), &nodepb.MembersRequest{}, grpc.WaitForReady(false))
	if err != nil || resp.GetView().GetNode() != want {
		t.Errorf("got %v, %v; want %s", resp, err, want)
	}
}

func TestServer(t *testing.T) {
	socket := filepath.Join(shortDir(t), "run", "agent.sock")
	var seen PeerInfo
	s := run(t, ServerConfig{Socket: socket, Service: &stub{name: "a", peer: func(ctx context.Context) {
		p, _ := peer.FromContext(ctx)
		seen, _ = p.AuthInfo.(PeerInfo)
	}}})
	answers(t, socket, "a")
	if seen.PID != int32(os.Getpid()) || int(seen.UID) != os.Getuid() || int(seen.GID) != os.Getgid() {
		t.Errorf("the peer is %+v", seen)
	}
	for path, want := range map[string]fs.FileMode{filepath.Dir(socket): 0o700 | fs.ModeDir, socket: 0o600 | fs.ModeSocket} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	again := run(t, ServerConfig{Socket: socket, Service: &stub{name: "b"}})
	answers(t, socket, "b")
	if err := again.stop(); err != nil {
		t.Error(err)
	}
}

// TestDeadAgentsSocket leaves a socket as kill -9 does.
func TestDeadAgentsSocket(t *testing.T) {
	socket := filepath.Join(shortDir(t), "agent.sock")
	l := listen(t, socket)
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := run(t, ServerConfig{Socket: socket, Service: &stub{name: "a"}})
	answers(t, socket, "a")
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

func listen(t *testing.T, socket string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLivingAgentsSocket(t *testing.T) {
	socket := filepath.Join(shortDir(t), "agent.sock")
	first := run(t, ServerConfig{Socket: socket, Service: &stub{name: "first"}})
	if err := refused(t, socket); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), socket) {
		t.Errorf("a second agent: %v", err)
	}
	answers(t, socket, "first")
	if err := os.Remove(socket); err != nil { // somebody cleans up: the agent that lives still has it
		t.Fatal(err)
	}
	if err := refused(t, socket); !errors.Is(err, ErrInUse) {
		t.Errorf("a second agent, without the socket: %v", err)
	}
	if err := first.stop(); err != nil {
		t.Error(err)
	}
}

// TestStrangersSocket is somebody's who knows nothing of our lock.
func TestStrangersSocket(t *testing.T) {
	socket := filepath.Join(shortDir(t), "agent.sock")
	l := listen(t, socket)
	if err := refused(t, socket); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(socket); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestOnlyOneOfManyServes starts many agents at once over a dead one's socket.
func TestOnlyOneOfManyServes(t *testing.T) {
	socket := filepath.Join(shortDir(t), "agent.sock")
	l := listen(t, socket)
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var group sync.WaitGroup
	const agents = 8
	results := make(chan error, agents)
	ready := make(chan string, agents)
	for i := range agents {
		group.Go(func() {
			name := fmt.Sprint(i)
			s := NewServer(ServerConfig{Socket: socket, Service: &stub{name: name}})
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			select {
			case <-s.Ready():
				ready <- name
				results <- <-done
			case err := <-done:
				results <- err
			}
		})
	}
	for range agents - 1 {
		if err := <-results; !errors.Is(err, ErrInUse) {
			t.Errorf("got %v", err)
		}
	}
	answers(t, socket, <-ready)
	cancel()
	if err := <-results; err != nil {
		t.Error(err)
	}
	group.Wait()
}

func TestPlacesThatCannotBe(t *testing.T) {
	dir := shortDir(t)
	file := filepath.Join(dir, "file")
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.WriteFile(file, []byte("precious"), 0o600), os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	for socket, want := range map[string]string{
		file:                              "something else is there",
		filepath.Join(file, "agent.sock"): "not a directory",
		filepath.Join(open, "agent.sock"): "others may write there (mode 0777)",
		filepath.Join(dir, strings.Repeat("x", 200)): "more than the 107",
	} {
		if err := refused(t, socket); !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", socket, err)
		}
	}
	if text, err := os.ReadFile(file); string(text) != "precious" || err != nil {
		t.Errorf("the file that was there: %q, %v", text, err)
	}
	if err := os.Chmod(open, 0o777|fs.ModeSticky); err != nil { // as /tmp
		t.Fatal(err)
	}
	s := run(t, ServerConfig{Socket: filepath.Join(open, "agent.sock"), Service: &stub{}})
	if err := s.stop(); err != nil {
		t.Error(err)
	}
}

func TestStopLetsCallsEnd(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprint(patient), func(t *testing.T) {
			socket := filepath.Join(shortDir(t), "agent.sock")
			service := &stub{name: "a", entered: make(chan struct{}), release: make(chan struct{})}
			cfg := ServerConfig{Socket: socket, Service: service, Drain: time.Minute}
			if !patient {
				cfg.Drain = time.Millisecond
			}
			s := run(t, cfg)
			c, called := client(t, socket), make(chan error, 1)
			go func() {
				_, err := c.Members(t.Context(), &nodepb.MembersRequest{})
				called <- err
			}()
			<-service.entered
			s.cancel()
			if patient {
				gone(t, socket) // nobody new, but who is in may finish
				select {
				case err := <-called:
					t.Fatalf("the call under way was ended: %v", err)
				case <-time.After(100 * time.Millisecond): // it is left alone
				}
				close(service.release)
			}
			if err := <-called; (err == nil) != patient {
				t.Errorf("the call under way: %v", err)
			}
			if err := s.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// gone waits until nobody answers on the socket.
func gone(t *testing.T, socket string) {
	t.Helper()
	for t.Context().Err() == nil {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			return
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// dialEnv makes a test binary dial a socket instead of testing.
const dialEnv = "PVE_RIGAUD_TEST_DIAL"

// What dialAs found.
const (
	exitServed  = 3
	exitNoEntry = 4 // the file system refused
	exitClosed  = 5 // the agent hung up at once
	exitOther   = 6
)

// dialAs is the other process: it opens an HTTP/2 connection as a gRPC client does, and looks whether it is answered.
func dialAs(path string) int {
	conn, err := net.Dial("unix", path)
	if errors.Is(err, fs.ErrPermission) {
		return exitNoEntry
	}
	if err != nil {
		return exitOther
	}
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00" // and empty SETTINGS
	_, werr := io.WriteString(conn, preface)
	n, rerr := conn.Read(make([]byte, 1))
	switch {
	case n == 1:
		return exitServed
	case werr != nil || rerr != nil:
		return exitClosed
	}
	return exitOther
}

// as runs the test binary as another user and returns its exit code.
func as(t *testing.T, binary, socket string, uid uint32) int {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary)
	cmd.Env = []string{dialEnv + "=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("as uid %d: %v", uid, err)
	}
	return exit.ExitCode()
}

func TestSocketIsForRootOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("skipped: needs to become other users; enable with: sudo make test")
	}
	dir := shortDir(t)
	binary := filepath.Join(dir, "dial") // go test's own is where other users cannot go
	raw, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.WriteFile(binary, raw, 0o755), os.Chmod(binary, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	socket := filepath.Join(dir, "run", "agent.sock")
	s := run(t, ServerConfig{Socket: socket, Service: &stub{}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	const nobody = 65534
	steps := []struct {
		what string
		open func() error
		uid  uint32
		want int
	}{
		{"root", func() error { return nil }, 0, exitServed},
		{"another user, closed directory", func() error { return nil }, nobody, exitNoEntry},
		{"another user, open directory", func() error { return os.Chmod(filepath.Dir(socket), 0o755) }, nobody, exitNoEntry},
		{"another user, all open", func() error { return os.Chmod(socket, 0o777) }, nobody, exitClosed},
		{"root, all open", func() error { return nil }, 0, exitServed},
	}
	for _, step := range steps {
		if err := step.open(); err != nil {
			t.Fatal(err)
		}
		if got := as(t, binary, socket, step.uid); got != step.want {
			t.Errorf("%s: exit code %d, want %d", step.what, got, step.want)
		}
	}
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if n := strings.Count(log.String(), "uid=65534"); n != 1 {
		t.Errorf("%d lines about the refused user:\n%s", n, &log)
	}
}

func TestCredentialsAreForServersOnUnixSockets(t *testing.T) {
	c := peerCredentials{}
	if _, _, err := c.ClientHandshake(t.Context(), "", nil); !errors.Is(err, errClient) {
		t.Errorf("client: %v", err)
	}
	a, b := net.Pipe()
	defer func() { _ = errors.Join(a.Close(), b.Close()) }()
	if _, _, err := c.ServerHandshake(a); err == nil || !strings.Contains(err.Error(), "no unix socket") {
		t.Errorf("a pipe: %v", err)
	}
}
