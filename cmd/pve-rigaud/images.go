package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// imagesObject is the JSON answer of `pve-rigaud images`. Every key is always there.
type imagesObject struct {
	view
	Images []imageObject `json:"images"` // by name
}

type imageObject struct {
	Name       string          `json:"name"`
	Source     string          `json:"source"`      // where it came from, in words
	Checksum   string          `json:"checksum"`    // "sha256:<hex>" of the first disk's file; "" if it was never copied
	AgeSeconds float64         `json:"age_seconds"` // 0 if not known
	Wanted     int32           `json:"wanted"`      // on how many nodes it is to be
	Replicas   []replicaObject `json:"replicas"`    // its templates, by node
}

type replicaObject struct {
	Node       string  `json:"node"`
	VMID       int32   `json:"vmid"`  // 0: not given yet
	State      string  `json:"state"` // ready, making, stale, missing, failed
	Shared     bool    `json:"shared"`
	Bytes      uint64  `json:"bytes"`
	AgeSeconds float64 `json:"age_seconds"` // 0 if not known
	Clones     int32   `json:"clones"`      // VMs that share its disks
	Reason     string  `json:"reason"`
	Done       float64 `json:"done"` // 0 to 1, while it is made
}

func askImages(ctx context.Context, client nodepb.NodeClient, q *question) (any, func(io.Writer) error, error) {
	resp, err := client.Images(ctx, &nodepb.ImagesRequest{Name: q.image})
	if err != nil {
		return nil, nil, err
	}
	return imagesOf(resp), imagesTable(resp).write, nil
}

func imagesOf(resp *nodepb.ImagesResponse) imagesObject {
	out := imagesObject{view: viewOf(resp.GetView()), Images: []imageObject{}}
	for _, i := range resp.GetImages() {
		o := imageObject{
			Name: i.GetName(), Source: i.GetSource(), Checksum: i.GetChecksum(), AgeSeconds: seconds(i.GetAgeMs()), Wanted: i.GetWanted(),
			Replicas: []replicaObject{},
		}
		for _, r := range i.GetReplicas() {
			o.Replicas = append(o.Replicas, replicaObject{
				Node: r.GetNode(), VMID: r.GetVmid(), State: r.GetState(), Shared: r.GetShared(), Bytes: r.GetBytes(),
				AgeSeconds: seconds(r.GetAgeMs()), Clones: r.GetClones(), Reason: r.GetReason(), Done: r.GetDone(),
			})
		}
		out.Images = append(out.Images, o)
	}
	return out
}

func imagesTable(resp *nodepb.ImagesResponse) *table {
	t := newTable("IMAGE", "NODE", "VMID", "STATE", "GIB", "AGE", "CLONES", "SOURCE", "NOTE")
	t.remark("stale", resp.GetView().GetStale())
	for _, i := range resp.GetImages() {
		for _, r := range i.GetReplicas() {
			vmid, size, age := "", "", ""
			if r.GetVmid() != 0 {
				vmid = strconv.Itoa(int(r.GetVmid()))
			}
			if r.GetBytes() > 0 {
				size = gib(r.GetBytes())
			}
			if r.GetAgeMs() > 0 {
				age = span(r.GetAgeMs())
			}
			t.add(i.GetName(), r.GetNode(), vmid, r.GetState(), size, age, strconv.Itoa(int(r.GetClones())), i.GetSource(), replicaNote(i, r))
		}
		if len(i.GetReplicas()) == 0 {
			t.add(i.GetName(), "", "", "missing", "", "", "", i.GetSource(), "nothing is left of it")
		}
	}
	return t
}

// replicaNote is what else there is to know of a template.
func replicaNote(i *nodepb.Image, r *nodepb.Replica) string {
	var notes []string
	switch {
	case r.GetShared():
		notes = append(notes, "on shared storage")
	case r.GetState() == "making":
		notes = append(notes, fmt.Sprintf("%d %% copied", int(r.GetDone()*100)))
	}
	if ready := readyNodes(i); r.GetState() == "ready" && ready < int(i.GetWanted()) {
		notes = append(notes, fmt.Sprintf("on %d of %d nodes", ready, i.GetWanted()))
	}
	if r.GetReason() != "" {
		notes = append(notes, r.GetReason())
	}
	return strings.Join(notes, ", ")
}

func readyNodes(i *nodepb.Image) int {
	nodes := map[string]bool{}
	for _, r := range i.GetReplicas() {
		if r.GetState() == "ready" {
			nodes[r.GetNode()] = true
		}
	}
	return len(nodes)
}
