package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
)

// planTarget is what decoding and planning a Create may take: little beside one read of /etc/pve.
const planTarget = 200 * time.Microsecond

// others is how many VMs the cluster has in which a VM is planned: its MAC addresses must be nobody's.
const others = 100

// planning measures how long it takes to understand a Create with every field set, and to decide what becomes of it.
func (b *bench) planning(context.Context) error {
	world, source, err := plannedWorld()
	if err != nil {
		return err
	}
	site := plan.Site{Node: "pve3", World: world, CPUs: 16, MHz: 2000, Major: 9}
	var failed error
	r := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			if failed = planOnce(source, site); failed != nil {
				b.FailNow()
			}
		}
	})
	if failed != nil {
		return fmt.Errorf("plan a create: %w", failed)
	}
	b.figure("decode and plan a full Create", float64(r.NsPerOp())/1e3, float64(planTarget.Microseconds()), "us")
	return nil
}

func planOnce(source *pmxcfs.Conf, site plan.Site) error {
	wish, err := spec.DecodeCreate(spec.CreateInput{
		Name: "web-01", ClassJSON: payloads.Class, ImageJSON: payloads.Image, NetworksJSON: payloads.Networks, DisksJSON: payloads.Disks,
		PlacementJSON: payloads.Placement, UserData: bytes.Repeat([]byte("#cloud-config\n"), 100), Tags: []string{"web", "Team A"},
	})
	if err != nil {
		return err
	}
	vm, err := plan.Create(plan.Wish{
		Class: &wish.Class, Networks: wish.Networks, Disks: wish.Disks, Placement: wish.Placement, Tags: wish.Tags,
	}, source, site, plan.MACs(site.World))
	if err == nil && len(vm.Drives) == 0 {
		err = errors.New("no disk was planned")
	}
	return err
}

// plannedWorld is a cluster as the payloads name it, with the template that they are made from.
func plannedWorld() (*pmxcfs.World, *pmxcfs.Conf, error) {
	storages, err := pmxcfs.ParseStorages("storage.cfg", []byte("lvmthin: local-lvm\n\tvgname pve\n\tthinpool data\n\tcontent images,rootdir\n"))
	if err != nil {
		return nil, nil, err
	}
	source, err := pmxcfs.ParseConf("9000.conf", []byte("name: tpl\ntemplate: 1\nscsihw: virtio-scsi-pci\nboot: order=scsi0\n"+
		"scsi0: local-lvm:base-9000-disk-0,size=10G\nnet0: virtio=BC:24:11:00:00:01,bridge=vmbr0\nagent: 1\n"))
	if err != nil {
		return nil, nil, err
	}
	world := &pmxcfs.World{Storages: storages, Members: pmxcfs.Members{Cluster: "lab", Nodes: map[string]pmxcfs.Member{"pve3": {Name: "pve3", Online: true}}}}
	world.VMs = map[int]*pmxcfs.VM{}
	for i := range others {
		conf, err := pmxcfs.ParseConf("x.conf", fmt.Appendf(nil, "name: vm-%d\nnet0: virtio=BC:24:11:00:01:%02X,bridge=vmbr0\n", i, i))
		if err != nil {
			return nil, nil, err
		}
		world.VMs[1000+i] = &pmxcfs.VM{ID: 1000 + i, Conf: conf}
	}
	return world, source, nil
}
