package cluster

import (
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// announcement is what this node says of itself.
type announcement struct {
	stamp   view.Stamp  // of what was said last
	told    view.Digest // that the others have been told
	toldAt  time.Time
	factsAt time.Time // when the facts were looked at
	urgent  bool      // to be said again at the next look
}

// newAnnouncement begins with the time in ms, which grows with each start. If
// the clock was set back, the others know better: see lockedJump.
func newAnnouncement(now time.Time) announcement {
	return announcement{stamp: view.Stamp{Incarnation: uint64(max(1, now.UnixMilli()))}}
}

// next is the stamp of the next value.
func (a *announcement) next() view.Stamp {
	a.stamp.Sequence++
	return a.stamp
}

// due says whether the others have to be told d.
func (a *announcement) due(now time.Time, d view.Digest) bool {
	return a.urgent || a.toldAt.IsZero() || d.Noticeable(a.told) || now.Sub(a.toldAt) >= heartbeat
}

// announce broadcasts our own digest if that is due.
func (c *Cluster) announce() {
	digest := c.cfg.Digest()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.own.due(now, digest) {
		return
	}
	stamp := c.own.next()
	digest.Incarnation, digest.Sequence = stamp.Incarnation, stamp.Sequence
	c.own.told, c.own.toldAt, c.own.urgent = digest, now, false
	wire, err := digest.MarshalBinary()
	if err == nil {
		report := view.Report{Origin: c.origin, Digest: wire}
		_, err = c.view.Merge(now, report)
		c.lockedBroadcast(report, now)
	}
	if err != nil {
		c.cfg.Log.Error("our own digest cannot be announced", "error", err)
	}
}

// refreshFacts looks at our own facts. Who comes while somebody looks does with
// those of before.
func (c *Cluster) refreshFacts() {
	if !c.asking.TryLock() {
		return
	}
	defer c.asking.Unlock()
	c.mu.Lock()
	fresh := time.Since(c.own.factsAt) < factsInterval
	c.mu.Unlock()
	if fresh {
		return
	}
	facts := c.cfg.Facts()
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	stamp := c.own.next()
	facts.Incarnation, facts.Sequence = stamp.Incarnation, stamp.Sequence
	c.own.factsAt = now
	wire, err := facts.MarshalBinary()
	if err == nil {
		_, err = c.view.Merge(now, view.Report{Origin: c.origin, Facts: wire})
	}
	if err != nil && c.warned.allows("own facts") {
		c.cfg.Log.Warn("our own facts are not told to the others", "error", err)
	}
}

// broadcast is a digest on its way to everybody.
type broadcast struct {
	node    string
	message []byte
	at      time.Time // when the digest was true
}

// Name lets a newer digest replace an older one in the queue.
func (b *broadcast) Name() string { return b.node }

// Invalidates is not asked of broadcasts with names.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, named := other.(*broadcast)
	return named && o.node == b.node
}

// Message is the digest with the age it has now.
func (b *broadcast) Message() []byte { return view.Renew(b.message, time.Since(b.at)) }

// Finished is called when it was sent often enough.
func (b *broadcast) Finished() {}

// lockedBroadcast sends the digest of a report, which was true at a time, to all.
// It is queued under the lock so that no older one can come after it.
func (c *Cluster) lockedBroadcast(r view.Report, at time.Time) {
	r.Facts = nil
	message, err := view.Encode(r)
	if err != nil {
		c.cfg.Log.Error("a digest cannot be passed on", "node", r.Name, "error", err)
		return
	}
	c.queue.QueueBroadcast(&broadcast{node: r.Name + " " + r.Address.String(), message: message, at: at})
}

// GetBroadcasts is what is to be sent with the next packet.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.c.queue.GetBroadcasts(overhead, limit)
}

// NotifyMsg is called with what another node has broadcast. What is new is
// passed on.
func (d delegate) NotifyMsg(message []byte) { d.c.received(message, true) }

// LocalState is what another node is told when we compare what we know.
func (d delegate) LocalState(bool) []byte {
	c := d.c
	c.refreshFacts()
	c.mu.Lock()
	now := time.Now()
	c.view.Forget(now, relayLimit, c.lockedBelieved)
	reports := c.view.Reports(now, relayLimit)
	c.mu.Unlock()
	message, err := view.Encode(reports...)
	if err != nil {
		c.cfg.Log.Error("what is known of the nodes cannot be passed on", "error", err)
	}
	return message
}

// MergeRemoteState is called with what another node knows. If it was not in our
// gossip before, the others have not heard that either.
func (d delegate) MergeRemoteState(message []byte, join bool) { d.c.received(message, join) }

func (c *Cluster) lockedBelieved(o view.Origin) bool {
	return c.peers[o.Name].Gossip == o.Address
}

// received takes what is new in a message, and tells the others if relay is set.
func (c *Cluster) received(message []byte, relay bool) {
	reports, err := view.Decode(message)
	c.complain(err)
	for _, r := range reports {
		c.complain(c.merge(r, relay))
	}
}

func (c *Cluster) complain(err error) {
	if err != nil && c.warned.allows("decode") {
		c.cfg.Log.Warn("what another node gossips cannot be read", "error", err)
	}
}

func (c *Cluster) merge(r view.Report, relay bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.Origin == c.origin {
		c.lockedJump(r.Stamp())
		return nil
	}
	now := time.Now()
	news, err := c.view.Merge(now, r)
	if news.Digest && relay {
		c.lockedBroadcast(r, now.Add(-r.DigestAge))
	}
	return err
}

// lockedJump goes beyond what was heard of ourselves: before this start, our
// clock was ahead of what it is now. Without that, nobody would believe us.
func (c *Cluster) lockedJump(heard view.Stamp) {
	if heard.Compare(c.own.stamp) <= 0 || heard.Incarnation >= view.MaxIncarnation {
		return
	}
	c.own.stamp = view.Stamp{Incarnation: heard.Incarnation + 1}
	c.own.urgent = true
	c.cfg.Log.Info("the clock was set back since the last start: counting on from there", "incarnation", c.own.stamp.Incarnation)
}
