package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// cut is the number of names from which on a list in a node's Facts may not be
// complete.
const cut = 256

// refusals are the reasons against one node, as they are found.
type refusals []Reason

func (r *refusals) add(filter, format string, args ...any) {
	*r = append(*r, Reason{Filter: filter, Text: words(format, args)})
}

// lack adds that there is not enough of something.
func (r *refusals) lack(filter, format string, args ...any) {
	*r = append(*r, Reason{Filter: filter, Text: words(format, args), Capacity: true})
}

// words formats only where there is something to format: what others say in
// their words may have a '%' in it.
func words(format string, args []any) string {
	if len(args) == 0 {
		return format
	}
	return fmt.Sprintf(format, args...)
}

// reasons are those against a node by itself, without a look at its VMs.
func (q *question) reasons(n *Node) refusals {
	var r refusals
	heard := q.heard(n, &r)
	q.willing(n, &r)
	if n.Refused != "" && !n.Full {
		r.add(filterRefused, "refused a moment ago: %s", n.Refused)
	}
	q.allowed(n, &r)
	q.reaches(n, &r)
	if heard {
		q.cpus(n, &r)
		q.memory(n, &r)
		q.storages(n, &r)
		q.bridges(n, &r)
	}
	if n.Full && !slices.ContainsFunc(r, func(other Reason) bool { return other.Capacity }) { // else that says it, by newer figures
		r.lack(filterRefused, "refused a moment ago: %s", n.Refused)
	}
	return r
}

// heard says whether what the node told of itself is to be believed.
func (q *question) heard(n *Node, r *refusals) bool {
	age, told := n.State.DigestAge(q.now)
	switch {
	case n.Silent != "":
		r.add(filterHeard, n.Silent)
	case !told:
		r.add(filterHeard, "has not told anything of itself yet")
	case age >= view.Stale:
		r.add(filterHeard, "was not heard of for %s", age.Truncate(time.Second))
	default:
		return true
	}
	return false
}

// willing looks at whether the node takes new VMs at all.
func (q *question) willing(n *Node, r *refusals) {
	if told := n.State.Digest; !n.State.DigestAt.IsZero() {
		if !told.Quorate {
			r.add(filterHeard, "has no quorum")
		}
		if told.Draining {
			r.add(filterCordoned, "draining")
		}
		if told.Cordoned && n.Cordoned == "" {
			r.add(filterCordoned, "cordoned")
		}
	}
	if n.Cordoned != "" {
		r.add(filterCordoned, n.Cordoned)
	}
}

// allowed looks at who may choose the node: the request, the node-selector, the
// policy, HA.
func (q *question) allowed(n *Node, r *refusals) {
	w, s, p := q.want, q.settings, q.policy
	if q.unknown != "" {
		r.add(filterNoPolicy, q.unknown)
	}
	if w.Current == n.Name {
		r.add(filterCurrent, "is where it is now")
	}
	if w.Only != nil && !q.names(w.Only, n.Name) {
		r.add(filterOnly, "is ruled out by "+q.onlyWhy())
	}
	if s.NodesRequired && len(s.Nodes) > 0 && !q.names(s.Nodes, n.Name) {
		r.add(filterSelector, "is not in the node-selector (%s)", strings.Join(s.Nodes, ", "))
	}
	if p != nil && p.Required && len(p.NodeSelector) > 0 && !q.names(p.NodeSelector, n.Name) {
		r.add(filterPolicy, "is not in the node-selector of policy %q (%s)", p.Name, strings.Join(p.NodeSelector, ", "))
	}
	if why, ok := w.Never[n.Name]; ok {
		r.add(filterHA, why)
	}
}

// onlyWhy is what allows some nodes only, in words, and what is wrong with it.
func (q *question) onlyWhy() string {
	why := cmp.Or(q.want.OnlyWhy, "the request")
	if q.nodes == nil || slices.ContainsFunc(q.nodes, func(n Node) bool { return q.names(q.want.Only, n.Name) }) {
		return why
	}
	return why + ", which is no node and no group of nodes here"
}

// reaches looks at whether the node gets at what the VM is made from.
func (q *question) reaches(n *Node, r *refusals) {
	source := q.want.Source
	if source == nil {
		return
	}
	if _, ok := source.Nodes[n.Name]; ok {
		return
	}
	if why := source.Why[n.Name]; why != "" {
		r.add(filterSource, why)
		return
	}
	r.add(filterSource, "has no "+source.Name)
}

// cpus looks at what PVE looks at when a VM starts. More CPUs than the host has will never fit: that is no lack of room.
func (q *question) cpus(n *Node, r *refusals) {
	if has := n.cpus(); has > 0 && q.want.CPUs > has {
		r.add(filterCPUs, "CPUs (needs %d, has %d)", q.want.CPUs, has)
	}
}

