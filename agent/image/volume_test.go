package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

func TestLocate(t *testing.T) {
	t.Parallel()
	parsed, err := pmxcfs.ParseStorages("storage.cfg", []byte(`dir: local
	path /var/lib/vz

btrfs: tree
	path /tree

lvmthin: thin
	vgname pve
	thinpool data

lvm: thick
	vgname big

zfspool: tank
	pool tank/vm-disks

rbd: ceph
	pool rbd

zfs: iscsi
	pool p
	portal x
`))
	if err != nil {
		t.Fatal(err)
	}
	world := &pmxcfs.World{Storages: parsed}
	for volid, want := range map[string]string{
		"local:9000/base-9000-disk-0.qcow2":              "/var/lib/vz/images/9000/base-9000-disk-0.qcow2 qcow2",
		"local:1/base-1-d.raw/9000/base-9000-disk-0.raw": "/var/lib/vz/images/9000/base-9000-disk-0.raw raw",
		"tree:9000/base-9000-disk-0.raw":                 "/tree/images/9000/base-9000-disk-0/disk.raw raw",
		"thin:base-9000-disk-0":                          "/dev/pve/base-9000-disk-0 raw device",
		"thick:vm-9000-disk-0.qcow2":                     "/dev/big/vm-9000-disk-0.qcow2 qcow2 device",
		"tank:base-9000-disk-0":                          "/dev/zvol/tank/vm-disks/base-9000-disk-0 raw device",
		"ceph:base-9000-disk-0":                          "type rbd",
		"iscsi:base-9000-disk-0":                         "type zfs",
		"nowhere:x":                                      "no such storage",
		"local:../../etc/shadow":                         "not a volume",
		"local:9000/../../../../etc/shadow":              "not a",
		"thin:../sda":                                    "not a volume",
		"thin:..":                                        "not a volume",
		"thin:a/b":                                       "not a volume",
		"tank:../../sda":                                 "not a volume",
		"/etc/shadow":                                    "no such storage",
	} {
		v, err := locate(world, volid, "/dev")
		got := v.Path + " " + v.Format
		if v.Device {
			got += " device"
		}
		if err != nil {
			got = err.Error()
		}
		if err == nil && got != want || err != nil && !strings.Contains(got, want) {
			t.Errorf("%s: got %s, want %s", volid, got, want)
		}
	}
}

// reading is a lab with a template on pve1 whose disk is a file, of which it returns the path.
func reading(t *testing.T, volume string) (*lab, string) {
	t.Helper()
	vz := t.TempDir()
	l := newLab(t, func(c *Config) { c.Devices = filepath.Join(vz, "dev") })
	l.write("storage.cfg", strings.ReplaceAll(storages, "/var/lib/vz", vz))
	l.put(9000, "pve1", "name: ubuntu\ntemplate: 1\nscsi0: "+volume+",size=2G\nide2: local:iso/x.iso,media=cdrom\n")
	l.put(9001, "pve2", templateConf(9001, "far", "local", uuidA))
	l.put(100, "pve1", "name: web\nscsi0: local:100/vm-100-disk-0.raw,size=1G\n")
	l.refresh()
	l.write(".version", `{"starttime":2,"vmlist":7,"storage.cfg":7}`)
	l.must(l.cfg.Watcher.Refresh(t.Context()))
	v, err := locate(l.world(), volume, l.cfg.Devices)
	l.must(err)
	l.must(os.MkdirAll(filepath.Dir(v.Path), 0o755))
	return l, v.Path
}

// readAll reads a disk piece by piece, as another agent does.
func (l *lab) readAll(volume string, step int32) ([]byte, int) {
	l.Helper()
	var out bytes.Buffer
	pieces := 0
	for at := int64(0); ; pieces++ {
		r, err := l.ReadVolume(l.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: volume, Offset: at, Length: step})
		l.must(err)
		out.Write(make([]byte, r.GetOffset()-at))
		out.Write(r.GetData())
		if at = r.GetOffset() + int64(len(r.GetData())); at >= r.GetSize() {
			return out.Bytes(), pieces + 1
		}
	}
}

