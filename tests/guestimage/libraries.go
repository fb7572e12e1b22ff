package guestimage

import (
	"debug/elf"
	"fmt"
	"path/filepath"
	"strings"
)

// libraryDirs are where Debian's dynamic linker looks on amd64, without the
// leading slash.
var libraryDirs = []string{
	"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib",
}

// program is what an ELF file says about how it wants to be loaded.
type program struct {
	interpreter string   // "/lib64/ld-linux-x86-64.so.2"; "" if static
	needed      []string // DT_NEEDED
}

func inspect(path string) (program, error) {
	file, err := elf.Open(path)
	if err != nil {
		return program{}, fmt.Errorf("inspect %s: %w", path, err)
	}
	defer func() { _ = file.Close() }() // only read
	var bin program
	for _, prog := range file.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(name, 0); err != nil {
			return program{}, fmt.Errorf("inspect %s: read interpreter: %w", path, err)
		}
		bin.interpreter = strings.TrimRight(string(name), "\x00")
	}
	if bin.needed, err = file.ImportedLibraries(); err != nil {
		return program{}, fmt.Errorf("inspect %s: %w", path, err)
	}
	return bin, nil
}

// libraries returns the dynamic linker of an executable and all shared
// libraries it needs, directly or not: path in the guest -> file here.
func libraries(roots []string, executable string) (map[string]string, error) {
	found := make(map[string]string)
	for queue := []string{executable}; len(queue) > 0; queue = queue[1:] {
		bin, err := inspect(queue[0])
		if err != nil {
			return nil, err
		}
		if bin.interpreter != "" {
			linker, err := lookup(roots, strings.TrimPrefix(bin.interpreter, "/"))
			if err != nil {
				return nil, fmt.Errorf("dynamic linker: %w", err)
			}
			found[bin.interpreter] = linker
		}
		for _, name := range bin.needed {
			inGuest := "/lib/x86_64-linux-gnu/" + name
			if found[inGuest] != "" || found["/lib64/"+name] != "" {
				continue
			}
			file, err := lookup(roots, inLibraryDirs(name)...)
			if err != nil {
				return nil, fmt.Errorf("library of %s: %w", queue[0], err)
			}
			found[inGuest] = file
			queue = append(queue, file)
		}
	}
	return found, nil
}

func inLibraryDirs(name string) []string {
	paths := make([]string, len(libraryDirs))
	for i, dir := range libraryDirs {
		paths[i] = filepath.Join(dir, name)
	}
	return paths
}
