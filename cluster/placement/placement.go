// Package placement decides on which node of the cluster a VM is to be made or
// moved to, and tells why. It is pure: what is known of the nodes is handed in,
// and time is an argument.
//
// A node has to pass every filter. Of those that do, the best by preferences is
// chosen, then the best by score, then one by a hash that everybody computes
// alike. docs/placement.md has the rules in words.
package placement

import (
	"time"

	"github.com/pve-rigaud/pve-rigaud/cluster/view"
)

// Cluster is what is known of all nodes and their VMs. It is only read.
type Cluster struct {
	Nodes []Node
	VMs   []VM // without templates
}

// Node is what is known of one node.
type Node struct {
	Name     string
	Silent   string    // why it cannot be asked at all ("offline", "no agent"), in words; "": it can
	Cordoned string    // why it takes no new VMs ("cordoned", "in HA maintenance"); "": it does
	State    view.Node // what its agent said, with ages
	CPUs     int       // of the host; 0: what State says
	Reserved Amount    // placed there and not yet seen in State
	Recent   Amount    // placed there in the last seconds, seen or not: other agents may be doing the same
	Refused  string    // why the node itself refused a moment ago; "": it did not
	Full     bool      // that was for want of room
}

// Amount is what VMs need of a node.
type Amount struct {
	Memory  uint64 // bytes
	CPUs    int
	VMs     int               // those that are not in Cluster.VMs
	Storage map[string]uint64 // bytes by storage
}

// VM is a VM there is, running or not.
type VM struct {
	Node    int // index in Cluster.Nodes
	Tags    []string
	Pool    string
	Running bool
	ID      int
	Name    string
}

// Want is the VM to be placed.
type Want struct {
	Name    string // of the VM; policies match it, and it breaks ties
	Memory  uint64 // bytes
	CPUs    int    // sockets x cores it starts with
	Disks   []Disk
	Bridges []string
	Pool    string
	Tags    []string          // PVE's
	Only    []string          // the only nodes or groups of nodes allowed; nil: all
	OnlyWhy string            // the words for that: `placement_json: Cluster "pve2"`
	Never   map[string]string // node -> why not, in words (HA rules)
	Prefer  map[string]int    // node -> weight, higher is better (HA priorities); a node that is not named has 0
	Policy  string            // named by the request; "": the one that matches, else "default" if there is one
	Source  *Source           // nil: nothing on a node is needed
	Current string            // the node it is on now; that node is never chosen
}

// Disk is what is needed of a storage. Those of one storage are summed.
type Disk struct {
	Storage string
	Content string // "images", "snippets"; "": any
	Bytes   uint64 // 0: the storage has to be there, and no more
}

// Source is what a VM is made from.
type Source struct {
	Name  string            // for reasons: `replica of "ubuntu-22"`
	Nodes map[string]Reach  // the nodes that reach it
	Why   map[string]string // of other nodes, why they do not ("its replica is out of date"); default: has no Name
}

// Reach is how a node gets at a Source.
type Reach struct {
	How   How
	Disks []Disk // what copies of its disks need on that node, beside Want.Disks
}

// How is the way from a Source to a VM.
type How int

// The ways. OnDemand is taken only if no node has another one.
const (
	Here     How = iota // it is on the node, or nothing is needed
	Shared              // the VM is made where the source is, on shared storage, and then moved: as good as Here
	OnDemand            // a replica has to be made on the node first
)

// String is the way in words.
func (h How) String() string {
	switch h {
	case Here:
		return "here"
	case Shared:
		return "shared"
	case OnDemand:
		return "on demand"
	}
	return "unknown"
}

// Settings are what the administrator has said about placement.
type Settings struct {
	Scorer           string              // "crs" (also ""), "spread" or "pack"
	MemoryOvercommit float64             // of the host's memory; 0: 1.0
	MemoryReserve    uint64              // bytes of each host that no VM gets, beside what its digest reserves
	Nodes            []string            // node-selector: nodes or groups that are strongly preferred
	NodesRequired    bool                // the node-selector is a filter
	Groups           map[string][]string // groups of nodes: what names nodes may name them
	Zones            map[string][]string // failure domains: zone -> nodes; a node in none is one of its own
	Policies         []Policy            // of those that match, the first one counts
}

// Policy is a rule for some VMs, with the words of the manager's
// VMPlacementPolicy.
type Policy struct {
	Name          string
	Match         Match
	NodeSelector  []string // nodes or groups, preferred, or required
	Required      bool     // NodeSelector is a filter
	Affinity      []Term   // there is a VM of the term on the node
	AntiAffinity  []Term   // there is none
	MaxVMsPerNode int      // VMs of any kind that a node may have with this one; 0: no limit
	MinFreeMemory uint64   // bytes that have to stay free of promises on the node
	Spread        string   // "node" or "zone": where AntiAffinity holds, and over what the policy's VMs are spread; "": nothing
	Scorer        string   // "": Settings.Scorer
}

// Match says which VMs a policy is for: of each list that is given, one has to
// match. With none given the policy is never used by itself, only as "default"
// or by its name.
type Match struct {
	Names []string // patterns as of path.Match
	Tags  []string
	Pools []string
}

// Term selects VMs.
type Term struct {
	Key      string   // "tag", "pool", "name", or k for tags "k=v"; PVE keeps those as "k-v"
	Operator string   // In, NotIn, Exists, DoesNotExist
	Values   []string // for "name" patterns as of path.Match
	Hard     bool     // a filter; otherwise a preference
	Zone     bool     // holds per zone instead of per node
}

// The filters, as Reason.Filter names them.
const (
	filterHeard    = "heard"
	filterCordoned = "cordoned"
	filterRefused  = "refused"
	filterCurrent  = "current"
	filterOnly     = "only"
	filterSelector = "node-selector"
	filterPolicy   = "policy"
	filterNoPolicy = "unknown policy"
	filterHA       = "ha"
	filterSource   = "source"
	filterCPUs     = "cpus"
	filterMemory   = "memory"
	filterStorage  = "storage"
	filterBridge   = "bridge"
	filterAffinity = "affinity"
	filterVMs      = "vms"
)

// Place decides by a Placer of its own.
func Place(c Cluster, w Want, s Settings, now time.Time) Decision {
	return new(Placer).Place(c, w, s, now)
}

// Fits is the check of one node by itself, for the owner's second look: the
// reasons against it. The VMs it has are counted by what it has told; which they
// are, for affinity, is not known here.
func Fits(n Node, w Want, s Settings, now time.Time) []Reason {
	q := newQuestion(&w, &s, now)
	r := q.reasons(&n)
	q.crowd(n.State.Facts.VMs+n.Reserved.VMs, &r)
	return r
}
