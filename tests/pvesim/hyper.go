package pvesim

import (
	"context"
	"errors"

	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// chooseHypervisor decides what a VM is. Auto takes stand-ins when anything
// that real ones need is missing, and says what.
func (c *Cluster) chooseHypervisor(ctx context.Context) error {
	if c.cfg.QEMU == None {
		c.hyper, c.standIn, c.disks = kvm.None{}, kvm.None{}, cacheDisks(disk.Plain{})
		return nil
	}
	fake := kvm.NewFake(c.cfg.Fake)
	c.standIn = fake
	if c.cfg.QEMU != Fake {
		err := c.chooseReal(ctx)
		if err == nil {
			return nil
		}
		if c.cfg.QEMU == Real {
			return err
		}
		c.log.InfoContext(ctx, "virtual machines are stand-ins", "because", err)
		c.why = err.Error()
	}
	c.hyper, c.disks = fake, cacheDisks(disk.Plain{})
	if c.cfg.RealDisks {
		images, err := disk.NewQemuImg()
		if err != nil {
			return err
		}
		c.disks = cacheDisks(images)
	}
	return nil
}

func (c *Cluster) chooseReal(ctx context.Context) error {
	cfg := kvm.RealConfig{Log: c.log}
	if c.cfg.Debian {
		guest, err := guestimage.FindDebian(ctx, guestimage.Config{})
		if err != nil {
			return err
		}
		c.debian, cfg.ConsoleDir = &guest, c.cfg.Dir // a guest that takes a minute to boot has something to tell
	}
	real, err1 := kvm.NewReal(ctx, cfg)
	images, err2 := disk.NewQemuImg()
	guest, err3 := guestimage.Find(ctx, guestimage.Config{})
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	c.hyper, c.disks, c.guest = real, cacheDisks(images), &guest
	return nil
}

// Why says why Auto did not choose real VMs, "" if it did or was not asked.
func (c *Cluster) Why() string { return c.why }

// hypervisorFor returns what runs a VM. With real QEMU the VMs that are there
// from the beginning stay stand-ins: fifty idle guests would keep a small
// machine busy.
func (c *Cluster) hypervisorFor(vmid int) kvm.Hypervisor {
	if vmid >= c.cfg.FirstVM && vmid < c.cfg.FirstVM+c.cfg.VMs {
		return c.standIn
	}
	return c.hyper
}
