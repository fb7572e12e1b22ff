// Package image knows what VMs are made from: images, each a set of template VMs that are the same, one on each of some
// nodes or one on shared storage for all. PVE clones a template only where its disks are.
//
// Templates are made by administrators. What ties them to an image is their name, or a record of the image in /etc/pve
// (record.Image), which also knows the copies, replicas, that we have made on other nodes' storages. Whether a replica is
// still one is decided anew at each look, by comparing the version of the template that it was copied from with those of
// the templates there are now: nobody has to tell us that a template was rebuilt.
package image

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// EveryNode is the number of replicas that stands for one on each node.
const EveryNode = -1

// Config configures Images. All rooms are given; nothing is started.
type Config struct {
	Node    string
	Tree    *pmxcfs.Tree
	Watcher *pmxcfs.Watcher
	Records *record.Images
	PVE     *pve.Client
	Ops     *ops.Engine
	Log     *slog.Logger

	IDs   *record.IDs
	VMIDs record.Range

	// Replicas is on how many nodes an image is to be, the administrator's own templates counted; EveryNode: on all. 1 (or
	// 0): no replicas are made.
	Replicas int
	// Cordoned says why a node takes no new VMs, and so no replicas; "": it does. Nil: all do.
	Cordoned func(node string) string
	// Call asks the agent of another node.
	Call func(ctx context.Context, node, method string, req, resp proto.Message) error

	// Devices is where block devices are; default /dev.
	Devices string
	// Now is the clock whose times are written to records; default time.Now.
	Now func() time.Time
	// Every is the pause between two looks for replicas that are missing; default 30 s.
	Every time.Duration
	// TaskTimeout is how long the making of a replica may take before it is undone; default 2 h.
	TaskTimeout time.Duration
}

// Images are the images of a cluster, as one node deals with them. It is a task: its Run makes replicas that are missing
// on this node.
type Images struct {
	cfg   Config
	log   *slog.Logger
	ready chan struct{}
	sums  checksums

	mu     sync.Mutex         // guards failed
	failed map[string]failure // by image
}

// failure is why a replica could not be made here.
type failure struct {
	why   string
	times int       // in a row
	at    time.Time // the last time
}

// longestPause is how long a replica that could not be made is left alone at most.
const longestPause = time.Hour

// New returns the images and names the handler of their operations to the engine.
func New(cfg Config) *Images {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Devices == "" {
		cfg.Devices = "/dev"
	}
	if cfg.Every <= 0 {
		cfg.Every = 30 * time.Second
	}
	if cfg.TaskTimeout <= 0 {
		cfg.TaskTimeout = 2 * time.Hour
	}
	if cfg.Cordoned == nil {
		cfg.Cordoned = func(string) string { return "" }
	}
	m := &Images{cfg: cfg, log: cfg.Log, ready: make(chan struct{}), failed: map[string]failure{}}
	cfg.Ops.Handle(ops.Replica, m.makeReplica)
	return m
}
