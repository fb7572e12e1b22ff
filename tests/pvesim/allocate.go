package pvesim

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

func newUUID() string { return uuid.NewString() }

// newMAC is a random address with the prefix PVE uses.
func newMAC() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // crypto/rand.Read never fails
	return fmt.Sprintf("BC:24:11:%02X:%02X:%02X", b[0], b[1], b[2])
}

// makeDrive allocates what a drive's value asks for and returns the value as
// it stands in the config.
func (c *Cluster) makeDrive(ctx context.Context, n *Node, vmid int, d vmconf.Drive, t *Task) (string, error) {
	format := d.Opts["format"]
	def(&format, "qcow2")
	if strings.HasSuffix(d.File, ":cloudinit") {
		volid, err := c.allocate(ctx, n, d.Storage(), vmid, fmt.Sprintf("vm-%d-cloudinit.qcow2", vmid), "qcow2", cloudInitSize, t)
		if err != nil {
			return "", err
		}
		d.File, d.Opts = volid, map[string]string{"media": "cdrom"}
		return d.String(), nil
	}
	if m := newDiskValue.FindStringSubmatch(d.File); m != nil {
		gib, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return "", dief("unable to parse size '%s'", m[2])
		}
		if src := d.Opts["import-from"]; src != "" {
			return c.importDrive(ctx, n, vmid, d, src, format, t)
		}
		size := int64(gib * (1 << 30))
		volid, err := c.allocate(ctx, n, m[1], vmid, "", format, size, t)
		if err != nil {
			return "", err
		}
		d.File = volid
		delete(d.Opts, "format")
		d.Opts["size"] = vmconf.FormatSize(size)
		return d.String(), nil
	}
	if d.Storage() == "" {
		return d.String(), nil
	}
	return c.adoptDrive(ctx, n, d)
}

// adoptDrive checks an existing volume and notes its size.
func (c *Cluster) adoptDrive(ctx context.Context, n *Node, d vmconf.Drive) (string, error) {
	path, err := c.pool.exists(n.Name, d.File)
	if err != nil {
		return "", err
	}
	info, err := c.disks.Info(ctx, path)
	if err != nil {
		return "", dief("volume %s does not exist", d.File)
	}
	delete(d.Opts, "format")
	d.Opts["size"] = vmconf.FormatSize(info.Virtual)
	return d.String(), nil
}

// importDrive is "<storage>:0,import-from=<volume>".
func (c *Cluster) importDrive(ctx context.Context, n *Node, vmid int, d vmconf.Drive, src, format string, t *Task) (string, error) {
	path, err := c.pool.exists(n.Name, src)
	if err != nil {
		return "", err
	}
	volid, err := c.copyVolume(ctx, n, path, d.Storage(), vmid, "", format, t)
	if err != nil {
		return "", dief("cannot import from '%s' - %s", src, err)
	}
	delete(d.Opts, "import-from")
	d.File = volid
	return c.adoptDrive(ctx, n, d)
}

// place chooses a volume's name and path and makes its directory.
func (c *Cluster) place(n *Node, storage string, vmid int, name, format string) (volid, path string, done func(), err error) {
	s, err := c.pool.enabled(storage, n.Name)
	if err != nil {
		return "", "", nil, err
	}
	if !s.holds("images") {
		return "", "", nil, dief("storage '%s' does not support content-type 'images'", storage)
	}
	chosen, done, err := c.pool.newDisk(s, n.Name, vmid, format)
	if err != nil {
		return "", "", nil, err
	}
	def(&name, chosen)
	volid = fmt.Sprintf("%s:%d/%s", storage, vmid, name)
	path, err = c.pool.path(n.Name, volid)
	return volid, path, done, err
}

// allocate makes an empty volume; name "" takes the next free disk name.
func (c *Cluster) allocate(ctx context.Context, n *Node, storage string, vmid int, name, format string, size int64, t *Task) (string, error) {
	volid, path, done, err := c.place(n, storage, vmid, name, format)
	if err != nil {
		return "", err
	}
	defer done()
	if _, err := os.Stat(path); err == nil {
		return "", dief("disk image '%s' already exists", path)
	}
	if err := c.makeImage(path, storage, size, func() error { return c.disks.Create(ctx, path, format, size) }); err != nil {
		return "", err
	}
	if t != nil {
		t.logf("Formatting '%s', fmt=%s size=%d", path, format, size)
		t.logf("allocated target volume '%s'", volid)
	}
	return volid, nil
}

// copyVolume makes a full copy of an image file.
func (c *Cluster) copyVolume(ctx context.Context, n *Node, src, storage string, vmid int, name, format string, t *Task) (string, error) {
	info, err := c.disks.Info(ctx, src)
	if err != nil {
		return "", err
	}
	volid, path, done, err := c.place(n, storage, vmid, name, format)
	if err != nil {
		return "", err
	}
	defer done()
	if err := c.makeImage(path, storage, info.Virtual, func() error { return c.disks.Clone(ctx, src, path, format) }); err != nil {
		return "", err
	}
	t.logf("Formatting '%s', fmt=%s size=%d", path, format, info.Virtual)
	t.logf("allocated target volume '%s'", volid)
	mib := float64(info.Virtual) / (1 << 20)
	t.logf("transferred 0.0 B of %.1f MiB (0.00%%)\ntransferred %.1f MiB of %.1f MiB (100.00%%)", mib, mib, mib)
	return volid, nil
}

func (c *Cluster) makeImage(path, storage string, size int64, create func() error) error {
	err := c.pool.room(storage, path, size)
	if err == nil {
		err = create()
	}
	if err == nil {
		return nil
	}
	_ = os.Remove(path)
	_ = os.Remove(filepath.Dir(path)) // fails unless it is empty
	var e *apiError
	if errors.As(err, &e) {
		return err
	}
	return dief("unable to create image: %s", err)
}
