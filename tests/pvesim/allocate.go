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

// driveJob is a drive to be made for a VM.
type driveJob struct {
	node *Node
	vmid int
	conf *vmconf.Conf // of the VM, for what it has already
	who  principal
	t    *Task // nil: nothing is logged
}

// makeDrive allocates what a drive's value asks for and returns the value as
// it stands in the config, and the volume that was made, "" for none.
func (c *Cluster) makeDrive(ctx context.Context, job driveJob, d vmconf.Drive) (value, made string, err error) {
	switch {
	case strings.HasSuffix(d.File, ":cloudinit"):
		d.File, err = c.makeCloudInit(ctx, job, d)
		made = d.File
		d.Opts["media"] = "cdrom"
	case newDiskValue.MatchString(d.File):
		d, err = c.makeDisks(ctx, job, d)
		made = d.File
	case d.Storage() == "":
		delete(d.Opts, "size")
		return d.String(), "", nil
	default:
		d, err = c.adoptDrive(ctx, job, d)
		return d.String(), "", err
	}
	if err != nil {
		return "", "", err
	}
	delete(d.Opts, "format")
	if job.t != nil {
		job.t.logf("%s: successfully created disk '%s'", d.Key, d.String())
	}
	return d.String(), made, nil
}

// makeCloudInit makes the volume of a cloud-init drive. A VM has one.
func (c *Cluster) makeCloudInit(ctx context.Context, job driveJob, d vmconf.Drive) (string, error) {
	if err := noSecondCloudInit(job.conf, d.Key); err != nil {
		return "", err
	}
	s, err := c.pool.enabled(d.Storage(), job.node.Name)
	if err != nil {
		return "", err
	}
	format := d.Opts["format"]
	if !s.block() {
		def(&format, "qcow2")
	}
	if format, err = s.chooseFormat(format); err != nil {
		return "", err
	}
	return c.allocate(ctx, job.node, s.Name, job.vmid, s.volumeName(job.vmid, "cloudinit", format), format, cloudInitSize, job.t)
}

func noSecondCloudInit(conf *vmconf.Conf, key string) error {
	for _, s := range []vmconf.Section{conf.Main, conf.Pending} {
		if d := cloudInitDrive(s); d != nil && d.Key != key {
			return dief("%s - cloud-init drive is already attached at '%s'", key, d.Key)
		}
	}
	return nil
}

// Sizes of the volumes that PVE chooses itself: the UEFI variables by efitype
// (those of its OVMF), the TPM's state.
const (
	efiSize4M = 528 << 10
	efiSize2M = 128 << 10
	tpmSize   = 4 << 20
)

// makeDisks makes the volume of "<storage>:<GiB>", empty or a copy.
func (c *Cluster) makeDisks(ctx context.Context, job driveJob, d vmconf.Drive) (vmconf.Drive, error) {
	m := newDiskValue.FindStringSubmatch(d.File)
	s, err := c.pool.enabled(m[1], job.node.Name)
	if err != nil {
		return d, err
	}
	if src, ok := d.Opts["import-from"]; ok {
		return c.importDrive(ctx, job, d, src)
	}
	gib, err := strconv.ParseFloat(m[2], 64)
	if err != nil {
		return d, dief("unable to parse size '%s'", m[2])
	}
	size := int64(gib * (1 << 30))
	switch d.Key {
	case "efidisk0":
		size = efiSize2M
		if d.Opts["efitype"] == "4m" {
			size = efiSize4M
		}
		if d.Opts["pre-enrolled-keys"] == "1" && c.cfg.Version >= "9.1" {
			d.Opts["ms-cert"] = "2023k"
		}
	case "tpmstate0":
		size = tpmSize
	}
	format, err := s.chooseFormat(d.Opts["format"])
	if err != nil {
		return d, err
	}
	size = s.roundSize(size)
	d.File, err = c.allocate(ctx, job.node, s.Name, job.vmid, "", format, size, job.t)
	d.Opts["size"] = vmconf.FormatSize(size)
	return d, err
}

