package pve

import (
	"context"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// Version is the version of PVE.
type Version struct {
	Version string `json:"version"` // "9.2.11"
	Release string `json:"release"` // "9.2"
	RepoID  string `json:"repoid"`
}

// Major returns the first number of the version, or 0.
func (v Version) Major() int {
	major, _, _ := strings.Cut(v.Version, ".")
	n, _ := strconv.Atoi(major)
	return n
}

// Version asks which PVE answers. Any valid credentials may.
func (c *Client) Version(ctx context.Context) (Version, error) {
	var out Version
	err := c.Call(ctx, http.MethodGet, "/version", nil, &out)
	return out, err
}

// Node is a node of the cluster; of one that is down the load and uptime are 0.
type Node struct {
	Node   string `json:"node"`
	Status string `json:"status"` // "online", "offline", "unknown"
	MaxCPU Int    `json:"maxcpu"`
	MaxMem Int    `json:"maxmem"` // bytes
	Mem    Int    `json:"mem"`    // bytes in use
	CPU    Float  `json:"cpu"`    // load, 1 = all CPUs
	Uptime Int    `json:"uptime"` // seconds
}

// Nodes lists the nodes of the cluster, as pvestatd saw them up to 10 s ago.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) {
	var out []Node
	err := c.Call(ctx, http.MethodGet, "/nodes", nil, &out)
	return out, err
}

// Permissions are the privileges of our credentials: path -> privilege -> whether it is handed down to what is below.
type Permissions map[string]map[string]Bool

// Has reports whether the privilege is given on the path: there, or handed down from above when PVE lists nothing for
// the path itself.
func (p Permissions) Has(object, privilege string) bool {
	if privs, ok := p[object]; ok {
		_, has := privs[privilege]
		return has
	}
	for up := object; up != "/" && up != "."; {
		up = path.Dir(up)
		if privs, ok := p[up]; ok {
			return bool(privs[privilege])
		}
	}
	return false
}

// Permissions asks for the privileges of our credentials.
func (c *Client) Permissions(ctx context.Context) (Permissions, error) {
	var out Permissions
	err := c.Call(ctx, http.MethodGet, "/access/permissions", nil, &out)
	return out, err
}

// ClusterEntry is a row of /cluster/status: the cluster itself, or one of its nodes.
type ClusterEntry struct {
	Type    string `json:"type"` // "cluster" or "node"
	ID      string `json:"id"`
	Name    string `json:"name"`
	IP      string `json:"ip"`      // of a node
	Local   Bool   `json:"local"`   // the node that answers
	Online  Bool   `json:"online"`  // of a node
	NodeID  Int    `json:"nodeid"`  // of a node
	Quorate Bool   `json:"quorate"` // of the cluster
	Nodes   Int    `json:"nodes"`   // of the cluster
	Version Int    `json:"version"` // of the cluster's config
}

// ClusterStatus asks how the answering node sees the cluster. A node that is in no cluster lists only itself.
// It needs Sys.Audit on /.
func (c *Client) ClusterStatus(ctx context.Context) ([]ClusterEntry, error) {
	var out []ClusterEntry
	err := c.Call(ctx, http.MethodGet, "/cluster/status", nil, &out)
	return out, err
}

// Resource is a row of /cluster/resources. Which fields are set depends on its type.
type Resource struct {
	ID       string `json:"id"`   // "qemu/100", "node/pve1", "storage/pve1/local"
	Type     string `json:"type"` // "qemu", "lxc", "node", "storage", "sdn"
	Node     string `json:"node"`
	Status   string `json:"status"`
	VMID     Int    `json:"vmid"`
	Name     string `json:"name"`
	Template Bool   `json:"template"`
	Lock     string `json:"lock"`
	Tags     string `json:"tags"`
	Pool     string `json:"pool"`
	HAState  string `json:"hastate"`
	Storage  string `json:"storage"`
	Content  string `json:"content"`
	Shared   Bool   `json:"shared"`
	MaxCPU   Float  `json:"maxcpu"`
	CPU      Float  `json:"cpu"`
	MaxMem   Int    `json:"maxmem"` // bytes, as all sizes here
	Mem      Int    `json:"mem"`
	MaxDisk  Int    `json:"maxdisk"`
	Disk     Int    `json:"disk"`
	Uptime   Int    `json:"uptime"` // seconds
}

// Resources lists what our credentials may see in the cluster, as pvestatd published it up to 10 s ago; right after a
// node's start its rows say "unknown". The type is "vm", "storage", "node", "sdn" or "" for all.
func (c *Client) Resources(ctx context.Context, typ string) ([]Resource, error) {
	v := url.Values{}
	setText(v, "type", typ)
	var out []Resource
	err := c.Call(ctx, http.MethodGet, "/cluster/resources", v, &out)
	return out, err
}

// HAResource is something the HA manager is in charge of.
type HAResource struct {
	SID   string `json:"sid"`   // "vm:100", "ct:101"
	Type  string `json:"type"`  // "vm" or "ct"
	State string `json:"state"` // the state asked for: "started", "stopped", "disabled", "ignored"
	Group string `json:"group"`
}

// HAResources lists what the HA manager is in charge of. It needs Sys.Audit on /.
func (c *Client) HAResources(ctx context.Context) ([]HAResource, error) {
	var out []HAResource
	err := c.Call(ctx, http.MethodGet, "/cluster/ha/resources", nil, &out)
	return out, err
}
