package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// State is how a member of an image is.
type State string

// The states of a member.
const (
	Ready   State = "ready"   // VMs can be made from it
	Stale   State = "stale"   // a replica of a template that was rebuilt or changed since
	Missing State = "missing" // a replica that is on record, and nowhere else
)

// Member is one template of an image, or the ordinary VM that one stands for.
type Member struct {
	Node    string
	VMID    int
	VM      *pmxcfs.VM // nil: missing
	Shared  bool       // all its disks are on storages that other nodes reach
	Replica bool       // made by us
	State   State
	Reason  string         // why the state is what it is, in words; "" of one that is ready
	Record  record.Replica // of a replica
}

// Set is what an image consists of now.
type Set struct {
	Name     string // of the image; of an ordinary VM, its name or number
	Template bool   // false: an ordinary VM, of which no replicas are made
	Recorded bool
	Record   record.Image // of a recorded one
	Members  []Member     // by node, the administrator's templates first
}

// On returns the member on a node that VMs can be made from.
func (s Set) On(node string) (Member, bool) {
	return s.first(func(m Member) bool { return m.Node == node })
}

// Any returns a member that VMs can be made from, preferably one on shared storage.
func (s Set) Any() (Member, bool) {
	if m, ok := s.first(func(m Member) bool { return m.Shared }); ok {
		return m, true
	}
	return s.first(func(Member) bool { return true })
}

// Conf returns the config of what a VM of a node is made from, or of what that would be a copy of. The set has a member
// that VMs can be made from.
func (s Set) Conf(node string) *pmxcfs.Conf {
	m, ok := s.On(node)
	if !ok {
		m, _ = s.Any()
	}
	return m.VM.Conf
}

func (s Set) first(want func(Member) bool) (Member, bool) {
	for _, m := range s.Members {
		if m.State == Ready && want(m) {
			return m, true
		}
	}
	return Member{}, false
}

// ready returns the nodes with a member that VMs can be made from. What a node has that is gone does not count.
func (s Set) ready(world *pmxcfs.World, now time.Time) []string {
	var nodes []string
	for _, m := range s.Members {
		if m.State == Ready && !slices.Contains(nodes, m.Node) && !world.Gone(m.Node, now) {
			nodes = append(nodes, m.Node)
		}
	}
	return nodes
}

func (s Set) sort() {
	slices.SortStableFunc(s.Members, func(a, b Member) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), compareBool(a.Replica, b.Replica), cmp.Compare(a.VMID, b.VMID))
	})
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Version tells whether a template is still the one that a replica was copied from: it changes when the template is made
// anew, under the same number or another, and when its disks change.
func Version(conf *pmxcfs.Conf) string {
	meta, _ := conf.Get("meta")
	text := conf.SMBIOSUUID() + "\n" + meta + "\n"
	for _, d := range copied(conf) {
		text += fmt.Sprintf("%s %s %d\n", d.Key, d.Volume, d.Size)
	}
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])[:32]
}

// copied are the drives of a template whose content a replica gets: disks, EFI and TPM stores.
func copied(conf *pmxcfs.Conf) []pmxcfs.Drive {
	return slices.DeleteFunc(conf.Drives(), func(d pmxcfs.Drive) bool { return d.CDROM || d.CloudInit || d.Storage == "" })
}

// clones returns the VMs that share disks with a template: linked clones, whose drives name their base. On LVM-thin they
// name none, and do not need it: there a copy stays whole without what it was copied from.
func clones(world *pmxcfs.World, template *pmxcfs.VM) []int {
	bases := map[string]bool{}
	for _, d := range copied(template.Conf) {
		bases[d.Volume] = true
	}
	var ids []int
	for id, vm := range world.VMs {
		if id == template.ID || vm.Conf == nil || (vm.Node != template.Node && !shared(world, template.Conf)) {
			continue
		}
		if slices.ContainsFunc(allDrives(vm.Conf), func(d pmxcfs.Drive) bool { return bases[baseOf(d)] }) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// allDrives are the drives of a config, of its snapshots, and those that are not attached.
func allDrives(conf *pmxcfs.Conf) []pmxcfs.Drive {
	all := slices.Concat(conf.Drives(), conf.Unused())
	for _, s := range conf.Snapshots() {
		all = append(all, s.Drives()...)
	}
	return all
}

// baseOf returns the volume that a linked clone's volume stands on: of "local:9000/base-9000-disk-0.qcow2/101/vm-101-disk-0.qcow2"
// "local:9000/base-9000-disk-0.qcow2", of "zfs:base-9000-disk-0/vm-101-disk-0" "zfs:base-9000-disk-0"; "" if it stands on none.
func baseOf(d pmxcfs.Drive) string {
	storage, name, ok := strings.Cut(d.Volume, ":")
	if !ok {
		return ""
	}
	parts := strings.Split(name, "/")
	switch {
	case len(parts) == 4:
		return storage + ":" + parts[0] + "/" + parts[1]
	case len(parts) == 2 && strings.HasPrefix(parts[0], "base-"):
		return storage + ":" + parts[0]
	}
	return ""
}

// shared reports whether all disks of a config are on storages that other nodes reach.
func shared(world *pmxcfs.World, conf *pmxcfs.Conf) bool {
	for _, d := range conf.Drives() {
		if s, ok := world.Storages.Get(d.Storage); d.Storage != "" && (!ok || !s.Shared) {
			return false
		}
	}
	return true
}