// adoptDrive checks an existing volume and notes its size.
func (c *Cluster) adoptDrive(ctx context.Context, job driveJob, d vmconf.Drive) (vmconf.Drive, error) {
	v, err := parseVolume(d.File)
	if err != nil {
		return d, err
	}
	if v.kind != "images" && v.kind != "iso" {
		return d, dief("cannot use volume %s - content type needs to be 'images' or 'iso'", d.File)
	}
	if f := d.Opts["format"]; f != "" && f != v.format {
		return d, dief("drive '%s' - volume '%s' - 'format=%s' option different from storage format '%s'", d.Key, d.File, f, v.format)
	}
	if d.CloudInit() {
		if err := noSecondCloudInit(job.conf, d.Key); err != nil {
			return d, err
		}
	}
	path, err := c.pool.exists(job.node.Name, d.File)
	if err != nil {
		return d, err
	}
	info, err := c.disks.Info(ctx, path)
	if err != nil {
		return d, dief("volume %s does not exist", d.File)
	}
	d.Opts["size"] = vmconf.FormatSize(info.Virtual)
	return d, nil
}

// importDrive is "<storage>:0,import-from=<volume>".
func (c *Cluster) importDrive(ctx context.Context, job driveJob, d vmconf.Drive, src string) (vmconf.Drive, error) {
	path, err := c.pool.exists(job.node.Name, src)
	if err != nil {
		return d, dief("cannot import from '%s' - %s", src, err)
	}
	s, err := c.pool.enabled(d.Storage(), job.node.Name)
	if err != nil {
		return d, err
	}
	format := d.Opts["format"]
	if v, err := parseVolume(src); err == nil && format == "" && !s.block() {
		format = v.format // a copy keeps its format where the storage has it
	}
	if format != "raw" && format != "qcow2" {
		format = ""
	}
	if format, err = s.chooseFormat(format); err != nil {
		return d, err
	}
	if job.t != nil {
		job.t.logf("create full clone of drive (%s)", src)
	}
	volid, err := c.copyVolume(ctx, job.node, path, "", s.Name, job.vmid, format, job.t)
	if err != nil {
		return d, dief("cannot import from '%s' - %s", src, err)
	}
	delete(d.Opts, "import-from")
	delete(d.Opts, "format")
	d.File = volid
	return c.adoptDrive(ctx, job, d)
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
	if s.block() {
		volid = storage + ":" + name
	}
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
	if err := c.makeImage(path, volid, size, func() error { return c.disks.Create(ctx, path, fileFormat(path), size) }); err != nil {
		return "", err
	}
	if t != nil {
		t.logf("Formatting '%s', fmt=%s size=%d", path, format, size)
		t.logf("allocated target volume '%s'", volid)
	}
	return volid, nil
}

// copyVolume makes a full copy of an image file, or with snap of the state it
// had.
func (c *Cluster) copyVolume(ctx context.Context, n *Node, src, snap, storage string, vmid int, format string, t *Task) (string, error) {
	info, err := c.disks.Info(ctx, src)
	if err != nil {
		return "", err
	}
	volid, path, done, err := c.place(n, storage, vmid, "", format)
	if err != nil {
		return "", err
	}
	defer done()
	if err := c.makeImage(path, volid, info.Virtual, func() error { return c.cloneImage(ctx, src, snap, path) }); err != nil {
		return "", err
	}
	if t == nil {
		return volid, nil
	}
	t.logf("Formatting '%s', fmt=%s size=%d", path, format, info.Virtual)
	t.logf("allocated target volume '%s'", volid)
	mib := float64(info.Virtual) / (1 << 20)
	t.logf("transferred 0.0 B of %.1f MiB (0.00%%)\ntransferred %.1f MiB of %.1f MiB (100.00%%)", mib, mib, mib)
	return volid, nil
}

func (c *Cluster) cloneImage(ctx context.Context, src, snap, dst string) error {
	if snap != "" {
		return c.disks.CloneSnapshot(ctx, src, snap, dst, fileFormat(dst))
	}
	return c.disks.Clone(ctx, src, dst, fileFormat(dst))
}

// fileFormat is what an image file is: a block device's is qcow2.
func fileFormat(path string) string { return strings.TrimPrefix(filepath.Ext(path), ".") }

func (c *Cluster) makeImage(path, volid string, size int64, create func() error) error {
	err := c.pool.room(volid, path, size)
	if err == nil && c.faults.takeAllocation(volid) {
		err = c.pool.full(volid, path)
	}
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
