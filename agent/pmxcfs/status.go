package pmxcfs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
)

// Guest types as .vmlist spells them.
const (
	TypeQEMU = "qemu" // a virtual machine
	TypeLXC  = "lxc"  // a container
)

// Version is .version: counters that grow when what they stand for changes. All of them start again when pmxcfs
// restarts, which StartTime tells. Quorum has no counter.
type Version struct {
	StartTime int64             // when this pmxcfs started, Unix seconds
	ClInfo    uint64            // .members, except for quorum
	VMList    uint64            // .vmlist; grows with every write of a guest config
	Files     map[string]uint64 // tracked files by path, such as "storage.cfg"
}

// ParseVersion decodes .version; path only names the file in errors.
func ParseVersion(path string, raw []byte) (Version, error) {
	var fields map[string]json.RawMessage
	if err := decode(path, raw, &fields); err != nil {
		return Version{}, err
	}
	v := Version{Files: make(map[string]uint64, len(fields))}
	for name, value := range fields {
		if name == "kvstore" {
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 64)
		if err != nil {
			return Version{}, &FormatError{Path: path, Reason: fmt.Sprintf("%q is not a counter", name)}
		}
		v.set(name, n)
	}
	if v.StartTime == 0 {
		return Version{}, &FormatError{Path: path, Reason: "no starttime"}
	}
	return v, nil
}

func (v *Version) set(name string, n uint64) {
	switch name {
	case "starttime":
		v.StartTime = int64(n)
	case "clinfo":
		v.ClInfo = n
	case "vmlist":
		v.VMList = n
	default:
		v.Files[name] = n
	}
}

// Members is .members: the nodes of the cluster as corosync sees them from here.
type Members struct {
	Node    string // the node this file was read on
	Cluster string // the cluster's name, "" on a node without a cluster
	Quorate bool   // true on a node without a cluster too
	Nodes   map[string]Member

	clustered bool // the file has a cluster section
}

// Member is one node in .members. A node that died stays with Online false until it is removed from the cluster.
type Member struct {
	Name   string
	ID     int
	Online bool
	IP     string // "" while pmxcfs does not know it yet
}

// ParseMembers decodes .members; path only names the file in errors. A file without a cluster section (no cluster, or
// corosync has not been heard from yet) gives Quorate false and no nodes; Tree.Members tells the two apart.
func ParseMembers(path string, raw []byte) (Members, error) {
	var file struct {
		NodeName string `json:"nodename"`
		Cluster  *struct {
			Name    string `json:"name"`
			Quorate int    `json:"quorate"`
		} `json:"cluster"`
		NodeList map[string]struct {
			ID     int    `json:"id"`
			Online int    `json:"online"`
			IP     string `json:"ip"`
		} `json:"nodelist"`
	}
	if err := decode(path, raw, &file); err != nil {
		return Members{}, err
	}
	if file.NodeName == "" {
		return Members{}, &FormatError{Path: path, Reason: "no nodename"}
	}
	m := Members{Node: file.NodeName, Nodes: make(map[string]Member, len(file.NodeList))}
	if file.Cluster != nil {
		m.clustered, m.Cluster, m.Quorate = true, file.Cluster.Name, file.Cluster.Quorate != 0
	}
	for name, n := range file.NodeList {
		m.Nodes[name] = Member{Name: name, ID: n.ID, Online: n.Online != 0, IP: n.IP}
	}
	return m, nil
}

// decode reads one JSON value and nothing after it.
func decode(path string, raw []byte, out any) error {
	if len(bytes.TrimSpace(raw)) == 0 {
		return &FormatError{Path: path, Reason: "empty"}
	}
	if err := json.Unmarshal(raw, out); err != nil {
		return &FormatError{Path: path, Reason: err.Error()}
	}
	return nil
}