func TestReadVolume(t *testing.T) {
	t.Parallel()
	for what, volume := range map[string]string{"a file": "local:9000/base-9000-disk-0.raw", "a device": "local-lvm:base-9000-disk-0"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			l, path := reading(t, volume)
			content := make([]byte, 10<<20)
			copy(content[1000:], "begins")
			copy(content[7<<20:], "goes on")
			f, err := os.Create(path)
			l.must(err)
			for _, at := range []int{0, 7 << 20} { // with holes between and behind
				_, err = f.WriteAt(content[at:at+4096], int64(at))
				l.must(err)
			}
			l.must(f.Truncate(int64(len(content))))
			l.must(f.Close())
			got, pieces := l.readAll(volume, 1<<20)
			if !bytes.Equal(got, content) || pieces > 5 {
				t.Errorf("%d bytes in %d pieces, equal: %v", len(got), pieces, bytes.Equal(got, content))
			}
			r, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: volume, Checksum: true})
			if want := sha256.Sum256(content); err != nil || !bytes.Equal(r.GetSha256(), want[:]) {
				t.Errorf("checksum %x, %v, want %x", r.GetSha256(), err, want)
			}
			if r, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: volume, Offset: 1 << 40, Length: 1}); err != nil || len(r.GetData()) > 0 || r.GetSize() != 10<<20 {
				t.Errorf("beyond its end: %v, %v", r, err)
			}
			if r, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: volume, Offset: -5, Length: 1 << 30}); err != nil || len(r.GetData()) > maxPiece {
				t.Errorf("too much: %d bytes, %v", len(r.GetData()), err)
			}
			// Another file of that name has another checksum.
			l.must(os.Remove(path))
			l.must(os.WriteFile(path, content[:5<<20], 0o600))
			r, err = l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: volume, Checksum: true})
			if want := sha256.Sum256(content[:5<<20]); err != nil || !bytes.Equal(r.GetSha256(), want[:]) {
				t.Errorf("checksum of another file: %x, %v", r.GetSha256(), err)
			}
		})
	}
}

// Only disks of templates of this node are read, and nothing that looks like one.
func TestReadVolumeRefuses(t *testing.T) {
	t.Parallel()
	const disk = "local:9000/base-9000-disk-0.raw"
	l, path := reading(t, disk)
	secret := filepath.Join(t.TempDir(), "secret")
	l.must(os.WriteFile(secret, []byte("secret"), 0o600))
	for _, x := range []struct {
		vmid   int32
		volume string
		code   codes.Code
		says   string
	}{
		{9000, disk, codes.FailedPrecondition, "no such file"},
		{9000, "local:iso/x.iso", codes.NotFound, "no disk"},
		{9000, "local:100/vm-100-disk-0.raw", codes.NotFound, "no disk"},
		{9000, secret, codes.NotFound, "no disk"},
		{9001, "local:9001/base-9001-disk-0.qcow2", codes.NotFound, "no template 9001"},
		{100, "local:100/vm-100-disk-0.raw", codes.NotFound, "no template 100"},
		{555, disk, codes.NotFound, "no template 555"},
	} {
		r, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: x.vmid, Volume: x.volume, Length: 10})
		if status.Code(err) != x.code || !strings.Contains(fmt.Sprint(err), x.says) {
			t.Errorf("%d %s: %v, %v", x.vmid, x.volume, r, err)
		}
	}
	l.must(os.Mkdir(path, 0o755))
	if _, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: disk, Length: 10}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a directory: %v", err)
	}
	l, path = reading(t, "local-lvm:base-9000-disk-0")
	_, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: "local-lvm:base-9000-disk-0", Length: 10})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "lvchange -ay -K "+path) {
		t.Errorf("a volume that is not active: %v", err)
	}
}

// A file that is only the difference to another one is no disk.
func TestReadVolumeOfALinkedClone(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("skipped: needs qemu-img; enable with: apt-get install --no-install-recommends qemu-utils")
	}
	const disk = "local:9000/base-9000-disk-0.qcow2"
	l, path := reading(t, disk)
	for _, args := range []string{"create -q -f qcow2 " + path + ".base 1M", "create -q -f qcow2 -b " + path + ".base -F qcow2 " + path} {
		if out, err := exec.CommandContext(t.Context(), "qemu-img", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	_, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: disk, Length: 10})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "linked clone") {
		t.Errorf("got %v", err)
	}
	l.must(os.Rename(path+".base", path))
	if _, err := l.ReadVolume(t.Context(), &peerpb.ReadVolumeRequest{Vmid: 9000, Volume: disk, Length: 10}); err != nil {
		t.Error(err)
	}
	raw := make([]byte, 512)
	copy(raw, "QFI\xfb\x00\x00\x00\x03")
	raw[79] = 4 // data in another file
	l.must(os.WriteFile(path, raw, 0o600))
	v := volume{Path: path, Format: "qcow2"}
	if _, _, err := v.open(); !errors.Is(err, errBacked) {
		t.Errorf("with its data elsewhere: %v", err)
	}
}
