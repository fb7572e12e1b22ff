package pvesim

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// QEMU says what a started VM is.
type QEMU string

// The kinds of VM.
const (
	Auto QEMU = "auto" // real when qemu-system-x86_64 and qemu-img are there, else fake
	Real QEMU = "real"
	Fake QEMU = "fake"
	None QEMU = "none" // no VM can be started: where processes cannot be, as in a bubble of testing/synctest
)

// PMXCFS says how a node sees /etc/pve.
type PMXCFS string

// The ways to see /etc/pve.
const (
	Dir  PMXCFS = "dir"  // a directory with links into the shared tree
	FUSE PMXCFS = "fuse" // a FUSE pass-through that can delay reads
)

// Config describes a simulated cluster. The zero value of every field but
// Dir is usable.
type Config struct {
	Dir      string // everything the cluster writes; keep it short, unix sockets live below it
	Nodes    int    // default 3: pve1, pve2, ...
	VMs      int    // VMs there from the beginning, spread over the nodes, every other one running
	FirstVM  int    // number of the first of them, default 100
	CPUs     int    // of each node, default 16; NodeCPUs overrides it
	NodeCPUs map[string]int
	Memory   int64 // of each node in bytes, default 64 GiB; NodeMemory overrides it

	NodeMemory  map[string]int64
	NodeARC     map[string]int64    // of the memory, what ZFS keeps for its cache; a node that is not here has no ZFS
	NodeBridges map[string][]string // instead of vmbr0 and vmbr1

	NoTemplates  bool   // leave the templates 9000 and 9001 out
	TemplateName string // name of template 9000, default "linux-template"; 9001 gets "-shared" behind it
	Debian       bool   // template 9002 too, DebianTemplate, with the guest of [guestimage.FindDebian]: for real VMs only

	QEMU      QEMU
	RealDisks bool           // disks are real images even where VMs are stand-ins; fails without qemu-img
	Fake      kvm.FakeConfig // how the guests of stand-ins behave
	PMXCFS    PMXCFS
	ReadDelay time.Duration // of each read of /etc/pve; with FUSE only
	TLS       bool          // agents' gRPC with certificates instead of plain text

	Version    string // "7.4", "8.4" or "9.1"; default: of SchemaFile, else 9.1
	SchemaFile string // api/<version>.json of PVE's call schema, or of another beside it; default $PVE_API_SCHEMA, "none" = unchecked

	TaskDelay     time.Duration            // between a task's start and its work
	TaskDelays    map[string]time.Duration // by task type ("qmclone"), instead of TaskDelay
	AuthDelay     time.Duration            // before a 401; default 3 s, negative = none
	LockTimeout   time.Duration            // for the lock file of a VM; default 10 s
	IdleTimeout   time.Duration            // after which the API closes a connection; default 5 s
	AgentWait     time.Duration            // for the guest agent and for QMP; default 3 s
	HADelay       time.Duration            // between a hastart/hastop task and its effect; default 100 ms
	TicketLife    time.Duration            // of a login ticket; default 2 h
	PollUnit      time.Duration            // PVE's "one second" while it waits for a VM to stop; default 1 s
	CleanupDelay  time.Duration            // between the end of a QEMU and PVE's "qm cleanup"; about 0.5 s on a real node
	CleanupHold   time.Duration            // how long that holds the VM's lock if the VM runs again by then; 30 s on a real node
	CorosyncDelay time.Duration            // from the loss of packets or of a node to what .members says of it, and back; default 0
	FencingDelay  time.Duration            // from a node being seen offline to its VMs under HA being started elsewhere; default 60 s
	Scan          time.Duration            // how often the tree is looked over for foreign writes; default 200 ms

	// Addresses are the nodes' addresses, in order, as .members shows them and
	// agents bind to them; nil makes some up: 127.R.S.1 and up with R and S by
	// chance, or 10.0.0.1 and up with Network. Given ones need not be this
	// machine's if APIHost is.
	Addresses []netip.Addr
	// APIHost is where all nodes' APIs listen, on a port each; not valid:
	// each on its node's address.
	APIHost netip.Addr
	// Network makes all listeners; nil: real sockets. With one the ports are
	// Proxmox VE's own (8006; 85 for the plain API) and the agents' defaults.
	Network Network

	// Control is where the control API listens ("127.0.0.1:0"); "" is nowhere.
	Control string

	QuietClones bool // a clone's log does not say which VM it makes, as before PVE 9.2

	// Go, if set, starts the goroutines that serve FUSE, by running the function
	// on a goroutine of its choice without waiting for it. In a bubble of
	// [testing/synctest] it has to be one from outside: virtual time stands
	// still while a goroutine of the bubble waits for the kernel. The kernel
	// is told to remember nothing then, because its seconds are real ones.
	Go func(func())

	Log *slog.Logger

	ownAddresses, ownNetwork bool // Addresses were made up, Network was given
}

