package guestimage

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// wantedModules are the drivers of the guest. One that is built into the
// kernel or does not exist there is left out.
var wantedModules = []string{
	"virtio_pci", "virtio_console", // first, for the guest agent
	"ata_piix", "ahci", "sr_mod", "isofs", // the cloud-init drive
	"virtio_net", "virtio_balloon",
	"virtio_scsi", "virtio_blk", "sd_mod",
	"button", "evdev", // the power button
}

// kernel is one installed or extracted linux-image package.
type kernel struct {
	release string // "6.1.0-56-cloud-amd64"
	image   string // .../boot/vmlinuz-<release>
	modules string // .../lib/modules/<release>
}

// newestKernel finds the cloud kernel with the highest version that has its
// modules beside it.
func newestKernel(roots []string) (kernel, error) {
	var best kernel
	for _, root := range roots {
		images, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*cloud*"))
		if err != nil {
			return kernel{}, err
		}
		for _, image := range images {
			release := strings.TrimPrefix(filepath.Base(image), "vmlinuz-")
			modules, err := moduleDir(root, release)
			if err == nil && compareReleases(release, best.release) > 0 {
				best = kernel{release: release, image: image, modules: modules}
			}
		}
	}
	if best.release == "" {
		return kernel{}, fmt.Errorf("boot/vmlinuz-*cloud* under %s: %w", strings.Join(roots, ", "), fs.ErrNotExist)
	}
	return best, nil
}

// moduleDir knows the places before and after Debian's move of /lib to /usr/lib.
func moduleDir(root, release string) (string, error) {
	for _, lib := range []string{"lib", "usr/lib"} {
		dir := filepath.Join(root, lib, "modules", release)
		if info, err := os.Stat(filepath.Join(dir, "kernel")); err == nil && info.IsDir() {
			return dir, nil
		}
	}
	return "", fmt.Errorf("modules of %s: %w", release, fs.ErrNotExist)
}

// compareReleases orders releases by their numbers: 6.1.0-9 before 6.1.0-56.
func compareReleases(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(s string) []int {
	var ns []int
	for _, digits := range strings.FieldsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		if n, err := strconv.Atoi(digits); err == nil {
			ns = append(ns, n)
		}
	}
	return ns
}

// module is one driver, ready for insmod.
type module struct {
	name string
	data []byte // an ELF object, decompressed
}

// loadOrder returns the wanted modules and everything they depend on, each
// after its dependencies. The dependencies are read from the modules
// themselves: an extracted package has no modules.dep.
func loadOrder(ctx context.Context, dir string, wanted []string) ([]module, error) {
	paths, err := modulePaths(dir)
	if err != nil {
		return nil, err
	}
	var order []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		path, ok := paths[name]
		if seen[name] || !ok {
			return nil // loaded already, or built in
		}
		seen[name] = true
		data, err := readModule(ctx, path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		depends, err := dependencies(data)
		if err != nil {
			return fmt.Errorf("module %s: %w", path, err)
		}
		for _, dependency := range depends {
			if err := add(dependency); err != nil {
				return err
			}
		}
		order = append(order, module{name: name, data: unsigned(data)})
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// modulePaths maps the names of all modules under dir (with "_" as the kernel
// writes them) to their files.
func modulePaths(dir string) (map[string]string, error) {
	paths := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			paths[strings.ReplaceAll(name, "-", "_")] = path
		}
		return nil
	})
	return paths, err
}

// readModule reads a module; Debian 13 compresses them with xz.
func readModule(ctx context.Context, path string) ([]byte, error) {
	if filepath.Ext(path) != ".xz" {
		return os.ReadFile(path)
	}
	out, err := exec.CommandContext(ctx, "xz", "-dc", path).Output()
	if errors.Is(err, exec.ErrNotFound) {
		return nil, &MissingError{Packages: []string{"xz-utils"}, Causes: []error{err}}
	}
	return out, err
}

// signatureMark ends a signed module, after the signature and 12 bytes that
// describe it, the last four of which are its length (struct module_signature
// in the kernel's include/linux/module_signature.h).
const signatureMark = "~Module signature appended~\n"

// unsigned cuts the signature off: checking RSA signatures takes a guest under
// TCG longer than loading the modules, and Debian's kernel takes unsigned ones.
func unsigned(data []byte) []byte {
	signed, ok := bytes.CutSuffix(data, []byte(signatureMark))
	if !ok || len(signed) < 12 {
		return data
	}
	length := int(binary.BigEndian.Uint32(signed[len(signed)-4:])) + 12
	if length > len(signed) {
		return data
	}
	return signed[:len(signed)-length]
}

// dependencies reads "depends=a,b" from a module's .modinfo section.
func dependencies(data []byte) ([]string, error) {
	object, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	section := object.Section(".modinfo")
	if section == nil {
		return nil, errors.New("no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}
