package qmptest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Stats is what a socket has seen since it was made.
type Stats struct {
	Connections int            // clients that were served
	Sessions    int            // of these, the ones that sent something
	Open        bool           // a client is being served now
	LongestHold time.Duration  // the longest time that one client was served, also the present one
	Commands    map[string]int // by name, also the ones that were refused
}

// listen makes a unix socket with the queue of QEMU's chardev sockets: one,
// which Linux takes to mean two.
func listen(path string) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer func() { _ = file.Close() }() // FileListener has its own copy
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return nil, fmt.Errorf("bind %s: %w", path, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		return nil, fmt.Errorf("listen %s: %w", path, err)
	}
	return net.FileListener(file)
}

// server serves one client of a socket after the other.
type server struct {
	path   string
	ln     net.Listener
	talk   func(net.Conn) // one client, until it or close ends the connection
	closed chan struct{}

	mu      sync.Mutex // guards all below
	conn    net.Conn   // nil: nobody
	since   time.Time  // when conn was taken
	spoke   bool       // conn has sent something
	stopped bool
	stats   Stats
}

func newServer(path string, talk func(net.Conn)) (*server, error) {
	ln, err := listen(path)
	if err != nil {
		return nil, err
	}
	return &server{
		path: path, ln: ln, talk: talk, closed: make(chan struct{}),
		stats: Stats{Commands: map[string]int{}},
	}, nil
}

// run serves until close.
func (s *server) run() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		if s.begin(c) {
			s.talk(c)
		}
		s.end(c)
	}
}

func (s *server) begin(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.conn, s.since, s.spoke = c, time.Now(), false
	s.stats.Connections++
	return true
}

func (s *server) end(c net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = c.Close()
	if s.conn != nil {
		s.stats.LongestHold = max(s.stats.LongestHold, time.Since(s.since))
	}
	s.conn = nil
}

// heard notes a command of the present client.
func (s *server) heard(command string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.spoke {
		s.spoke = true
		s.stats.Sessions++
	}
	s.stats.Commands[command]++
}

// wait lets d pass and reports whether the server is still open.
func (s *server) wait(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.closed:
		return false
	}
}

// close ends the connection and makes run return.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	s.stopped = true
	close(s.closed)
	_ = s.ln.Close()
	if s.conn != nil {
		_ = s.conn.Close()
	}
}

func (s *server) snapshot() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Open = s.conn != nil
	if st.Open {
		st.LongestHold = max(st.LongestHold, time.Since(s.since))
	}
	st.Commands = make(map[string]int, len(s.stats.Commands))
	for name, n := range s.stats.Commands {
		st.Commands[name] = n
	}
	return st
}
