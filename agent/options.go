package agent

import (
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/guest/hotplug"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/cluster"
)

// protocol is what this version speaks with other agents: forwarded requests and gossip.
var protocol = cluster.Protocols{Min: 1, Max: 1}

// options are what is different in tests.
type options struct {
	hook     func(ops.Moment, ops.Event)
	network  Network
	virtual  bool // network is not the host's
	now      func() time.Time
	mhz      func() int
	resolv   string // "": the host's
	plugging hotplug.Limits
	devices  string        // "": the host's
	replicas time.Duration // between two looks for missing replicas; 0: the default
	version  string
	protocol cluster.Protocols
}

// Option changes how an agent is assembled.
type Option func(*options)

// WithVersion says which version of pve-rigaud this is, for people.
func WithVersion(version string) Option { return func(o *options) { o.version = version } }

// WithJournalHook calls hook around each write to the operation journal.
func WithJournalHook(hook func(ops.Moment, ops.Event)) Option {
	return func(o *options) { o.hook = hook }
}

// WithNetwork opens all sockets in n instead of the host's network.
func WithNetwork(n Network) Option {
	return func(o *options) { o.network, o.virtual = n, true }
}

// WithClock dates what is kept in /etc/pve by another clock than time.Now.
func WithClock(now func() time.Time) Option { return func(o *options) { o.now = now } }

// WithCPUClock sets the clock of this node's CPUs, in MHz.
func WithCPUClock(mhz int) Option { return func(o *options) { o.mhz = func() int { return mhz } } }

// WithPluggingLimits bounds how long is waited for guests that give back vCPUs and memory.
func WithPluggingLimits(l hotplug.Limits) Option { return func(o *options) { o.plugging = l } }

// WithResolvConf takes the name servers that PVE passes on to guests from another file than /etc/resolv.conf.
func WithResolvConf(path string) Option { return func(o *options) { o.resolv = path } }

// WithDevices looks for block devices in another directory than /dev.
func WithDevices(dir string) Option { return func(o *options) { o.devices = dir } }

// WithReplicasEvery sets the pause between two looks for replicas of images that are missing.
func WithReplicasEvery(d time.Duration) Option { return func(o *options) { o.replicas = d } }

// WithProtocol makes the agent one of another version, as far as others can see.
func WithProtocol(version string, p cluster.Protocols) Option {
	return func(o *options) { o.version, o.protocol = version, p }
}
