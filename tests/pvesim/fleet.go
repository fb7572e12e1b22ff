package pvesim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

// The templates that are there from the beginning, all on pve1.
const (
	TemplateID       = 9000 // on storage local
	TemplateSharedID = 9001 // on storage shared
	TemplateDebianID = 9002 // on storage local; with Config.Debian only
)

// DebianTemplate is the name of the template with a Debian guest.
const DebianTemplate = "debian-template"

const (
	fleetDisk    = 8 << 20
	templateDisk = 64 << 20
)

// populate makes the templates and the VMs of the beginning.
func (c *Cluster) populate(ctx context.Context) error {
	blank := filepath.Join(c.cfg.Dir, "blank.qcow2")
	if err := os.Remove(blank); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("blank image: %w", err)
	}
	if err := c.disks.Create(ctx, blank, "qcow2", fleetDisk); err != nil {
		return err
	}
	image, err := readStencil(blank)
	if err := errors.Join(err, os.Remove(blank)); err != nil {
		return err
	}
	if !c.cfg.NoTemplates {
		if err := c.makeTemplates(ctx); err != nil {
			return err
		}
	}
	return c.makeFleet(ctx, image)
}

func (c *Cluster) makeTemplates(ctx context.Context) error {
	confs, owners := map[int]*vmconf.Conf{}, map[int]string{}
	blank := func(path string) error { return c.disks.Create(ctx, path, "qcow2", templateDisk) }
	for _, t := range []struct {
		id            int
		storage, name string
		size          int64
		guest         *guestimage.Image
		fill          func(path string) error
	}{
		{TemplateID, StorageLocal, c.cfg.TemplateName, templateDisk, c.guest, blank},
		{TemplateSharedID, StorageShared, c.cfg.TemplateName + "-shared", templateDisk, c.guest, blank},
		{TemplateDebianID, StorageLocal, DebianTemplate, 1 << 30, c.debianImage(), func(path string) error {
			return c.disks.Clone(ctx, c.debian.Disk, path, "qcow2")
		}},
	} {
		if t.id == TemplateDebianID && c.debian == nil {
			continue
		}
		volid := fmt.Sprintf("%s:%d/base-%d-disk-0.qcow2", t.storage, t.id, t.id)
		if err := c.makeDisk(ctx, c.nodes[0], volid, t.fill); err != nil {
			return err
		}
		conf := c.guestConf(t.id, t.name, volid, t.size)
		conf.Main["template"] = "1"
		ci := fmt.Sprintf("%s:%d/vm-%d-cloudinit.qcow2", t.storage, t.id, t.id)
		if err := c.makeDisk(ctx, c.nodes[0], ci, func(path string) error { return c.disks.CloudInit(ctx, path, nil) }); err != nil {
			return err
		}
		conf.Main["ide2"] = ci + ",media=cdrom"
		if t.guest != nil {
			conf.Main["args"] = quoteArgs(t.guest.Args())
		}
		confs[t.id], owners[t.id] = conf, c.nodes[0].Name
	}
	return c.tree.addConfs(owners, func(id int) []byte { return confs[id].Bytes() })
}

// debianImage boots the Debian guest; nil without it.
func (c *Cluster) debianImage() *guestimage.Image {
	if c.debian == nil {
		return nil
	}
	return &c.debian.Image
}

func (c *Cluster) makeDisk(_ context.Context, n *Node, volid string, make func(path string) error) error {
	path, err := c.pool.path(n.Name, volid)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return make(path)
}

// guestConf is the config that VMs and templates of the beginning have.
func (c *Cluster) guestConf(id int, name, volid string, size int64) *vmconf.Conf {
	conf := vmconf.New()
	conf.Main = vmconf.Section{
		"agent": "1", "boot": "order=scsi0", "cores": "1", "sockets": "1", "memory": "512", "name": name, "numa": "0",
		"ostype": "l26", "scsihw": "virtio-scsi-pci", "serial0": "socket",
		"net0":    vmconf.NIC{Model: "virtio", MAC: newMAC(), Opts: map[string]string{"bridge": bridges[0]}}.String(),
		"scsi0":   fmt.Sprintf("%s,size=%s", volid, vmconf.FormatSize(size)),
		"smbios1": "uuid=" + newUUID(), "vmgenid": newUUID(),
	}
	return conf
}

// makeFleet makes the VMs, spread over the nodes, and starts every other one.
func (c *Cluster) makeFleet(ctx context.Context, blank *stencil) error {
	owners, confs := map[int]string{}, map[int]*vmconf.Conf{}
	for i := range c.cfg.VMs {
		id, n := c.cfg.FirstVM+i, c.nodes[i%len(c.nodes)]
		volid := fmt.Sprintf("%s:%d/vm-%d-disk-0.qcow2", StorageLocal, id, id)
		if err := c.makeDisk(ctx, n, volid, blank.write); err != nil {
			return err
		}
		owners[id], confs[id] = n.Name, c.guestConf(id, fmt.Sprintf("vm-%d", id), volid, fleetDisk)
	}
	if err := c.tree.addConfs(owners, func(id int) []byte { return confs[id].Bytes() }); err != nil {
		return err
	}
	if c.cfg.QEMU == None {
		return nil
	}
	return c.startFleet(ctx, owners, confs)
}

// startFleet starts the even ones, a few at a time.
func (c *Cluster) startFleet(ctx context.Context, owners map[int]string, confs map[int]*vmconf.Conf) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
	)
	slots := make(chan struct{}, 8)
	for i := 0; i < c.cfg.VMs; i += 2 {
		id := c.cfg.FirstVM + i
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if _, err := c.launch(ctx, c.byName[owners[id]], id, confs[id].Main); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("start VM %d: %w", id, err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// quoteArgs writes words as the "args" option has them.
func quoteArgs(args []string) string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.ContainsAny(a, " \t'\"") {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// splitArgs is quoteArgs undone, as PVE splits the option.
func splitArgs(s string) []string {
	var out []string
	var word strings.Builder
	quoted, open := rune(0), false
	for _, r := range s {
		switch {
		case quoted != 0 && r == quoted:
			quoted = 0
		case quoted == 0 && (r == '\'' || r == '"'):
			quoted, open = r, true
		case quoted == 0 && (r == ' ' || r == '\t'):
			if open {
				out = append(out, word.String())
				word.Reset()
				open = false
			}
		default:
			open = true
			word.WriteRune(r)
		}
	}
	if open {
		out = append(out, word.String())
	}
	return out
}
