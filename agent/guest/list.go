package guest

import (
	"context"
	"sync"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// Listing is one VM as ListVMs shows it.
type Listing struct {
	ID        string
	Name      string
	On        bool
	IPs       []string
	VCPUs     int
	MemoryMiB int64
	Disks     []Disk // the boot disk first; no CDs, no cloud-init drive
	NICs      []pmxcfs.NIC
	Raw       map[string]string
}

// Disk is one disk of a listed VM.
type Disk struct {
	Key    string // scsi0
	Volume string // local:100/vm-100-disk-0.qcow2
	Bytes  int64
	Format string // raw, qcow2, ...
}

// List returns the VMs of this node, without templates, containers and VMs that are being made, by rising VMID. It reads what is watched
// already; PVE is asked only for sizes that the configs do not tell, once per storage and minute.
func (g *Guests) List(ctx context.Context) ([]Listing, error) {
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return nil, fault.New(fault.Precondition, "list VMs: %w", err)
	}
	var all []Listing
	unfinished := g.unfinished()
	for _, vm := range world.Local() {
		if vm.Type != pmxcfs.TypeQEMU || vm.Conf == nil || vm.Conf.Template() || unfinished(vm) {
			continue
		}
		l, err := g.listing(ctx, world, vm)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// unfinished tells which VMs are being made, by us or by somebody else: they do not have their uuid yet, so that their
// id would be another one in a moment, and the manager would adopt them twice.
func (g *Guests) unfinished() func(*pmxcfs.VM) bool {
	ours := map[int]bool{}
	for _, op := range g.cfg.Ops.Active() {
		if id, err := record.ParseID(op.Subject.ID); err == nil && makes(op.Kind) {
			ours[id.VMID] = true
		}
	}
	return func(vm *pmxcfs.VM) bool { return ours[vm.ID] || unborn(vm) }
}

// unborn reports whether PVE itself is still making a VM.
func unborn(vm *pmxcfs.VM) bool { return madeUnder(vm.Conf.Lock()) }

// listing returns what ListVMs shows of a VM, made anew only when something has changed.
func (g *Guests) listing(ctx context.Context, world *pmxcfs.World, vm *pmxcfs.VM) (Listing, error) {
	st, err := g.cfg.Status.State(ctx, vm.ID, status.Want{Lock: vm.Conf.Lock(), Agent: vm.Conf.AgentEnabled()})
	if err != nil {
		return Listing{}, fault.New(fault.Precondition, "list VMs: state of VM %d: %w", vm.ID, err)
	}
	v := g.viewOf(vm.ID)
	if l := v.listed.Load(); l != nil && l.conf == vm.Conf && l.generation == st.Generation {
		return l.listing, nil
	}
	l, final := g.newListing(ctx, world, vm, st)
	if final {
		v.listed.Store(&listed{conf: vm.Conf, generation: st.Generation, listing: l})
	}
	return l, nil
}

// listed is a listing with what it was made from.
type listed struct {
	conf       *pmxcfs.Conf
	generation uint64
	listing    Listing
}

// newListing makes the listing of a VM; final means that nothing but its config and its state went into it.
func (g *Guests) newListing(ctx context.Context, world *pmxcfs.World, vm *pmxcfs.VM, st status.State) (l Listing, final bool) {
	_, vcpus := vm.Conf.CPUs()
	l, final = Listing{
		ID: record.NewID(vm.ID, vm.Conf.SMBIOSUUID()).String(), Name: vm.Conf.Name(), On: st.Power == status.On, IPs: st.IPs,
		VCPUs: vcpus, MemoryMiB: plan.GuestMemoryMiB(vm.Conf), NICs: vm.Conf.NICs(), Raw: rawFields(vm, st),
	}, true
	boot, _ := vm.Conf.BootDisk()
	for _, d := range vm.Conf.Drives() {
		if !d.Disk() {
			continue
		}
		disk := g.disk(ctx, world, d, vm.Node == g.cfg.Node)
		final = final && d.Size > 0
		if d.Key == boot.Key {
			l.Disks = append([]Disk{disk}, l.Disks...)
		} else {
			l.Disks = append(l.Disks, disk)
		}
	}
	return l, final
}

// disk returns what is shown of a disk. Only volumes of VMs here are asked for: this node may lack the others' storage.
func (g *Guests) disk(ctx context.Context, world *pmxcfs.World, d pmxcfs.Drive, here bool) Disk {
	disk := Disk{Key: d.Key, Volume: d.Volume, Bytes: d.Size, Format: d.Format}
	if s, ok := world.Storages.Get(d.Storage); ok && disk.Format == "" {
		disk.Format = s.Format(d.Volume)
	}
	if disk.Bytes == 0 && d.Storage != "" && here {
		disk.Bytes = g.volumes.size(ctx, d.Storage, d.Volume)
	}
	return disk
}

// volumeSizes remembers what the storages of this node say of their volumes.
type volumeSizes struct {
	ask func(ctx context.Context, storage string) ([]pve.Volume, error)

	mu   sync.Mutex // guards seen; held while a storage is asked, so that each is asked once
	seen map[string]storageContent
}

type storageContent struct {
	at    time.Time
	sizes map[string]int64 // by volume
}

const sizesKept = time.Minute

// size returns the size of a volume in bytes, 0 when the storage does not tell.
func (v *volumeSizes) size(ctx context.Context, storage, volume string) int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	c, ok := v.seen[storage]
	if !ok || time.Since(c.at) > sizesKept {
		c = storageContent{at: time.Now(), sizes: map[string]int64{}}
		// A storage that cannot be asked now leaves sizes unknown; it is asked again in a minute, not for each volume.
		vols, err := v.ask(ctx, storage)
		if ctx.Err() != nil {
			return 0 // the caller has gone: that says nothing about the storage
		}
		if err == nil {
			for _, vol := range vols {
				c.sizes[vol.VolID] = int64(vol.Size)
			}
		}
		v.seen[storage] = c
	}
	return c.sizes[volume]
}