// cpus are those of the host; 0: not known.
func (n *Node) cpus() int {
	if n.CPUs > 0 {
		return n.CPUs
	}
	return int(n.State.Digest.VCPUs)
}

// memory holds: promised + reserved + wanted + reserve <= total x overcommit.
func (q *question) memory(n *Node, r *refusals) {
	if n.State.Digest.MemoryTotal == 0 {
		r.add(filterMemory, "has not told its memory")
		return
	}
	need, free := clamp(q.want.Memory), q.room(n)
	if need > free {
		r.lack(filterMemory, "memory (needs %s GiB, %s free)", gibUp(need), gibDown(max(0, free)))
		return
	}
	if q.policy != nil && need+clamp(q.policy.MinFreeMemory) > free {
		r.lack(filterMemory, "memory (needs %s GiB and %s that policy %q keeps free, %s free)",
			gibUp(need), gibUp(clamp(q.policy.MinFreeMemory)), q.policy.Name, gibDown(max(0, free)))
	}
}

// room is how much memory of a node is not promised, in bytes. It is negative
// where more is promised than may be.
func (q *question) room(n *Node) int64 {
	return q.usable(n) - clamp(n.State.Digest.MemoryPromised) - clamp(n.Reserved.Memory)
}

// usable is how much memory of a node VMs may have together.
func (q *question) usable(n *Node) int64 {
	total := min(float64(clamp(n.State.Digest.MemoryTotal))*q.overcommit, most)
	return int64(total) - clamp(q.settings.MemoryReserve) - clamp(n.State.Digest.MemoryReserved)
}

// most is more bytes than there are: a sum of some of them is still a number.
const most = 1 << 59

func clamp(bytes uint64) int64 { return int64(min(bytes, most)) }

// storages looks at each storage once, with all that is needed of it.
func (q *question) storages(n *Node, r *refusals) {
	if !n.storagesKnown() {
		return
	}
	var copies []Disk
	if q.want.Source != nil {
		copies = q.want.Source.Nodes[n.Name].Disks
	}
	for i, d := range q.want.Disks {
		if !named(q.want.Disks[:i], d.Storage) {
			q.storage(n, d.Storage, copies, r)
		}
	}
	for i, d := range copies {
		if !named(q.want.Disks, d.Storage) && !named(copies[:i], d.Storage) {
			q.storage(n, d.Storage, copies, r)
		}
	}
}

func named(disks []Disk, storage string) bool {
	return slices.ContainsFunc(disks, func(d Disk) bool { return d.Storage == storage })
}

// storagesKnown says whether the node has told all its storages. There is no
// node without any: while its agent starts, or PVE does not answer it, it has
// told none.
func (n *Node) storagesKnown() bool {
	return !n.State.FactsAt.IsZero() && len(n.State.Facts.Storages) > 0
}

// storage looks at one storage: there, with the content types, with the space.
func (q *question) storage(n *Node, name string, copies []Disk, r *refusals) {
	if name == "" {
		return
	}
	all := n.State.Facts.Storages
	at := slices.IndexFunc(all, func(s view.Storage) bool { return s.Name == name })
	if at < 0 {
		if len(all) < cut {
			r.add(filterStorage, "has no storage %s", name)
		}
		return
	}
	var need int64
	for _, disks := range [...][]Disk{q.want.Disks, copies} {
		for _, d := range disks {
			if d.Storage != name {
				continue
			}
			need = min(need+clamp(d.Bytes), most)
			if d.Content != "" && !slices.Contains(all[at].Content, d.Content) {
				r.add(filterStorage, "storage %s takes no %s", name, d.Content)
				return
			}
		}
	}
	free := max(0, clamp(all[at].Free)-q.reserved(n, &all[at]))
	if need > free {
		r.lack(filterStorage, "storage %s (needs %s GiB, %s free)", name, gibUp(need), gibDown(free))
	}
}

// reserved is what is reserved on a storage of a node: if others see the same,
// for them too.
func (q *question) reserved(n *Node, s *view.Storage) int64 {
	if !s.Shared || q.nodes == nil {
		return clamp(n.Reserved.Storage[s.Name])
	}
	var sum int64
	for i := range q.nodes {
		sum = min(sum+clamp(q.nodes[i].Reserved.Storage[s.Name]), most)
	}
	return sum
}

func (q *question) bridges(n *Node, r *refusals) {
	has := n.State.Facts.Bridges
	if n.State.FactsAt.IsZero() || len(has) >= cut {
		return
	}
	for i, name := range q.want.Bridges {
		if name != "" && !slices.Contains(has, name) && !slices.Contains(q.want.Bridges[:i], name) {
			r.add(filterBridge, "has no bridge %s", name)
		}
	}
}
