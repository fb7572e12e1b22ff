// Package guestimage makes the Linux guest that real QEMU machines of the
// simulated cluster boot: Debian's cloud kernel and a small initramfs with
// busybox, qemu-guest-agent and the virtio drivers. The guest takes its
// hostname and addresses from the cloud-init drive, brings plugged CPUs and
// memory online and obeys the power button. Where that is too little, there is
// [Debian], with a root disk and the real cloud-init.
package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Config says where the parts of the guest are found.
type Config struct {
	// CacheDir holds built images. Empty means pve-rigaud/guestimage in
	// [os.UserCacheDir].
	CacheDir string
	// Roots are searched in this order for the kernel, its modules, busybox,
	// qemu-ga and the libraries it needs. Empty means "/" and, for packages
	// extracted with dpkg -x instead of installed,
	// pve-rigaud/guestimage/root in [os.UserCacheDir].
	Roots []string
}

// Image is a guest to boot with QEMU's -kernel, -initrd and -append.
type Image struct {
	Kernel string // path of the bzImage
	Initrd string // path of the initramfs, named by the hash of its content
	Append string // kernel command line
	// Release is the kernel's release, "6.1.0-56-cloud-amd64".
	Release string
}

// Args are the image as words of a QEMU command line. Extra words are added
// to the kernel command line.
func (i Image) Args(extra ...string) []string {
	line := strings.Join(append([]string{i.Append}, extra...), " ")
	return []string{"-kernel", i.Kernel, "-initrd", i.Initrd, "-append", line}
}

// MissingError says which Debian packages a guest image cannot be made without.
type MissingError struct {
	Packages []string
	Causes   []error // what was looked for, one for each package
}

// Error names the packages and the command that installs them.
func (e *MissingError) Error() string {
	return fmt.Sprintf("guest image needs %s; enable with: apt-get install --no-install-recommends %s",
		strings.Join(e.Packages, ", "), strings.Join(e.Packages, " "))
}

// Unwrap returns the causes.
func (e *MissingError) Unwrap() []error { return e.Causes }

// kernelCommandLine keeps the boot short under TCG: no KASLR, no mitigations
// of CPU bugs, no self-tests of the crypto library, no clearing of memory, no
// security modules. (acpi=noirq would save a fifth of the rest, because QEMU's
// pc machine lets the guest compute the interrupt routing anew for each PCI
// device; but then CPUs cannot be plugged.)
const kernelCommandLine = "console=ttyS0 quiet loglevel=4 panic=-1 " +
	"nokaslr mitigations=off cryptomgr.notests init_on_alloc=0 lsm= nowatchdog no_timer_check " +
	"random.trust_cpu=on random.trust_bootloader=on memhp_default_state=online_movable net.ifnames=0"

// Find returns the guest image, built now unless the very same one is in the
// cache. The error is a [*MissingError] if a package is not installed.
func Find(ctx context.Context, cfg Config) (Image, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return Image{}, err
	}
	parts, err := locate(cfg.Roots)
	if err != nil {
		return Image{}, err
	}
	archive, err := build(ctx, parts)
	if err != nil {
		return Image{}, fmt.Errorf("build guest image: %w", err)
	}
	sum := sha256.Sum256(archive)
	path := filepath.Join(cfg.CacheDir, fmt.Sprintf("initrd-%x.cpio", sum[:12]))
	if err := keep(path, archive); err != nil {
		return Image{}, fmt.Errorf("keep guest image: %w", err)
	}
	return Image{
		Kernel: parts.kernel.image, Initrd: path, Append: kernelCommandLine, Release: parts.kernel.release,
	}, nil
}

func (c Config) withDefaults() (Config, error) {
	dir, err := os.UserCacheDir()
	if err != nil && (c.CacheDir == "" || len(c.Roots) == 0) {
		return c, fmt.Errorf("guest image: %w", err)
	}
	dir = filepath.Join(dir, "pve-rigaud", "guestimage")
	if c.CacheDir == "" {
		c.CacheDir = dir
	}
	if len(c.Roots) == 0 {
		c.Roots = []string{"/", filepath.Join(dir, "root")}
	}
	return c, nil
}

// keep writes data to path unless a file of that size is there: the name is
// the content's hash, and files appear whole, by rename.
func keep(path string, data []byte) error {
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(data)) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".initrd-*")
	if err != nil {
		return err
	}
	_, err = bytes.NewReader(data).WriteTo(tmp)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// parts are the files an image is made of.
type parts struct {
	roots   []string
	kernel  kernel
	busybox string
	agent   string // qemu-ga
}

// locate finds all parts, or says at once everything that is missing.
func locate(roots []string) (parts, error) {
	p := parts{roots: roots}
	missing := &MissingError{}
	need := func(pkg string, err error) {
		if err != nil {
			missing.Packages = append(missing.Packages, pkg)
			missing.Causes = append(missing.Causes, err)
		}
	}
	var err error
	p.kernel, err = newestKernel(roots)
	need("linux-image-cloud-amd64", err)
	p.busybox, err = staticBusybox(roots)
	need("busybox-static", err)
	p.agent, err = lookup(roots, "usr/sbin/qemu-ga", "usr/bin/qemu-ga")
	need("qemu-guest-agent", err)
	if len(missing.Packages) > 0 {
		return parts{}, missing
	}
	return p, nil
}

// staticBusybox skips Debian's package "busybox", which has neither the
// applets the guest needs nor is it static.
func staticBusybox(roots []string) (string, error) {
	for _, root := range roots {
		for _, name := range []string{"bin/busybox", "usr/bin/busybox"} {
			path := filepath.Join(root, name)
			if bin, err := inspect(path); err == nil && bin.interpreter == "" {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("static busybox under %s: %w", strings.Join(roots, ", "), fs.ErrNotExist)
}

// lookup returns the first of the names that is a file under one of the roots.
func lookup(roots []string, names ...string) (string, error) {
	for _, root := range roots {
		for _, name := range names {
			path := filepath.Join(root, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s under %s: %w", names[0], strings.Join(roots, ", "), fs.ErrNotExist)
}
