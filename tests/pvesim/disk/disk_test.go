package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// subject is a store, and a way to the content of its images.
type subject struct {
	Store
	content func(t *testing.T, path string) []byte
}

func realImages(t *testing.T) subject {
	t.Helper()
	store, err := NewQemuImg()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	return subject{store, func(t *testing.T, path string) []byte {
		t.Helper()
		out := filepath.Join(t.TempDir(), "raw")
		if said, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", "raw", path, out).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
		return read(t, out)
	}}
}

func plainImages(*testing.T) subject {
	return subject{Plain{}, func(t *testing.T, path string) []byte {
		t.Helper()
		return read(t, path)[pageSize:]
	}}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

const mib = 1 << 20

func TestStores(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*testing.T, subject, string){
		"create": testCreate, "clone": testClone, "linked": testLinked, "resize": testResize,
		"snapshots": testSnapshots, "cloud-init": testCloudInit, "refusals": testRefusals, "cancelled": testCancelled,
	}
	for kind, open := range map[string]func(*testing.T) subject{"qemu-img": realImages, "plain": plainImages} {
		for name, test := range tests {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				test(t, open(t), t.TempDir())
			})
		}
	}
}

// must checks what Info says, but for the room taken, which is returned.
func must(t *testing.T, s subject, path string, want Info) int64 {
	t.Helper()
	got, err := s.Info(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	actual := got.Actual
	got.Actual = 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: %s", path, diff)
	}
	return actual
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func testCreate(t *testing.T, s subject, dir string) {
	for _, format := range []string{Raw, QCOW2} {
		path := filepath.Join(dir, "disk."+format)
		ok(t, s.Create(t.Context(), path, format, 64*mib))
		if actual := must(t, s, path, Info{Virtual: 64 * mib, Format: format}); actual > mib {
			t.Errorf("an empty %s takes %d bytes", format, actual)
		}
		ok(t, s.Remove(path))
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func testClone(t *testing.T, s subject, dir string) {
	src := filepath.Join(dir, "src.raw")
	ok(t, s.CloudInit(t.Context(), src, map[string][]byte{"user-data": []byte("clone me")}))
	ok(t, s.Resize(t.Context(), src, Raw, 64*mib))
	for _, format := range []string{Raw, QCOW2} {
		dst := filepath.Join(dir, "dst."+format)
		ok(t, s.Clone(t.Context(), src, dst, format))
		if actual := must(t, s, dst, Info{Virtual: 64 * mib, Format: format}); actual > 8*mib {
			t.Errorf("a clone with 64 MiB of holes takes %d bytes", actual)
		}
		if !bytes.Contains(s.content(t, dst)[:cloudInitSize], []byte("clone me")) {
			t.Errorf("the clone in %s lacks the content", format)
		}
	}
}

func testLinked(t *testing.T, s subject, dir string) {
	base := filepath.Join(dir, "base", "base-900-disk-0.raw")
	linked := filepath.Join(dir, "vm", "vm-100-disk-0.qcow2")
	for _, d := range []string{"base", "vm"} {
		ok(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	ok(t, s.CloudInit(t.Context(), base, map[string][]byte{"user-data": []byte("from the base")}))
	ok(t, s.Linked(t.Context(), base, linked))
	if actual := must(t, s, linked, Info{Virtual: cloudInitSize, Format: QCOW2, Backing: base}); actual > mib {
		t.Errorf("a linked clone takes %d bytes", actual)
	}
	ok(t, s.Resize(t.Context(), linked, QCOW2, 8*mib))
	must(t, s, linked, Info{Virtual: 8 * mib, Format: QCOW2, Backing: base})
	// A full copy of it stands alone.
	full := filepath.Join(dir, "full.qcow2")
	ok(t, s.Clone(t.Context(), linked, full, QCOW2))
	must(t, s, full, Info{Virtual: 8 * mib, Format: QCOW2})
	ok(t, s.Remove(base))
	if !bytes.Contains(s.content(t, full), []byte("from the base")) {
		t.Error("the full copy lacks what the link had")
	}
	// The link is found from its own directory, wherever that is.
	ok(t, os.Rename(filepath.Join(dir, "vm"), filepath.Join(dir, "elsewhere")))
	moved, err := s.Info(t.Context(), filepath.Join(dir, "elsewhere", "vm-100-disk-0.qcow2"))
	if err != nil || moved.Backing != base {
		t.Errorf("after a move: %+v, %v", moved, err)
	}
}

func testResize(t *testing.T, s subject, dir string) {
	path := filepath.Join(dir, "disk.qcow2")
	ok(t, s.Create(t.Context(), path, QCOW2, 64*mib))
	ok(t, s.Resize(t.Context(), path, QCOW2, 65*mib))
	must(t, s, path, Info{Virtual: 65 * mib, Format: QCOW2})
	err := s.Resize(t.Context(), path, QCOW2, 64*mib)
	if !errors.Is(err, ErrShrink) || !strings.Contains(err.Error(), path) {
		t.Errorf("shrinking: %v", err)
	}
	must(t, s, path, Info{Virtual: 65 * mib, Format: QCOW2})
}

func testSnapshots(t *testing.T, s subject, dir string) {
	path, raw := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "disk.raw")
	ok(t, s.Create(t.Context(), path, QCOW2, 64*mib))
	ok(t, s.Create(t.Context(), raw, Raw, mib))
	ok(t, s.Snapshot(t.Context(), path, "alpha"))
	ok(t, s.Resize(t.Context(), path, QCOW2, 128*mib))
	ok(t, s.Snapshot(t.Context(), path, "beta"))
	must(t, s, path, Info{Virtual: 128 * mib, Format: QCOW2, Snapshots: []string{"alpha", "beta"}})
	ok(t, s.Revert(t.Context(), path, "alpha"))
	must(t, s, path, Info{Virtual: 64 * mib, Format: QCOW2, Snapshots: []string{"alpha", "beta"}})
	ok(t, s.DeleteSnapshot(t.Context(), path, "alpha"))
	must(t, s, path, Info{Virtual: 64 * mib, Format: QCOW2, Snapshots: []string{"beta"}})
	clone := filepath.Join(dir, "clone.raw")
	ok(t, s.CloneSnapshot(t.Context(), path, "beta", clone, Raw))
	must(t, s, clone, Info{Virtual: 64 * mib, Format: Raw})
	for name, c := range map[string]struct{ err, want error }{
		"unknown, clone":   {s.CloneSnapshot(t.Context(), path, "alpha", filepath.Join(dir, "no.raw"), Raw), ErrSnapshot},
		"twice":            {s.Snapshot(t.Context(), path, "beta"), fs.ErrExist},
		"unknown, revert":  {s.Revert(t.Context(), path, "alpha"), ErrSnapshot},
		"unknown, delete":  {s.DeleteSnapshot(t.Context(), path, "alpha"), ErrSnapshot},
		"of a raw image":   {s.Snapshot(t.Context(), raw, "alpha"), ErrNoSnapshots},
		"revert raw image": {s.Revert(t.Context(), raw, "alpha"), ErrNoSnapshots},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
}

func testCloudInit(t *testing.T, s subject, dir string) {
	for _, format := range []string{Raw, QCOW2} {
		path := filepath.Join(dir, "vm-100-cloudinit."+format)
		for _, text := range []string{"first", "second"} { // made anew at each start of a VM
			ok(t, s.CloudInit(t.Context(), path, map[string][]byte{"user-data": []byte(text), "meta-data": nil}))
			must(t, s, path, Info{Virtual: cloudInitSize, Format: format})
			if !bytes.Contains(s.content(t, path), []byte(text)) {
				t.Errorf("%s drive lacks %q", format, text)
			}
		}
	}
	err := s.CloudInit(t.Context(), filepath.Join(dir, "big.raw"), map[string][]byte{"user-data": make([]byte, cloudInitSize)})
	if err == nil {
		t.Error("took more files than the drive has room for")
	}
	assertFiles(t, dir, "vm-100-cloudinit.qcow2", "vm-100-cloudinit.raw")
}

func assertFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	ok(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files: %s", diff)
	}
}

func testRefusals(t *testing.T, s subject, dir string) {
	path, none, fresh := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "none.raw"), filepath.Join(dir, "fresh.raw")
	ok(t, s.Create(t.Context(), path, Raw, mib))
	before := read(t, path)
	_, infoErr := s.Info(t.Context(), none)
	for name, c := range map[string]struct{ err, want error }{
		"create over":   {s.Create(t.Context(), path, QCOW2, 2*mib), fs.ErrExist},
		"clone over":    {s.Clone(t.Context(), path, path, Raw), fs.ErrExist},
		"link over":     {s.Linked(t.Context(), path, path), fs.ErrExist},
		"clone none":    {s.Clone(t.Context(), none, fresh, Raw), fs.ErrNotExist},
		"link none":     {s.Linked(t.Context(), none, fresh), fs.ErrNotExist},
		"resize none":   {s.Resize(t.Context(), none, Raw, mib), fs.ErrNotExist},
		"remove none":   {s.Remove(none), fs.ErrNotExist},
		"info of none":  {infoErr, fs.ErrNotExist},
		"create vmdk":   {s.Create(t.Context(), fresh, "vmdk", mib), ErrFormat},
		"clone to vmdk": {s.Clone(t.Context(), path, fresh, "vmdk"), ErrFormat},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
			continue
		}
		if !strings.Contains(c.err.Error(), dir) {
			t.Errorf("%s: %v does not name the path", name, c.err)
		}
	}
	if !bytes.Equal(before, read(t, path)) {
		t.Error("a refused call changed the image")
	}
	assertFiles(t, dir, "disk.raw")
}

func testCancelled(t *testing.T, s subject, dir string) {
	path := filepath.Join(dir, "disk.raw")
	ok(t, s.CloudInit(t.Context(), path, nil))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, err := range map[string]error{
		"create": s.Create(ctx, filepath.Join(dir, "a.raw"), Raw, mib),
		"clone":  s.Clone(ctx, path, filepath.Join(dir, "b.raw"), Raw),
		"link":   s.Linked(ctx, path, filepath.Join(dir, "c.qcow2")),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	assertFiles(t, dir, "disk.raw")
}

func TestPlainTakesForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "debian.iso"), filepath.Join(dir, "copy.raw")
	ok(t, os.WriteFile(src, []byte("an ISO from elsewhere"), 0o600))
	s := plainImages(t)
	must(t, s, src, Info{Virtual: 21, Format: Raw})
	ok(t, s.Clone(t.Context(), src, dst, Raw))
	if got := string(s.content(t, dst)); got != "an ISO from elsewhere" {
		t.Errorf("copied %q", got)
	}
}

func TestISO(t *testing.T) {
	t.Parallel()
	isoinfo, err := exec.LookPath("isoinfo")
	if err != nil {
		t.Skip("skipped: needs genisoimage to read an ISO image; enable with: apt-get install --no-install-recommends genisoimage")
	}
	// More files than one sector of a directory holds, one of them empty, one
	// longer than a sector.
	files := map[string][]byte{
		"user-data": []byte("#cloud-config\nhostname: web-1\n"), "meta-data": nil,
		"network-config": []byte(strings.Repeat("version: 2\n", 1000)),
	}
	for i := range 40 {
		files[fmt.Sprintf("file-with-a-long-name-%02d.yaml", i)] = []byte{byte(i)}
	}
	image, err := iso("cidata", files)
	ok(t, err)
	path := filepath.Join(t.TempDir(), "iso")
	ok(t, os.WriteFile(path, image, 0o600))
	for name, want := range files {
		got, err := exec.CommandContext(t.Context(), isoinfo, "-R", "-i", path, "-x", "/"+name).Output()
		ok(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: read back %d bytes, want %d", name, len(got), len(want))
		}
	}
	about, err := exec.CommandContext(t.Context(), isoinfo, "-d", "-i", path).Output()
	ok(t, err)
	for _, line := range []string{
		"Volume id: cidata", "Rock Ridge signatures version 1 found", fmt.Sprintf("Volume size is: %d", len(image)/sector),
	} {
		if !strings.Contains(string(about), line) {
			t.Errorf("isoinfo does not say %q:\n%s", line, about)
		}
	}
	for _, bad := range []string{"", "a/b", strings.Repeat("x", 129)} {
		if _, err := iso("cidata", map[string][]byte{bad: nil}); err == nil {
			t.Errorf("took the file name %q", bad)
		}
	}
}