var schemaName = regexp.MustCompile(`^(\d+\.\d+)\.json$`)

func (c Config) withDefaults() (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("pvesim: no directory given")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, fmt.Errorf("pvesim: directory: %w", err)
	}
	c.Dir = dir
	def(&c.Nodes, 3)
	def(&c.FirstVM, 100)
	def(&c.CPUs, 16)
	def(&c.Memory, 64<<30)
	def(&c.TemplateName, "linux-template")
	def(&c.QEMU, Auto)
	def(&c.PMXCFS, Dir)
	def(&c.AuthDelay, 3*time.Second)
	def(&c.LockTimeout, 10*time.Second)
	def(&c.IdleTimeout, 5*time.Second)
	def(&c.AgentWait, 3*time.Second)
	def(&c.HADelay, 100*time.Millisecond)
	def(&c.TicketLife, 2*time.Hour)
	def(&c.PollUnit, time.Second)
	def(&c.Scan, 200*time.Millisecond)
	def(&c.FencingDelay, time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	c.chooseSchema()
	if err := c.chooseAddresses(); err != nil {
		return c, err
	}
	return c, c.check()
}

// check refuses what cannot be.
func (c Config) check() error {
	if !slices.Contains([]QEMU{Auto, Real, Fake, None}, c.QEMU) {
		return fmt.Errorf("pvesim: qemu %q: want auto, real, fake or none", c.QEMU)
	}
	if c.FirstVM < 100 || (!c.NoTemplates && c.FirstVM <= TemplateDebianID && c.FirstVM+c.VMs > TemplateID) {
		return fmt.Errorf("pvesim: %d VMs from %d on: numbers start at 100, and %d to %d are the templates'",
			c.VMs, c.FirstVM, TemplateID, TemplateDebianID)
	}
	if c.Debian && c.QEMU != Real {
		return fmt.Errorf("pvesim: the Debian guest needs real VMs, not %s", c.QEMU)
	}
	if c.PMXCFS != Dir && c.PMXCFS != FUSE {
		return fmt.Errorf("pvesim: pmxcfs %q: want dir or fuse", c.PMXCFS)
	}
	if !strings.HasPrefix(c.Version, "7.") && !strings.HasPrefix(c.Version, "8.") && !strings.HasPrefix(c.Version, "9.") {
		return fmt.Errorf("pvesim: version %q: want 7.x, 8.x or 9.x", c.Version)
	}
	return nil
}

// chooseSchema settles schema and version: each may stand for the other.
func (c *Config) chooseSchema() {
	def(&c.SchemaFile, os.Getenv("PVE_API_SCHEMA"))
	if c.SchemaFile == "none" {
		c.SchemaFile = ""
	}
	// Another version than the file's means the file beside it.
	if m := schemaName.FindStringSubmatch(filepath.Base(c.SchemaFile)); m != nil && c.Version != "" && c.Version != m[1] {
		c.SchemaFile = filepath.Join(filepath.Dir(c.SchemaFile), c.Version+".json")
		if _, err := os.Stat(c.SchemaFile); err != nil {
			c.SchemaFile = ""
		}
	}
	if m := schemaName.FindStringSubmatch(filepath.Base(c.SchemaFile)); m != nil {
		def(&c.Version, m[1])
	}
	def(&c.Version, "9.1")
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// major is the first number of the version.
func (c Config) major() int { return int(c.Version[0] - '0') }
