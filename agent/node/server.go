package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

const (
	defaultDrain = 2 * time.Second
	// maxSocketPath is what fits into the kernel's sockaddr_un.
	maxSocketPath = 107
	dialTimeout   = time.Second
)

// ErrInUse says that a living agent serves on the socket.
var ErrInUse = errors.New("another agent serves there")

// ServerConfig says where a Server serves what.
type ServerConfig struct {
	// Socket is the path of the unix socket. Its directory is made if it is missing, with access for its owner only.
	Socket  string
	Service nodepb.NodeServer
	// Options are for the gRPC server, such as interceptors; no credentials.
	Options []grpc.ServerOption
	// Drain is how long calls under way may go on after a stop was asked for; default 2 s.
	Drain time.Duration
	Log   *slog.Logger // default: discard
}

// Server serves the node service on a unix socket for root of this node. Two locks are on it: the socket's mode, 0600,
// and the uid of whoever connects, which must be root's or our own.
type Server struct {
	cfg    ServerConfig
	server *grpc.Server
	ready  chan struct{}
}

// NewServer makes a server; nothing is created before Run, which may be called once.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Drain <= 0 {
		cfg.Drain = defaultDrain
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	options := append([]grpc.ServerOption{grpc.Creds(peerCredentials{log: cfg.Log})}, cfg.Options...)
	s := &Server{cfg: cfg, server: grpc.NewServer(options...), ready: make(chan struct{})}
	nodepb.RegisterNodeServer(s.server, cfg.Service)
	return s
}

// String names the task.
func (s *Server) String() string { return "node socket" }

// Ready is closed when the socket takes connections.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx ends, and removes the socket. The error satisfies errors.Is(err, ErrInUse) if a living agent has
// the socket.
func (s *Server) Run(ctx context.Context) (err error) {
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	listener, err := s.listen(ctx)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(listener) }() // closes the listener, which removes the socket
	close(s.ready)
	select {
	case err := <-failed:
		return fmt.Errorf("serve %s: %w", s.cfg.Socket, err)
	case <-ctx.Done():
	}
	timer := time.AfterFunc(s.cfg.Drain, s.server.Stop)
	defer timer.Stop()
	s.server.GracefulStop()
	if err := <-failed; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve %s: %w", s.cfg.Socket, err)
	}
	return nil
}

// lock takes the file beside the socket that says which process owns it: the kernel drops the lock with the process,
// so that of two agents that start at once only one takes the place of a dead one. The file stays: to remove it would
// let a third one lock a new file of that name.
func (s *Server) lock() (*os.File, error) {
	if len(s.cfg.Socket) > maxSocketPath {
		return nil, fmt.Errorf("socket %s: the path has %d bytes, more than the %d a unix socket's may have", s.cfg.Socket, len(s.cfg.Socket), maxSocketPath)
	}
	dir := filepath.Dir(s.cfg.Socket)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.cfg.Socket+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the socket: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrInUse
	}
	return nil, errors.Join(fmt.Errorf("lock the socket %s: %w", s.cfg.Socket, err), f.Close())
}

// checkDir refuses a directory in which others could put a socket of theirs in the place of ours. A sticky one, such as
// /tmp, does not let them.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the directory of the socket: %w", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("directory of the socket %s: is none", dir)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("directory of the socket %s: others may write there (mode %04o)", dir, info.Mode().Perm())
	}
	return nil
}

// listen makes the socket, in the place of a dead agent's if need be. The caller holds the lock.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	if err := s.clear(ctx); err != nil {
		return nil, err
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", s.cfg.Socket)
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("make the socket private: %w", err), l.Close())
	}
	return l, nil
}

// clear removes what a dead agent left. Anything but a socket, or one that still answers, was not left by one.
func (s *Server) clear(ctx context.Context) error {
	info, err := os.Lstat(s.cfg.Socket)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at the socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket %s: something else is there (%s), and is not removed", s.cfg.Socket, info.Mode())
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", s.cfg.Socket)
	if err == nil {
		return errors.Join(fmt.Errorf("socket %s: %w", s.cfg.Socket, ErrInUse), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("see whether somebody serves on the socket: %w", err)
	}
	if err := os.Remove(s.cfg.Socket); err != nil {
		return fmt.Errorf("remove the socket of a dead agent: %w", err)
	}
	return nil
}
