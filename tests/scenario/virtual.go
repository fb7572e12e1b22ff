package scenario

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/scenario/fabric"
)

// gossipPort is the port of what agents tell each other, a plane of its own in the fabric.
const gossipPort = 7946

// clientHost is where the manager runs.
const clientHost = "manager"

// VirtualConfig describes a Virtual world.
type VirtualConfig struct {
	Dir   string // a short, empty directory; not removed
	Nodes int
	Log   *slog.Logger
	// Directory makes /etc/pve a directory, which takes half the work; but then a node without quorum can write.
	Directory bool
	// Outside runs a function on a goroutine outside of the bubble, where waiting for the kernel does not stop the time.
	Outside func(func())
}

// Virtual is a world in one process, in virtual time: it lives in a bubble of testing/synctest. /etc/pve is a real FUSE
// mount, everything else between the nodes is in memory. No VM can be switched on.
type Virtual struct {
	cfg VirtualConfig
	net *fabric.Network
	sim *pvesim.Cluster

	mu     sync.Mutex // guards what follows, and is held for moments only
	agents map[string]*life
	ahead  map[string]time.Duration // of the nodes' wall clocks

	stop context.CancelFunc // ends what runs in the background
	wg   sync.WaitGroup
}

// life is an agent from its start to its end.
type life struct {
	process *fabric.Process
	cancel  context.CancelFunc
	done    chan struct{}
	err     error  // of Run; when done is closed
	journal []byte // as it was when the agent was killed
	killed  bool
	writes  int // of its journal until it dies, 0: it lives on
}

// NewVirtual starts the simulated cluster, without agents.
func NewVirtual(ctx context.Context, cfg VirtualConfig) (*Virtual, error) {
	v := &Virtual{cfg: cfg, agents: map[string]*life{}, ahead: map[string]time.Duration{}}
	v.net = fabric.New(fabric.Config{Delay: 200 * time.Microsecond, Planes: map[uint16]string{gossipPort: "gossip"}, Seed: 1})
	v.net.AddHost(clientHost, netip.MustParseAddr("10.0.1.1"))
	sim := pvesim.Config{
		Dir: cfg.Dir, Nodes: cfg.Nodes, QEMU: pvesim.None, PMXCFS: pvesim.FUSE, TLS: false, Log: cfg.Log,
		TaskDelay: 300 * time.Millisecond, Scan: time.Second, CorosyncDelay: 3 * time.Second, Network: v.net, Go: cfg.Outside,
	}
	if cfg.Directory {
		sim.PMXCFS = pvesim.Dir
	}
	for i := range cfg.Nodes {
		sim.Addresses = append(sim.Addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}))
		v.net.AddHost(fmt.Sprintf("pve%d", i+1), sim.Addresses[i])
	}
	var err error
	if v.sim, err = pvesim.New(sim); err != nil {
		return nil, err
	}
	v.sim.OnCut(func(from, to string, cut bool) { v.net.Set(from, to, "", fabric.Link{Cut: cut}) })
	v.sim.OnPower(v.power)
	if err := v.sim.Start(ctx); err != nil {
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	v.stop = stop
	v.wg.Go(func() { v.stampRecords(background) })
	return v, v.addTemplates()
}

