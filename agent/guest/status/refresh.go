package status

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
)

// inHand is how far a task that was taken is moved into the future: longer
// than it can take, so that nobody else takes it meanwhile.
const inHand = time.Hour

// ask reads the run state of a process that nobody has asked before, on the
// caller's time. Others who come meanwhile wait for the same answer.
func (t *Tracker) ask(ctx context.Context, v *vm) {
	ctx, cancel := context.WithTimeout(ctx, t.cfg.UserWait)
	defer cancel()
	if !v.asking.CompareAndSwap(false, true) {
		select {
		case <-v.asked:
		case <-ctx.Done():
		}
		return
	}
	defer v.askedEnough()
	v.nextRunstate.Store(int64(t.now() + inHand))
	t.readRunstate(ctx, v, qmp.User)
}

// readRunstate asks QEMU and sets the time for the next read.
func (t *Tracker) readRunstate(ctx context.Context, v *vm, prio qmp.Priority) {
	defer func() { v.nextRunstate.Store(int64(t.now() + t.cfg.RunstateEvery)) }()
	var reply struct {
		Status string `json:"status"`
	}
	err := t.cfg.Gate.Do(ctx, v.qmp, prio, func(s *qmp.Session) error {
		return s.Execute(ctx, "query-status", nil, &reply)
	})
	if err != nil {
		t.cfg.Log.DebugContext(ctx, "run state was not read", "vmid", v.id, "err", err)
		return
	}
	v.setRunstate(reply.Status, t.now())
	v.askedEnough()
}

// refresh hands on what has become old. It does not wait.
func (t *Tracker) refresh(v *vm, st *State, now time.Duration, want Want) {
	if want.Lock == "" && take(&v.nextRunstate, now) {
		t.hand(t.runstates, &v.nextRunstate, func(ctx context.Context) {
			t.readRunstate(ctx, v, qmp.Background)
		})
	}
	if want.Agent {
		v.wanted.Store(int64(now))
		t.refreshGuest(v, st.Runstate, now)
	}
}

// refreshGuest hands on the questions to the guest agent when they are due. The
// agent of a guest that does not run cannot answer.
func (t *Tracker) refreshGuest(v *vm, runstate string, now time.Duration) {
	awake := runstate == "" || runstate == "running"
	if awake && take(&v.nextAgent, now) {
		t.hand(t.agents, &v.nextAgent, func(ctx context.Context) { t.readGuest(ctx, v) })
	}
}

// revisit asks the agents of booting guests again without being asked to: the
// address of a new VM is what its users wait for.
func (t *Tracker) revisit(ctx context.Context) {
	tick := time.NewTicker(t.cfg.AgentYoung)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := t.now()
		for _, v := range t.booting(now) {
			if st, alive := v.state(now); alive {
				t.refreshGuest(v, st.Runstate, now)
			}
		}
	}
}

func (t *Tracker) booting(now time.Duration) []*vm {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []*vm
	for _, v := range t.vms {
		if v.booting(now) {
			list = append(list, v)
		}
	}
	return list
}

// take reports whether a task is due and now the caller's.
func take(next *atomic.Int64, now time.Duration) bool {
	due := next.Load()
	return due <= int64(now) && next.CompareAndSwap(due, int64(now+inHand))
}

// hand gives a task to a pool; if that has no room, it is due again in a second.
func (t *Tracker) hand(p *pool, next *atomic.Int64, task func(context.Context)) {
	if !p.offer(task) {
		next.Store(int64(t.now() + time.Second))
	}
}

// guestFacts is what a guest agent told.
type guestFacts struct {
	ips      []string
	os       string
	hostName string
}

// readGuest asks the guest agent and sets the time for the next read.
func (t *Tracker) readGuest(ctx context.Context, v *vm) {
	wait := t.cfg.AgentEvery
	defer func() { v.nextAgent.Store(int64(t.now() + wait)) }()
	ctx, cancel := context.WithTimeout(ctx, t.cfg.AgentTimeout)
	defer cancel()
	facts, err := askGuest(ctx, v.agent)
	if err == nil {
		v.setGuest(facts, t.now())
		return
	}
	n := v.silent()
	for range n - 1 {
		wait = min(2*wait, t.cfg.AgentMost)
	}
	if time.Since(v.started) < youth {
		wait = min(wait, t.cfg.AgentYoung)
	}
	t.cfg.Log.DebugContext(ctx, "guest agent did not answer", "vmid", v.id, "times", n, "again_in", wait, "err", err)
}

// askGuest has one conversation with a guest agent. Agents differ in what they
// know; what one refuses is left empty.
func askGuest(ctx context.Context, path string) (guestFacts, error) {
	s, err := qga.Open(ctx, path, qga.Options{})
	if err != nil {
		return guestFacts{}, err
	}
	defer s.Close()
	interfaces, err := s.NetworkInterfaces(ctx)
	if err = unlessRefused(err); err != nil {
		return guestFacts{}, err
	}
	info, err := s.OSInfo(ctx)
	if err = unlessRefused(err); err != nil {
		return guestFacts{}, err
	}
	name, err := s.HostName(ctx)
	if err = unlessRefused(err); err != nil {
		return guestFacts{}, err
	}
	return guestFacts{ips: addresses(interfaces), os: tame(osName(info)), hostName: tame(name)}, nil
}

func unlessRefused(err error) error {
	if refused := new(qmp.Error); errors.As(err, &refused) {
		return nil
	}
	return err
}

func osName(info qga.OSInfo) string {
	if info.PrettyName != "" {
		return info.PrettyName
	}
	return strings.TrimSpace(info.Name + " " + info.Version)
}

// tame makes a guest's word fit for one line of somebody else's screen.
func tame(s string) string {
	const most = 200
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most])
	}
	return strings.TrimSpace(s)
}

// mostIPs bounds what one guest can make every reader of its state carry.
const mostIPs = 64

// addresses picks those under which others may reach the guest. Containers and
// tunnels inside of the guest have addresses, too; clients take the first one,
// so interfaces that look like such come last, and IPv4 before IPv6. Otherwise
// the order is the guest's, which is that of its kernel.
func addresses(interfaces []qga.Interface) []string {
	type candidate struct {
		rank int
		addr netip.Addr
	}
	var found []candidate
	for _, i := range interfaces {
		for _, p := range i.Addresses {
			addr := p.Addr().Unmap()
			if len(found) == mostIPs || !addr.IsGlobalUnicast() || slices.ContainsFunc(found, func(c candidate) bool { return c.addr == addr }) {
				continue
			}
			rank := 0
			if isInner(i.Name) {
				rank = 2
			}
			if addr.Is6() {
				rank++
			}
			found = append(found, candidate{rank, addr})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int { return a.rank - b.rank })
	var ips []string
	for _, c := range found {
		ips = append(ips, c.addr.String())
	}
	return ips
}

// inner are the beginnings of names that software inside of a guest gives to
// the networks it makes there.
var inner = []string{
	"docker", "br-", "veth", "virbr", "vnet", "cni", "flannel", "cali", "cilium", "lxc", "lxd", "podman",
	"kube", "tun", "tap", "wg", "tailscale", "zt", "vEthernet", "isatap", "Teredo",
}

func isInner(name string) bool {
	return slices.ContainsFunc(inner, func(prefix string) bool { return strings.HasPrefix(name, prefix) })
}
