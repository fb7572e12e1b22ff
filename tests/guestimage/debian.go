package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// recipe is what the Debian guest is made from: its packages, a script that
// finishes it, files that come on top, and process 1 of its initramfs.
//
//go:embed all:debian
var recipe embed.FS

// Debian is a guest with a root disk: a Debian of this machine's release with
// systemd, the real cloud-init, netplan and qemu-guest-agent.
type Debian struct {
	// Image boots it. Its initramfs mounts the disk, on whatever bus it is,
	// and hands over to systemd.
	Image
	// Disk is the path of a raw image: one ext4 file system with the label
	// guest-root, sparse. Others use it too: machines get copies.
	Disk string
}

// debianModules are the drivers of the Debian guest. It has none on its disk.
var debianModules = append([]string{"ext4", "autofs4", "af_packet", "crc32c_generic"}, wantedModules...)

// debianCommandLine is short of what the other guest has: plain names of
// interfaces, and no security modules.
const debianCommandLine = "console=ttyS0 quiet loglevel=4 panic=-1 " +
	"nokaslr mitigations=off cryptomgr.notests init_on_alloc=0 lsm= nowatchdog no_timer_check " +
	"random.trust_cpu=on random.trust_bootloader=on memhp_default_state=online_movable systemd.show_status=0"

// FindDebian returns the Debian guest. Its disk is made by mmdebstrap, which
// takes a minute or two and needs root and Debian's archive, unless one of the
// same recipe and package versions is in the cache. The error is a
// [*MissingError] if a package is not installed here.
func FindDebian(ctx context.Context, cfg Config) (Debian, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Debian{}, err
	}
	parts, err := locate(cfg.Roots)
	if err != nil {
		return Debian{}, err
	}
	archive, err := debianInitramfs(ctx, parts)
	if err != nil {
		return Debian{}, fmt.Errorf("build initramfs of the Debian guest: %w", err)
	}
	sum := sha256.Sum256(archive)
	initrd := filepath.Join(cfg.CacheDir, fmt.Sprintf("initrd-%x.cpio", sum[:12]))
	if err := keep(initrd, archive); err != nil {
		return Debian{}, fmt.Errorf("keep initramfs of the Debian guest: %w", err)
	}
	disk, err := debianDisk(ctx, cfg.CacheDir)
	if err != nil {
		return Debian{}, fmt.Errorf("root disk of the Debian guest: %w", err)
	}
	return Debian{
		Image: Image{Kernel: parts.kernel.image, Initrd: initrd, Append: debianCommandLine, Release: parts.kernel.release},
		Disk:  disk,
	}, nil
}

// debianInitramfs holds what it takes to mount the root disk.
func debianInitramfs(ctx context.Context, p parts) ([]byte, error) {
	files := make(tree)
	for _, dir := range []string{"proc", "sys", "dev", "root"} {
		files.dir(dir)
	}
	init, err := recipe.ReadFile("debian/init")
	if err != nil {
		return nil, err
	}
	files.file("init", 0o755, init)
	busybox, err := os.ReadFile(p.busybox)
	if err != nil {
		return nil, err
	}
	files.file("bin/busybox", 0o755, busybox)
	for _, applet := range []string{"sh", "mount", "umount", "insmod", "findfs", "usleep", "switch_root"} {
		files.link("bin/"+applet, "/bin/busybox")
	}
	if err := files.addModules(ctx, p, debianModules); err != nil {
		return nil, err
	}
	return files.archive()
}

// debianDisk returns the disk of the cache, made before if need be. Only one
// program makes it at a time.
func debianDisk(ctx context.Context, cache string) (string, error) {
	plan, err := planDebian(ctx)
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, "debian-"+plan.key+".raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if os.Geteuid() != 0 {
		return "", errors.New("it is not in the cache, and making it needs root")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "debian.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { _ = lock.Close() }() // and with it the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := plan.make(ctx, path); err != nil {
		return "", err
	}
	return path, dropOthers(cache, path)
}

// dropOthers removes the disks of earlier recipes. Who has one open keeps it.
func dropOthers(cache, path string) error {
	all, err := filepath.Glob(filepath.Join(cache, "debian-*.raw"))
	for _, old := range all {
		if old != path {
			err = errors.Join(err, os.Remove(old))
		}
	}
	return err
}

