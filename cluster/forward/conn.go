package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

const (
	// connectTimeout is for everything until the other agent has answered once.
	connectTimeout = 700 * time.Millisecond
	// probeAfter is how long a connection may be silent while calls wait for it;
	// then it must answer a probe within probeTimeout. Both together are how long
	// a call waits for a node that has just died.
	probeAfter   = 250 * time.Millisecond
	probeTimeout = 600 * time.Millisecond
	// The windows are larger than almost all answers, so that none waits for a
	// permission to send on, and fixed, so that gRPC does not measure them.
	streamWindow     = 1 << 20
	connectionWindow = 8 << 20
	// maxAnswer is more than an agent sends its clients: 4 MiB is their limit.
	maxAnswer = 16 << 20
)

var errSpent = errors.New("the connection has ended")

// A conn is one TCP connection to another agent. When that ends, the conn is
// dead: gRPC does not connect anew behind our back.
type conn struct {
	cc     *grpc.ClientConn
	closed chan struct{} // closed when dead is set
	timer  *time.Timer   // fires when the connection may have been silent for long

	// mu guards the fields below.
	mu       sync.Mutex
	dialed   bool
	raw      net.Conn
	dialErr  error
	inFlight int
	heard    time.Time // when it last answered, or since when a call waits
	armed    bool      // timer runs, or watch is looking
	retired  error     // why it takes no new calls; nil: it does
	dead     error     // why it was closed; nil: it was not
}

// dial connects to the agent of node and waits for its first answer.
func dial(ctx context.Context, cfg *Config, node, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	c := &conn{closed: make(chan struct{}), timer: time.NewTimer(time.Hour), heard: time.Now()}
	c.timer.Stop()
	once := func(ctx context.Context, addr string) (net.Conn, error) { return c.dialOnce(ctx, cfg, addr) }
	var err error
	c.cc, err = grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(cfg.Credentials(node)), grpc.WithContextDialer(once),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: connectTimeout}), grpc.WithIdleTimeout(0),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithUserAgent("pve-rigaud"),
		grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		// For a server that takes no new calls, and so no probes.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 2 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	if err := c.firstAnswer(ctx); err != nil {
		c.close(err)
		return nil, errors.Join(fmt.Errorf("connect to %s: %w", addr, err), c.cc.Close())
	}
	return c, nil
}

// dialOnce is what gRPC connects with: it does so once.
func (c *conn) dialOnce(ctx context.Context, cfg *Config, addr string) (net.Conn, error) {
	c.mu.Lock()
	spent := c.dialed
	c.dialed = true
	c.mu.Unlock()
	if spent {
		return nil, errSpent
	}
	raw, err := cfg.Dial(ctx, addr)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.raw, c.dialErr = raw, err
	return raw, err // a connection that comes too late is closed by gRPC
}

// firstAnswer waits until the other side has proved to be an agent.
func (c *conn) firstAnswer(ctx context.Context) error {
	err := c.ask(ctx)
	c.mu.Lock()
	dialErr := c.dialErr
	c.mu.Unlock()
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return errStopped
	case dialErr != nil:
		return dialErr
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %v", connectTimeout)
	case err != nil:
		return err
	}
	// The answer may be here before gRPC has noted that it is connected.
	for state := c.cc.GetState(); state != connectivity.Ready; state = c.cc.GetState() {
		if !c.cc.WaitForStateChange(ctx, state) {
			return errSpent
		}
	}
	return nil
}

// ask asks for the health of the other side. Any answer is one: it lives.
func (c *conn) ask(ctx context.Context) error {
	err := c.cc.Invoke(ctx, grpc_health_v1.Health_Check_FullMethodName, &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
	switch st := status.Convert(err); st.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal:
		return errors.New(st.Message())
	default:
		return nil
	}
}

// begin begins a call, if the connection is good for one.
func (c *conn) begin() bool {
	if c.cc.GetState() != connectivity.Ready {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil { // and gRPC may not have noticed
		return false
	}
	c.inFlight++
	if c.inFlight == 1 {
		c.heard = time.Now()
	}
	if !c.armed { // it is not disarmed by the end of a call: most are short and follow each other
		c.armed = true
		c.timer.Reset(probeAfter)
	}
	return true
}

// end ends a call, which was answered or not. It says why the connection was
// closed, if it was.
func (c *conn) end(answered bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight--
	if answered {
		c.heard = time.Now()
	}
	if c.inFlight == 0 && c.retired != nil {
		c.lockedClose(c.retired)
	}
	return c.dead
}

// retire closes the connection when the calls it carries have ended.
func (c *conn) retire(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = why
	if c.inFlight == 0 {
		c.lockedClose(why)
	}
}

// idle says whether the connection was of no use for idleTime. Of one that calls
// wait for, probes are heard.
func (c *conn) idle(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return now.Sub(c.heard) >= idleTime
}

// close ends the connection and the calls it carries.
func (c *conn) close(why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lockedClose(why)
}

// lockedClose closes the socket itself: gRPC would first say good-bye to a node
// that may not be there, and wait for seconds. watch does the rest.
func (c *conn) lockedClose(why error) {
	if c.dead != nil {
		return
	}
	c.dead = why
	close(c.closed)
	if c.raw != nil {
		_ = c.raw.Close() // nothing is lost: nobody waits for what it carries
	}
}

// watch closes the connection when ctx ends or when it is silent for too long,
// and returns when it is closed.
func (c *conn) watch(ctx context.Context) {
	defer func() { _ = c.cc.Close() }() // it says only that it is closed already
	for {
		select {
		case <-ctx.Done():
			c.close(errStopped)
		case <-c.closed:
			return
		case <-c.timer.C:
			if !c.silent() {
				continue
			}
			if err := c.probe(ctx); err != nil {
				c.close(err)
			}
		}
	}
}

// silent says whether calls wait for a connection that has not answered for
// probeAfter. If not, the timer is set to when that may be.
func (c *conn) silent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inFlight == 0 {
		c.armed = false
		return false
	}
	rest := probeAfter - time.Since(c.heard)
	if rest > 0 {
		c.timer.Reset(rest)
	}
	return rest <= 0
}

// probe makes sure that the other side lives. Only silence says that it does
// not: a server that lets its last calls end takes no probes, and gRPC's
// keepalive watches it then.
func (c *conn) probe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	err := c.ask(ctx)
	timedOut := ctx.Err() != nil
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.dead != nil:
		return c.dead
	case timedOut && c.heard.Before(start):
		return fmt.Errorf("silent for %v, and no answer to a probe", time.Since(c.heard).Round(time.Millisecond))
	case err == nil:
		c.heard = time.Now()
	}
	c.timer.Reset(probeAfter)
	return nil
}