// addTemplates gives each node a template of its own.
func (v *Virtual) addTemplates() error {
	args, err := v.sim.Config(pvesim.TemplateID)
	if err != nil {
		return err
	}
	for _, n := range v.sim.Nodes() {
		options := map[string]string{"template": "1", "name": TemplateOn(n.Name), "args": args["args"]}
		if err := v.sim.AddVM(pvesim.TemplateID+100+n.Index, n.Name, options); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the agents and the cluster.
func (v *Virtual) Close() error {
	var errs []error
	for _, node := range v.Nodes() {
		errs = append(errs, v.KillAgent(context.Background(), node))
		if l := v.life(node); l != nil {
			<-l.done
		}
	}
	v.stop()
	v.wg.Wait()
	return errors.Join(append(errs, v.sim.Close())...)
}

// Sim is the simulated cluster.
func (v *Virtual) Sim() *pvesim.Cluster { return v.sim }

// Nodes implements World.
func (v *Virtual) Nodes() (names []string) {
	for _, n := range v.sim.Nodes() {
		names = append(names, n.Name)
	}
	return names
}

// Dir implements World.
func (v *Virtual) Dir() string { return v.cfg.Dir }

// power follows the power of a node: its agent dies with it.
func (v *Virtual) power(node string, on bool) {
	h := v.net.Host(node)
	if on {
		h.PowerOn()
		return
	}
	if err := v.kill(node, h.PowerOff); err != nil {
		v.cfg.Log.Error("power off", "node", node, "err", err)
	}
}

// Do implements World.
func (v *Virtual) Do(ctx context.Context, line string) (string, error) {
	if w := strings.Fields(line); len(w) == 3 && w[0] == "node" && w[2] == "on" && v.net.Host(w[1]) != nil {
		v.net.Host(w[1]).PowerOn() // the node's API listens before OnPower's hook is called
	}
	return v.sim.Do(ctx, line)
}

// config is that of a node's agent: the file which the simulated cluster has written, with the times of the real thing.
func (v *Virtual) config(node string) (config.Config, error) {
	cfg, err := config.Load([]string{"--config", v.sim.Node(node).AgentYAML, "--socket="}, func(string) (string, bool) { return "", false })
	return cfg, err
}

func (v *Virtual) life(node string) *life {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.agents[node]
}

// now is the wall clock of a node.
func (v *Virtual) now(node string) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return time.Now().Add(v.ahead[node])
}

// StartAgent implements World.
func (v *Virtual) StartAgent(ctx context.Context, node string) error { return v.start(ctx, node) }

// StartOther implements Versions.
func (v *Virtual) StartOther(ctx context.Context, node, version string, minimum, maximum uint32) error {
	return v.start(ctx, node, agent.WithProtocol(version, cluster.Protocols{Min: minimum, Max: maximum}))
}

// start starts a node's agent unless it runs.
func (v *Virtual) start(ctx context.Context, node string, more ...agent.Option) error {
	last := v.life(node)
	if last != nil {
		if !last.killed && !ended(last) {
			return nil
		}
		if err := v.bury(node, last); err != nil {
			return err
		}
	}
	if !v.net.Host(node).Up() {
		return fmt.Errorf("start the agent of %s: the node is off", node)
	}
	cfg, err := v.config(node)
	if err != nil {
		return err
	}
	l := &life{process: v.net.Host(node).Process("agent"), done: make(chan struct{})}
	options := append([]agent.Option{agent.WithVersion("1.0.0")}, more...)
	options = append(options, agent.WithJournalHook(func(m ops.Moment, _ ops.Event) { v.wrote(node, l, m) }))
	options = append(options, agent.WithNetwork(l.process), agent.WithClock(func() time.Time { return v.now(node) }))
	a, err := agent.New(ctx, cfg, v.cfg.Log.With("node", node), options...)
	if err != nil {
		return fmt.Errorf("agent of %s: %w", node, err)
	}
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	l.cancel = cancel
	go func() {
		defer close(l.done)
		l.err = a.Run(runCtx)
	}()
	v.mu.Lock()
	v.agents[node] = l
	v.mu.Unlock()
	select {
	case <-a.Ready():
		return nil
	case <-l.done:
		return fmt.Errorf("agent of %s ended before it was ready: %w", node, l.err)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func ended(l *life) bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

// bury waits until nothing of a dead agent is left, and makes its files what they were when it died.
func (v *Virtual) bury(node string, l *life) error {
	<-l.done
	if !l.killed {
		return nil
	}
	path := filepath.Join(v.sim.Node(node).State, "journal.db")
	if err := os.WriteFile(path, l.journal, 0o600); err != nil {
		return err
	}
	if !v.net.Host(node).Up() {
		return nil // its /etc/pve comes back with the node
	}
	return v.sim.SetMounted(node, true)
}

// StopAgent implements World.
func (v *Virtual) StopAgent(_ context.Context, node string) error {
	l := v.life(node)
	if l == nil || l.killed || ended(l) {
		return nil
	}
	l.cancel()
	<-l.done
	return l.err
}

// KillAgent implements World.
func (v *Virtual) KillAgent(_ context.Context, node string) error {
	l := v.life(node)
	if l == nil {
		return nil
	}
	return v.kill(node, l.process.Kill)
}

// KillAtWrite implements Journals.
func (v *Virtual) KillAtWrite(_ context.Context, node string, write int) error {
	l := v.life(node)
	if l == nil || l.killed || ended(l) {
		return fmt.Errorf("the agent of %s does not run", node)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	l.writes = write
	return nil
}

// wrote ends an agent right before one of the writes of its journal. What else it does goes on a little longer; but here
// nothing else is under way.
func (v *Virtual) wrote(node string, l *life, m ops.Moment) {
	v.mu.Lock()
	due := m == ops.BeforeWrite && l.writes == 1 && !l.killed
	if m == ops.BeforeWrite && l.writes > 0 {
		l.writes--
	}
	v.mu.Unlock()
	if !due {
		return
	}
	if err := v.end(node, l, l.process.Kill); err != nil {
		v.cfg.Log.Error("kill", "node", node, "err", err)
	}
}

// kill ends a node's agent, if it lives, and its sockets. The agent's goroutines cannot be killed; but from one moment to
// the next they have neither network nor /etc/pve, and what they still write into the journal is taken back. The moment
// is one at which all of them wait for something, so that nothing is torn.
func (v *Virtual) kill(node string, unplug func()) error {
	synctest.Wait()
	l := v.life(node)
	if l == nil || l.killed || ended(l) {
		unplug()
		return nil
	}
	return v.end(node, l, unplug)
}

// end is the end of an agent that lives.
func (v *Virtual) end(node string, l *life, unplug func()) error {
	journal, err := os.ReadFile(filepath.Join(v.sim.Node(node).State, "journal.db"))
	if err != nil {
		return err
	}
	v.mu.Lock()
	l.killed, l.journal = true, journal
	v.mu.Unlock()
	unplug()
	err = v.sim.SetMounted(node, false)
	l.cancel()
	return err
}

// Dial implements World.
func (v *Virtual) Dial(node string) (providerpb.ProviderClient, func() error, error) {
	p := v.net.Host(clientHost).Process("manager")
	conn, err := grpc.NewClient("passthrough:///"+v.sim.Node(node).GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return p.Dial(ctx, "tcp", addr) }))
	if err != nil {
		return nil, nil, err
	}
	return providerpb.NewProviderClient(conn), conn.Close, nil
}

// CutGossip implements World.
func (v *Virtual) CutGossip(_ context.Context, a, b string, cut bool) error {
	v.net.Cut(a, b, "gossip", cut)
	return nil
}

// Lose implements World.
func (v *Virtual) Lose(_ context.Context, a, b string, percent int) error {
	l := fabric.Link{Loss: float64(percent) / 100}
	v.net.Set(a, b, "gossip", l) // all packets are gossip
	v.net.Set(b, a, "gossip", l)
	return nil
}

// SetClock implements World.
func (v *Virtual) SetClock(_ context.Context, node string, ahead time.Duration) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.ahead[node] = ahead
	return nil
}

// RotateGossipKey implements World: the new key is added, then comes first, and the old one goes when all have it.
func (v *Virtual) RotateGossipKey(ctx context.Context) error {
	path := filepath.Join(v.sim.Tree(), "priv/pve-rigaud/gossip.key")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	random := make([]byte, 32)
	_, _ = io.ReadFull(rand.Reader, random)
	fresh := base64.StdEncoding.EncodeToString(random) + "\n"
	for _, keys := range []string{string(old) + fresh, fresh + string(old), fresh} {
		if err := os.WriteFile(path+".new", []byte(keys), 0o600); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
		if err := v.Wait(ctx, time.Minute); err != nil {
			return err
		}
	}
	return nil
}

// Heal implements World.
func (v *Virtual) Heal(ctx context.Context) error {
	v.mu.Lock()
	clear(v.ahead)
	v.mu.Unlock()
	v.net.Heal()
	lines := []string{"heal"}
	for _, node := range v.Nodes() {
		lines = append(lines, "node "+node+" on", "readonly "+node+" off", "vmlist-lag "+node+" 0s")
	}
	var errs []error
	for _, line := range lines {
		_, err := v.Do(ctx, line)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Wait implements World.
func (v *Virtual) Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stampRecords gives files of agents the virtual time within a second of their birth: the kernel knows the real one only,
// which in the bubble is far in the future.
func (v *Virtual) stampRecords(ctx context.Context) {
	root := filepath.Join(v.sim.Tree(), "priv", "pve-rigaud")
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return nil
				}
				if info, err := d.Info(); err == nil && info.ModTime().After(now) {
					_ = os.Chtimes(path, now, now) // it may be gone
				}
				return nil
			})
		}
	}
}

// Faults describes what is out of order in the network now.
func (v *Virtual) Faults() string { return strings.Join(slices.Clip(v.net.Faults()), "; ") }