// debianPlan says what disk to make.
type debianPlan struct {
	packages []string
	sources  string // file with apt's sources of this machine
	suite    string // "bookworm"
	options  string // apt's options of this machine for getting packages (proxies), as text
	key      string // hash of all that decides what the disk holds
}

// aptSources are the places of the sources that Debian's installer and its
// container images write. What else a machine has may not be Debian's.
var aptSources = []string{"/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"}

func planDebian(ctx context.Context) (debianPlan, error) {
	list, err := recipe.ReadFile("debian/packages")
	if err != nil {
		return debianPlan{}, err
	}
	p := debianPlan{packages: strings.Fields(string(list))}
	for _, tool := range []struct{ program, pkg string }{{"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}} {
		if _, err := exec.LookPath(tool.program); err != nil {
			return p, &MissingError{Packages: []string{tool.pkg}, Causes: []error{err}}
		}
	}
	for _, file := range aptSources {
		if text, err := os.ReadFile(file); err == nil && bytes.Contains(text, []byte("deb")) {
			p.sources = file
			break
		}
	}
	if p.sources == "" {
		return p, fmt.Errorf("no sources of Debian packages in %s: %w", strings.Join(aptSources, " or "), fs.ErrNotExist)
	}
	if p.suite, err = codename(); err != nil {
		return p, err
	}
	if p.options, err = acquireOptions(ctx); err != nil {
		return p, err
	}
	p.key, err = p.hash(ctx)
	return p, err
}

// codename is this machine's release of Debian.
func codename() (string, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("/etc/os-release names no release")
}

// acquireOptions are this machine's settings for how apt gets files.
func acquireOptions(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-config", "dump").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config dump: %w", err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Acquire::") {
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

// hash covers the recipe and the versions that this machine knows of the
// packages it names. What these depend on may be newer in the archive.
func (p debianPlan) hash(ctx context.Context) (string, error) {
	h := sha256.New()
	err := fs.WalkDir(recipe, "debian", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || name == "debian/init" {
			return err
		}
		text, err := recipe.ReadFile(name)
		_, _ = fmt.Fprintf(h, "%s %d\n%s", name, len(text), text) // a hash takes everything
		return err
	})
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, "apt-cache", append([]string{"policy", "systemd"}, p.packages...)...).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache policy: %w", err)
	}
	_, _ = fmt.Fprintln(h, p.suite)
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "Candidate:") {
			_, _ = io.WriteString(h, line)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12]), nil
}

// diskSize is what the file system begins with; cloud-init grows it to the
// size of its machine's disk.
const diskSize = "1G"

// make makes the disk, whole or not at all.
func (p debianPlan) make(ctx context.Context, path string) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".debian-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.CopyFS(filepath.Join(dir, "recipe"), recipe); err != nil {
		return err
	}
	base, root, tmp := filepath.Join(dir, "recipe", "debian"), filepath.Join(dir, "root"), filepath.Join(dir, "disk.raw")
	options := filepath.Join(dir, "apt.conf")
	if err := os.WriteFile(options, []byte(p.options), 0o600); err != nil {
		return err
	}
	args := []string{
		"--quiet", "--mode=root", "--variant=minbase", "--format=directory", "--include=" + strings.Join(p.packages, ","),
		"--aptopt=" + options, `--aptopt=Apt::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`,
	}
	for _, dir := range []string{"doc", "info", "locale", "man"} {
		args = append(args, "--dpkgopt=path-exclude=/usr/share/"+dir+"/*")
	}
	args = append(args, p.suite, root, p.sources)
	for _, step := range [][]string{
		append([]string{"mmdebstrap"}, args...),
		{"sh", filepath.Join(base, "customize"), root},
		{"cp", "-r", filepath.Join(base, "overlay") + "/.", root},
		{"mke2fs", "-q", "-F", "-t", "ext4", "-L", "guest-root", "-d", root, tmp, diskSize},
	} {
		if err := runTool(ctx, step); err != nil {
			return err
		}
	}
	return os.Rename(tmp, path)
}

// runTool runs a program. Its error has the end of what the program said.
func runTool(ctx context.Context, words []string) error {
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	// Asked to end, mmdebstrap unmounts what it mounted.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", words[0], err, out[max(0, len(out)-2000):])
	}
	return nil
}
