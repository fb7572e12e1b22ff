// Package forward takes requests to the node that can answer them.
//
// One unary server interceptor asks a Router whose a request is. It is either
// handled here, or sent to that node's agent with a marker that says: do not
// forward this again. The marker counts only from another agent, which proves
// by its certificate what it is. An agent that gets a marked request it cannot
// serve answers Elsewhere, and the sender looks once more.
//
// Connections to other agents are made when they are needed and kept. One that
// is silent while calls wait for it is probed, so that a dead node fails those
// calls in less than a second instead of at their deadlines.
package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Router knows where requests belong. Its errors are gRPC status errors and go
// to the client as they are.
type Router interface {
	// Route says which node answers this request of a method
	// ("/package.Service/Method"). For a request that another agent has
	// forwarded, Forwarded(ctx) says so.
	Route(ctx context.Context, method string, req any) (Way, error)
	// Answered is told what became of a request whose Way was a choice: nil, the
	// error of the node that was asked, or a *PeerError.
	Answered(ctx context.Context, way Way, err error)
	// Refresh looks at the world anew: the next Route must not answer from what
	// was known before.
	Refresh(ctx context.Context) error
	// Unreachable is the answer to a request whose node cannot be asked.
	Unreachable(ctx context.Context, u Unreachable) (resp any, err error)
}

// A Way is where a request goes.
type Way struct {
	Node string
	// Note is set if Node was chosen among several that would do: it says why or
	// for what, in the Router's own words, and the handler finds it with Note.
	// If the node sends the request elsewhere, or cannot be asked, the Router
	// chooses again.
	Note string
}

// Unreachable is a request that its node did not answer.
type Unreachable struct {
	Method string // "/package.Service/Method"
	Req    any
	Node   string
	// Since is when the node first failed to answer after it last did. It is
	// zero if the node answers, and only this request was not answered in time.
	Since time.Time
	Err   error // why, for people
	Sent  bool  // the request may have been carried out
}

// Config says who we are and how the others are found.
type Config struct {
	Node     string   // our own name in PVE
	Services []string // gRPC services that are routed, such as "provider.v1.Provider"; all others are handled here
	Router   Router
	// Address is where the agent of a node answers, "host:port"; false: unknown.
	Address func(node string) (addr string, ok bool)
	// Credentials are for the connection to a node: its agent must prove to be
	// that node's.
	Credentials func(node string) credentials.TransportCredentials
	// Peer says which node's agent is the caller, by its certificate. The
	// marker is believed only if there is one.
	Peer func(ctx context.Context) (node string, ok bool)
	// Client is the identity of the direct caller.
	Client func(ctx context.Context) string
	// Dial connects to an address; nil: over TCP. It ends when ctx does.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Log  *slog.Logger // nil: none
}

// Forwarder is one agent's connections to the others, and the interceptor that
// uses them. They are usable while Run runs.
type Forwarder struct {
	cfg     Config
	answers map[string]protoreflect.MessageType // of each routed method
	ready   chan struct{}

	// mu guards the fields below.
	mu       sync.RWMutex
	lifetime context.Context // of Run; nil before it and after it
	links    map[string]*link
	// tasks are what Run waits for at its end.
	tasks sync.WaitGroup
}

// New makes a Forwarder; nothing runs before Run.
func New(cfg Config) *Forwarder {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dial == nil {
		cfg.Dial = dialTCP
	}
	return &Forwarder{cfg: cfg, answers: answerTypes(cfg.Services), ready: make(chan struct{}), links: make(map[string]*link)}
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", addr)
}

func (f *Forwarder) String() string { return "forwarding" }

// Ready is closed when requests can be forwarded.
func (f *Forwarder) Ready() <-chan struct{} { return f.ready }

// Run lets requests be forwarded until ctx ends, and closes connections that
// nobody has used for idleTime. At its end it closes all of them; calls under
// way fail.
func (f *Forwarder) Run(ctx context.Context) error {
	f.mu.Lock()
	f.lifetime = ctx
	f.mu.Unlock()
	close(f.ready)
	tick := time.NewTicker(idleTime / 4)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case now := <-tick.C:
			for _, l := range f.all() {
				l.closeIdle(now)
			}
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	f.lifetime = nil // from here on nothing starts
	f.mu.Unlock()
	f.tasks.Wait()
	return nil
}

var errStopped = errors.New("this agent is not running")

// start runs task until it ends, and Run waits for it. It is false while Run
// does not run.
func (f *Forwarder) start(task func(ctx context.Context)) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	ctx := f.lifetime
	if ctx == nil {
		return false
	}
	f.tasks.Go(func() { task(ctx) })
	return true
}

// Link is the state of the connection to one node, for people and metrics.
type Link struct {
	Node      string
	Addr      string    // where its agent was last tried; "" if that was never known
	Since     time.Time // of the first failure after the last success; zero: it answers
	LastError string    // "" if it answers
	InFlight  int       // calls it has not answered yet
	Forwarded uint64    // calls it has answered
	Failed    uint64    // calls it could not be asked, or did not answer
}

// Links are all nodes that were ever called, sorted by name.
func (f *Forwarder) Links() []Link {
	var all []Link
	for _, l := range f.all() {
		all = append(all, l.state())
	}
	slices.SortFunc(all, func(a, b Link) int { return strings.Compare(a.Node, b.Node) })
	return all
}

func (f *Forwarder) all() []*link {
	f.mu.RLock()
	defer f.mu.RUnlock()
	all := make([]*link, 0, len(f.links))
	for _, l := range f.links {
		all = append(all, l)
	}
	return all
}

// link is the one to a node.
func (f *Forwarder) link(node string) *link {
	f.mu.RLock()
	l := f.links[node]
	f.mu.RUnlock()
	if l != nil {
		return l
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.links[node] == nil {
		f.links[node] = &link{forwarder: f, node: node}
	}
	return f.links[node]
}
