// Package capacity is what this node can offer: its memory and CPUs, how much of them is promised to VMs and how hard
// they are used, its storages, templates and bridges. It reads the kernel's own files, and asks PVE for storages only,
// once a minute.
//
// All of it is a hint for others, who see it with its age. So nothing here fails: what cannot be read is zero, or what
// it was, and is logged once.
package capacity

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

const (
	defaultInterval = time.Minute
	// forgetAfter is how many intervals a reading of the API is believed when no further one succeeds.
	forgetAfter = 5
	// maxNames is how many templates, tags or bridges Facts name: all Facts have to fit into view.MaxFacts.
	maxNames = 256
)

// API is what is asked of PVE; *pve.Client does.
type API interface {
	Storages(ctx context.Context, node string) ([]pve.Storage, error)
	Version(ctx context.Context) (pve.Version, error)
}

// Size is what a VM is promised.
type Size struct {
	Memory uint64 // bytes
	VCPUs  uint32
}

// Making is a VM that is being made here.
type Making struct {
	VMID int // 0 while it has no number
	Size     // what it is to have in the end
}

// Config is where a Source looks. What says so may be left out.
type Config struct {
	Node    string // the node we are on
	ProcDir string // default /proc
	SysDir  string // default /sys
	World   func() (*pmxcfs.World, error)
	// Running tells whether a VM of this node has a process. It is asked about every VM once a second, so it must not
	// talk to QEMU.
	Running func(vmid int) bool
	// Making are the VMs that are being made here, or will be in a moment. A VM that counts already is not counted
	// twice: of what it is to have and what its config says so far, the larger counts. Nil: none.
	Making             func() []Making
	Cordoned, Draining func() bool // nil: it is not
	API                API
	Interval           time.Duration // between two questions to the API; default 1 min
	Log                *slog.Logger  // default: discard
}

// Source is what this node can offer. It is safe for concurrent use. Its Run keeps what the API says; Digest and Facts
// work without it.
type Source struct {
	cfg   Config
	ready chan struct{}

	mu         sync.Mutex      // guards what follows
	complaints map[string]bool // what was complained of, and has not been better since
	promised   Size            // as of the last World that could be read
	storages   []view.Storage  // sorted by name
	storagesAt time.Time       // when the API told them; zero: never
	version    string          // of PVE
}

// New makes a Source; it reads nothing.
func New(cfg Config) *Source {
	cfg.ProcDir, cfg.SysDir = cmp.Or(cfg.ProcDir, "/proc"), cmp.Or(cfg.SysDir, "/sys")
	cfg.Interval = cmp.Or(cfg.Interval, defaultInterval)
	if cfg.Making == nil {
		cfg.Making = func() []Making { return nil }
	}
	no := func() bool { return false }
	if cfg.Cordoned == nil {
		cfg.Cordoned = no
	}
	if cfg.Draining == nil {
		cfg.Draining = no
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{cfg: cfg, ready: make(chan struct{}), complaints: make(map[string]bool)}
}

// Digest is what the node has now, without Incarnation and Sequence: nothing in it is older than the World. It reads
// some small files of the kernel.
func (s *Source) Digest() view.Digest {
	m := read(s, fileMeminfo, parseMeminfo, false)
	cache := read(s, fileArc, parseArc, true)
	world, err := s.world()
	promised := s.promise(world)
	return view.Digest{
		MemoryTotal: m.total, MemoryFree: min(m.free+cache.reclaimable(), m.total),
		MemoryPromised: promised.Memory, MemoryReserved: min(cache.least, m.total),
		VCPUs: read(s, fileStat, parseCPUs, false), VCPUsPromised: promised.VCPUs,
		Load:      read(s, fileLoad, parseLoad, false),
		PSICPU:    read(s, filepath.Join(filePressure, "cpu"), parsePressure, true),
		PSIMemory: read(s, filepath.Join(filePressure, "memory"), parsePressure, true),
		PSIIO:     read(s, filepath.Join(filePressure, "io"), parsePressure, true),
		Cordoned:  s.cfg.Cordoned(), Draining: s.cfg.Draining(), Quorate: err == nil && world.Quorate,
	}
}

// world is the World, or nil with an error.
func (s *Source) world() (*pmxcfs.World, error) {
	world, err := s.cfg.World()
	s.complain("pmxcfs", err)
	if err != nil {
		return nil, err
	}
	return world, nil
}

// promise adds up what the VMs of this node that run or are being made may use, and the memory of its containers; these
// share CPUs, so none are promised to them. Without a World it is what it was: VMs go on running while /etc/pve is away.
func (s *Source) promise(world *pmxcfs.World) Size {
	if world == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.promised
	}
	sum, making := s.planned()
	for _, vm := range world.Local() {
		size, made := making[vm.ID]
		delete(making, vm.ID)
		if s.counts(vm) {
			_, cpus := vm.Conf.CPUs() // as HA counts it: those it runs with
			size.grow(Size{Memory: uint64(max(0, vm.Conf.MemoryMiB())) << 20, VCPUs: uint32(max(0, cpus))})
		} else if !made {
			continue
		}
		sum.add(size)
	}
	for _, size := range making { // no config here yet
		sum.add(size)
	}
	sum.Memory += s.containers()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.promised = sum
	return sum
}

