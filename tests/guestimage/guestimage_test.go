package guestimage

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/google/go-cmp/cmp"
)

// image builds the real image, or skips.
func image(t *testing.T, cfg Config) Image {
	t.Helper()
	img, err := Find(t.Context(), cfg)
	if missing := (*MissingError)(nil); errors.As(err, &missing) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// unpack reads an archive back: name -> header with content.
func unpack(t *testing.T, file string) map[string]entry {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	files := make(map[string]entry)
	r := cpio.NewReader(bytes.NewReader(data))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := files[path.Dir(header.Name)]; !ok && path.Dir(header.Name) != "." {
			t.Errorf("%s comes before its directory", header.Name)
		}
		files[header.Name] = entry{mode: header.Mode, data: content}
	}
}

func TestFindIsComplete(t *testing.T) {
	t.Parallel()
	img := image(t, Config{CacheDir: t.TempDir()})
	files := unpack(t, img.Initrd)
	for _, name := range []string{"init", "sbin/qemu-ga", "bin/busybox", "sbin/shutdown", "etc/acpi/PWRF/00000080"} {
		if files[name].mode&0o111 == 0 {
			t.Errorf("%s is missing or not executable", name)
		}
	}
	if files["etc/rc.cloudinit"].mode.Perm() != 0o644 {
		t.Error("etc/rc.cloudinit is missing")
	}
	assertLibraries(t, files)
	assertModules(t, files)
	if !strings.Contains(img.Kernel, img.Release) {
		t.Errorf("kernel %s is not of release %s", img.Kernel, img.Release)
	}
}

// assertLibraries looks for what each dynamic program and library needs.
func assertLibraries(t *testing.T, files map[string]entry) {
	t.Helper()
	for name, e := range files {
		if !bytes.HasPrefix(e.data, []byte("\x7fELF")) || strings.HasSuffix(name, ".ko") {
			continue
		}
		file := filepath.Join(t.TempDir(), "elf")
		if err := os.WriteFile(file, e.data, 0o600); err != nil {
			t.Fatal(err)
		}
		bin, err := inspect(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, lib := range bin.needed {
			_, inLib := files["lib/x86_64-linux-gnu/"+lib]
			_, inLib64 := files["lib64/"+lib]
			if !inLib && !inLib64 {
				t.Errorf("%s needs %s, which is not in the image", name, lib)
			}
		}
	}
}

// assertModules looks whether each module is loaded after those it depends on.
func assertModules(t *testing.T, files map[string]entry) {
	t.Helper()
	order := strings.Fields(string(files["etc/modules"].data))
	if !slices.Contains(order, "virtio_console.ko") || !slices.Contains(order, "virtio_balloon.ko") {
		t.Errorf("modules %v lack the essential ones", order)
	}
	for i, name := range order {
		depends, err := dependencies(files["lib/modules/"+name].data)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range depends {
			if at := slices.Index(order, d+".ko"); at > i {
				t.Errorf("%s is loaded before %s", name, d)
			}
		}
	}
}

func TestFindIsCached(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := image(t, Config{CacheDir: dir})
	before, err := os.Stat(first.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	second := image(t, Config{CacheDir: dir})
	after, err := os.Stat(second.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	if first != second || !os.SameFile(before, after) {
		t.Errorf("the same parts gave %v, then %v", first, second)
	}
	// A file cut short (no room, a crash before rename was atomic) is mended.
	if err := os.Truncate(first.Initrd, 10); err != nil {
		t.Fatal(err)
	}
	image(t, Config{CacheDir: dir})
	if mended, err := os.Stat(first.Initrd); err != nil || mended.Size() != before.Size() {
		t.Errorf("a truncated image stayed: %v, %v", mended, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".initrd-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFindNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	_, err := Find(t.Context(), Config{CacheDir: t.TempDir(), Roots: []string{t.TempDir()}})
	want := "guest image needs linux-image-cloud-amd64, busybox-static, qemu-guest-agent; enable with: " +
		"apt-get install --no-install-recommends linux-image-cloud-amd64 busybox-static qemu-guest-agent"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v does not say that files do not exist", err)
	}
}

func TestNewestKernel(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	touch := func(name string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	touch("boot/vmlinuz-6.1.0-9-cloud-amd64")
	touch("lib/modules/6.1.0-9-cloud-amd64/kernel/a.ko")
	touch("boot/vmlinuz-6.1.0-56-cloud-amd64")
	touch("usr/lib/modules/6.1.0-56-cloud-amd64/kernel/a.ko")
	touch("boot/vmlinuz-6.12.0-1-amd64") // not a cloud kernel
	touch("lib/modules/6.12.0-1-amd64/kernel/a.ko")
	touch("boot/vmlinuz-6.12.0-1-cloud-amd64") // its modules are gone
	got, err := newestKernel([]string{t.TempDir(), root})
	if err != nil {
		t.Fatal(err)
	}
	want := kernel{
		release: "6.1.0-56-cloud-amd64",
		image:   filepath.Join(root, "boot/vmlinuz-6.1.0-56-cloud-amd64"),
		modules: filepath.Join(root, "usr/lib/modules/6.1.0-56-cloud-amd64"),
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(kernel{})); diff != "" {
		t.Error(diff)
	}
}

func TestUnsigned(t *testing.T) {
	t.Parallel()
	const body = "\x7fELF module"
	signature := "sig\x00"
	length := "\x00\x00\x00\x04"
	signed := body + signature + "12345678" + length + signatureMark
	for name, data := range map[string]struct{ in, out string }{
		"signed":          {signed, body},
		"not signed":      {body, body},
		"only the mark":   {signatureMark, signatureMark},
		"too long a sign": {"12345678\xff\xff\xff\xff" + signatureMark, "12345678\xff\xff\xff\xff" + signatureMark},
	} {
		if got := string(unsigned([]byte(data.in))); got != data.out {
			t.Errorf("%s: got %q", name, got)
		}
	}
}

func TestStaticBusyboxOnly(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	shell, err := filepath.EvalSymlinks("/bin/sh") // dynamic everywhere on Debian
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(shell, filepath.Join(root, "bin/busybox")); err != nil {
		t.Fatal(err)
	}
	if got, err := staticBusybox([]string{root}); err == nil {
		t.Errorf("took the dynamic %s", got)
	}
}

func TestNetworkConfig(t *testing.T) {
	t.Parallel()
	busybox, err := staticBusybox([]string{"/"})
	if err != nil {
		t.Skip("skipped: needs busybox-static; enable with: apt-get install busybox-static")
	}
	inputs, err := filepath.Glob("testdata/network-*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal("no testdata", err)
	}
	for _, input := range inputs {
		t.Run(filepath.Base(input), func(t *testing.T) {
			t.Parallel()
			out, err := exec.CommandContext(t.Context(), busybox, "awk", "-f", "rootfs/etc/network.awk", input).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			want, err := os.ReadFile(strings.TrimSuffix(input, ".yaml") + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(out)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
