package pmxcfs

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// goneAfter is how long a node must be seen offline, with quorum here, before it counts as gone.
const goneAfter = 120 * time.Second

// VM is one guest: a QEMU VM, or a container, of which only the owner is known. It is shared: never copy or change one.
type VM struct {
	ID   int
	Node string // the node under whose directory the config is
	Type string // TypeQEMU or TypeLXC
	Conf *Conf  // nil for a container, never nil for a VM

	key      cacheKey
	provenAt atomic.Int64 // when the config file was last opened, on the Watcher's clock; 0 for never
}

// cacheKey tells whether a config has changed: the guest's version in .vmlist starts again when pmxcfs does.
type cacheKey struct {
	start   int64
	version uint64
}

// World is the cluster as last read. It is immutable and shared: never change what it holds.
type World struct {
	ReadAt     time.Time // when the reading that confirmed all of this began
	Node       string    // the node we are on
	Quorate    bool      // without quorum nothing may be decided from VMs
	Members    Members
	VMs        map[int]*VM   // every guest whose config could be read, by VMID
	Unread     map[int]error // guests of .vmlist whose config could not be read last time, and why; being moved, mostly
	Storages   Storages
	StorageErr error // why Storages is not current (or empty); nil if it is
	HA         *HA
	HAErr      error // why HA is not current; what is wrong in its files is in HA.Problems
	Pools      Pools
	PoolErr    error // why Pools is not current

	sides   map[string]side      // what HA and Pools were made of, by name of the file
	offline map[string]time.Time // since when a node is offline, seen with quorum; empty without quorum
	quorum  time.Time            // since when there is quorum without a gap, as seen from here; zero without
	index   *index
}

// index holds what is looked up in a World's VMs; Worlds with the same VMs share it.
type index struct {
	once  sync.Once
	names map[string][]*VM
	local []*VM
}

// Has reports whether .vmlist lists the guest, with its config read or not.
func (w *World) Has(vmid int) bool {
	if _, ok := w.VMs[vmid]; ok {
		return true
	}
	_, ok := w.Unread[vmid]
	return ok
}

// ByName returns the QEMU VMs of the whole cluster that have this name, templates included, ordered by VMID. A VM that
// is being cloned has no name yet.
func (w *World) ByName(name string) []*VM { return w.lookup().names[name] }

// Local returns the QEMU VMs of this node, templates included, ordered by VMID.
func (w *World) Local() []*VM { return w.lookup().local }

// Gone reports whether a node is known to be dead: offline in .members for more than 120 s as seen from here, with
// quorum all the time, or no longer listed there, again with 120 s of quorum.
func (w *World) Gone(node string, now time.Time) bool {
	since, ok := w.OfflineSince(node)
	return ok && now.Sub(since) > goneAfter
}

// OfflineSince returns since when a node is offline, as seen from here with quorum all the time; false when it is
// online, or when there is no quorum. Of a node that was removed from the cluster it is not known when: then it is the
// beginning of our quorum.
func (w *World) OfflineSince(node string) (time.Time, bool) {
	if _, listed := w.Members.Nodes[node]; !listed {
		return w.quorum, w.Quorate && len(w.Members.Nodes) > 0
	}
	since, ok := w.offline[node]
	return since, ok
}

// Online reports whether .members has a node as online.
func (w *World) Online(node string) bool { return w.Members.Nodes[node].Online }

func (w *World) lookup() *index {
	w.index.once.Do(func() { w.index.build(w) })
	return w.index
}

func (x *index) build(w *World) {
	x.names = make(map[string][]*VM, len(w.VMs))
	byID := func(a, b *VM) int { return a.ID - b.ID }
	for _, vm := range w.VMs {
		if vm.Type != TypeQEMU {
			continue
		}
		if name := vm.Conf.Name(); name != "" {
			x.names[name] = append(x.names[name], vm)
		}
		if vm.Node == w.Node {
			x.local = append(x.local, vm)
		}
	}
	slices.SortFunc(x.local, byID)
	for _, list := range x.names {
		slices.SortFunc(list, byID)
	}
}

// offlineSince carries on since when nodes are offline. Without quorum nothing is known, so the clock starts again.
func offlineSince(old map[string]time.Time, m Members, now time.Time) map[string]time.Time {
	if !m.Quorate {
		return nil
	}
	var since map[string]time.Time
	for name, n := range m.Nodes {
		if n.Online {
			continue
		}
		if since == nil {
			since = make(map[string]time.Time)
		}
		if t, ok := old[name]; ok {
			since[name] = t
		} else {
			since[name] = now
		}
	}
	return since
}

// quorumSince carries on since when there is quorum.
func quorumSince(old time.Time, m Members, now time.Time) time.Time {
	switch {
	case !m.Quorate:
		return time.Time{}
	case old.IsZero():
		return now
	}
	return old
}
