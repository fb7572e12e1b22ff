package guestimage

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/cavaliergopher/cpio"
)

// rootfs is the part of the guest that is ours: init and its scripts.
//
//go:embed all:rootfs
var rootfs embed.FS

// tree is a file system to be: path without leading slash -> entry.
type tree map[string]entry

type entry struct {
	mode cpio.FileMode // with type bits
	data []byte        // content, or target of a link
}

// build makes the initramfs: an uncompressed cpio archive, because TCG would
// take longer to unpack it than QEMU takes to load it. The same parts always
// give the same bytes.
func build(ctx context.Context, p parts) ([]byte, error) {
	files := make(tree)
	for _, dir := range []string{"proc", "sys", "dev", "run", "tmp", "root"} {
		files.dir(dir)
	}
	steps := []func(context.Context, parts) error{files.addScripts, files.addBusybox, files.addAgent}
	for _, step := range steps {
		if err := step(ctx, p); err != nil {
			return nil, err
		}
	}
	if err := files.addModules(ctx, p, wantedModules); err != nil {
		return nil, err
	}
	return files.archive()
}

func (t tree) addScripts(context.Context, parts) error {
	return fs.WalkDir(rootfs, "rootfs", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := rootfs.ReadFile(name)
		if err != nil {
			return err
		}
		mode := cpio.FileMode(0o644)
		if bytes.HasPrefix(data, []byte("#!")) {
			mode = 0o755
		}
		t.file(strings.TrimPrefix(name, "rootfs/"), mode, data)
		return nil
	})
}

// addBusybox adds busybox and a link for each of its applets that we do not
// replace.
func (t tree) addBusybox(ctx context.Context, p parts) error {
	data, err := os.ReadFile(p.busybox)
	if err != nil {
		return err
	}
	t.file("bin/busybox", 0o755, data)
	applets, err := exec.CommandContext(ctx, p.busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets of %s: %w", p.busybox, err)
	}
	for applet := range strings.FieldsSeq(string(applets)) {
		if _, ours := t["sbin/"+applet]; !ours && applet != "busybox" {
			t.link("bin/"+applet, "/bin/busybox")
		}
	}
	return nil
}

func (t tree) addAgent(_ context.Context, p parts) error {
	libs, err := libraries(p.roots, p.agent)
	if err != nil {
		return err
	}
	libs["/sbin/qemu-ga"] = p.agent
	for inGuest, here := range libs {
		data, err := os.ReadFile(here)
		if err != nil {
			return err
		}
		t.file(strings.TrimPrefix(inGuest, "/"), 0o755, data)
	}
	return nil
}

// addModules adds drivers, and the list of their files in the order to load them.
func (t tree) addModules(ctx context.Context, p parts, wanted []string) error {
	modules, err := loadOrder(ctx, p.kernel.modules, wanted)
	if err != nil {
		return err
	}
	var order strings.Builder
	for _, m := range modules {
		t.file("lib/modules/"+m.name+".ko", 0o644, m.data)
		fmt.Fprintln(&order, m.name+".ko")
	}
	t.file("etc/modules", 0o644, []byte(order.String()))
	return nil
}

func (t tree) dir(name string) {
	if name == "." || name == "/" || name == "" {
		return
	}
	t.dir(path.Dir(name))
	t[name] = entry{mode: cpio.TypeDir | 0o755}
}

func (t tree) file(name string, mode cpio.FileMode, data []byte) {
	t.dir(path.Dir(name))
	t[name] = entry{mode: cpio.TypeReg | mode, data: data}
}

func (t tree) link(name, target string) {
	t.dir(path.Dir(name))
	t[name] = entry{mode: cpio.TypeSymlink | 0o777, data: []byte(target)}
}

// archive writes the tree in the order of the names, so that a directory
// comes before what is in it.
func (t tree) archive() ([]byte, error) {
	names := make([]string, 0, len(t))
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	var buf bytes.Buffer
	w := cpio.NewWriter(&buf)
	for _, name := range names {
		if err := write(w, name, t[name]); err != nil {
			return nil, fmt.Errorf("archive %s: %w", name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive: %w", err)
	}
	return buf.Bytes(), nil
}

func write(w *cpio.Writer, name string, e entry) error {
	header := &cpio.Header{Name: name, Mode: e.mode, Links: 1, Size: int64(len(e.data))}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(e.data)
	return err
}
