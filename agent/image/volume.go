package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// volume is where a disk's bytes are on this node.
type volume struct {
	Path   string // of a file or a block device
	Format string // of the bytes: raw, qcow2, vmdk
	Device bool
}

// devicePart is what a part of a block device's path may be made of: no slashes, and no dots at its beginning.
var devicePart = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:+-]*$`)

// errUnreadable says that the bytes of a storage's disks cannot be read in place.
var errUnreadable = errors.New("disks of that type of storage cannot be read in place")

// locate finds the bytes of a volume, by what storage.cfg says of its storage. Devices are below dev.
func locate(world *pmxcfs.World, volid, dev string) (volume, error) {
	id, name, ok := strings.Cut(volid, ":")
	s, known := world.Storages.Get(id)
	if !ok || !known {
		return volume{}, fmt.Errorf("%s: no such storage in /etc/pve/storage.cfg", volid)
	}
	if !supported(s) {
		return volume{}, fmt.Errorf("%s: storage %s is of type %s: %w", volid, s.ID, s.Type, errUnreadable)
	}
	if s.Path != "" {
		path, err := s.VolumePath(volid)
		return volume{Path: path, Format: s.Format(volid)}, err
	}
	parts := []string{s.Options["vgname"], name}
	if s.Type == "zfspool" {
		parts = append(append([]string{"zvol"}, strings.Split(s.Options["pool"], "/")...), name)
	}
	for _, p := range parts {
		if !devicePart.MatchString(p) {
			return volume{}, fmt.Errorf("%s: not a volume that can be read", volid)
		}
	}
	return volume{Path: filepath.Join(append([]string{dev}, parts...)...), Format: s.Format(volid), Device: true}, nil
}

// supported reports whether a storage's disks are files or devices of the node.
func supported(s pmxcfs.Storage) bool {
	switch s.Type {
	case "lvm", "lvmthin", "zfspool":
		return true
	}
	return s.Path != "" && slices.Contains(stageable, s.Type)
}

// readable reports whether all disks of a template can be read by its node's agent, and stand on no others.
func readable(world *pmxcfs.World, conf *pmxcfs.Conf) bool {
	for _, d := range copied(conf) {
		if s, ok := world.Storages.Get(d.Storage); !ok || !supported(s) || baseOf(d) != "" && s.Path != "" {
			return false
		}
	}
	return len(copied(conf)) > 0
}

// errBacked says that a file is only the difference to another one.
var errBacked = errors.New("it is a linked clone of another disk, which a copy would lack: make the template of a full clone")

// open opens a volume for reading and returns its size.
func (v volume) open() (*os.File, int64, error) {
	f, err := os.Open(v.Path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	size := int64(0)
	if err == nil {
		size, err = v.size(f, info)
	}
	if err == nil && v.Format == "qcow2" {
		err = selfContained(f)
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("%s: %w", v.Path, err), f.Close())
	}
	return f, size, nil
}

// size is that of the file or device. Whatever else has that name is not read.
func (v volume) size(f *os.File, info os.FileInfo) (int64, error) {
	if v.Device {
		if info.Mode()&os.ModeDevice == 0 && !info.Mode().IsRegular() {
			return 0, errors.New("not a block device")
		}
		return f.Seek(0, 2)
	}
	if !info.Mode().IsRegular() {
		return 0, errors.New("not a regular file")
	}
	return info.Size(), nil
}

// selfContained fails for a qcow2 file that has a backing file or keeps its data in another one (docs/interop/qcow2.txt of
// QEMU: backing_file_offset at 8, incompatible features at 72 from version 3 on).
func selfContained(f *os.File) error {
	var head [80]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return fmt.Errorf("read its header: %w", err)
	}
	if string(head[:4]) != "QFI\xfb" {
		return nil // PVE says what it thinks of it
	}
	const externalData = 1 << 2
	if slices.ContainsFunc(head[8:16], func(b byte) bool { return b != 0 }) || head[7] >= 3 && head[79]&externalData != 0 {
		return errBacked
	}
	return nil
}