// planned are the VMs that are being made: all without a number together, and the others by number.
func (s *Source) planned() (unnumbered Size, numbered map[int]Size) {
	numbered = make(map[int]Size)
	for _, m := range s.cfg.Making() {
		if m.VMID == 0 {
			unnumbered.add(m.Size)
			continue
		}
		size := numbered[m.VMID]
		size.grow(m.Size)
		numbered[m.VMID] = size
	}
	return unnumbered, numbered
}

func (s *Size) add(more Size) {
	s.Memory += more.Memory
	s.VCPUs += more.VCPUs
}

// grow makes s at least as large as other.
func (s *Size) grow(other Size) {
	s.Memory, s.VCPUs = max(s.Memory, other.Memory), max(s.VCPUs, other.VCPUs)
}

// counts says whether a VM of this node uses what its config promises it, or is about to.
func (s *Source) counts(vm *pmxcfs.VM) bool {
	if vm.Conf.Template() {
		return false
	}
	lock := vm.Conf.Lock()
	return lock == "clone" || lock == "create" || s.cfg.Running(vm.ID)
}

// Facts are what the node has beside its Digest, without Incarnation and Sequence. Of very many names there are only
// the first ones by number or name, and the most frequent tags.
func (s *Source) Facts() view.Facts {
	f := view.Facts{Bridges: s.bridges()}
	f.PVEVersion, f.Storages = s.told(time.Now())
	world, err := s.world()
	if err != nil {
		return f
	}
	tags := make(map[string]int)
	for _, vm := range world.Local() {
		for _, tag := range vm.Conf.Tags() {
			tags[tag]++
		}
		if vm.Conf.Template() {
			f.Templates = append(f.Templates, view.Template{VMID: vm.ID, Name: vm.Conf.Name()})
			continue
		}
		f.VMs++
		if s.cfg.Running(vm.ID) {
			f.Running++
		}
	}
	f.Templates, f.Tags = most(f.Templates), frequent(tags)
	return f
}

// frequent are the tags that most VMs have.
func frequent(tags map[string]int) map[string]int {
	if len(tags) <= maxNames {
		return tags
	}
	names := slices.SortedFunc(maps.Keys(tags), func(a, b string) int {
		return cmp.Or(cmp.Compare(tags[b], tags[a]), cmp.Compare(a, b))
	})
	for _, name := range names[maxNames:] {
		delete(tags, name)
	}
	return tags
}

func most[T any](all []T) []T { return all[:min(len(all), maxNames)] }

// complain logs what is wrong with something when it begins, and keeps quiet until it has been right again.
func (s *Source) complain(about string, err error) {
	s.mu.Lock()
	known := s.complaints[about]
	if err == nil {
		delete(s.complaints, about)
	} else {
		s.complaints[about] = true
	}
	s.mu.Unlock()
	if err != nil && !known {
		s.cfg.Log.Warn("something about this node's capacity is not known", "what", about, "err", err)
	}
}
