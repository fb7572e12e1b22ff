package capacity

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// The files that are read, below the proc directory.
const (
	fileMeminfo  = "meminfo"
	fileStat     = "stat"
	fileLoad     = "loadavg"
	fileArc      = "spl/kstat/zfs/arcstats" // only with ZFS
	filePressure = "pressure"               // a directory; only with a kernel that keeps PSI
)

// FormatError says that a file is not what its name promises.
type FormatError struct {
	Path   string
	Reason string
}

// Error names the file and the reason.
func (e *FormatError) Error() string { return e.Path + ": " + e.Reason }

// memory is the host's, in bytes.
type memory struct{ total, free uint64 }

// parseMeminfo reads MemTotal and MemAvailable of /proc/meminfo (proc_meminfo(5); "kB" are KiB).
func parseMeminfo(path string, raw []byte) (memory, error) {
	var m memory
	wanted := map[string]*uint64{"MemTotal:": &m.total, "MemAvailable:": &m.free}
	for fields := range lines(raw) {
		to, ok := wanted[fields[0]]
		if !ok {
			continue
		}
		if len(fields) < 2 {
			return memory{}, &FormatError{path, fields[0] + " without a value"}
		}
		kib, err := strconv.ParseUint(fields[1], 10, 54)
		if err != nil {
			return memory{}, &FormatError{path, fmt.Sprintf("%s %q is no number of KiB", fields[0], fields[1])}
		}
		*to = kib << 10
		delete(wanted, fields[0])
	}
	for name := range wanted {
		return memory{}, &FormatError{path, "no " + name}
	}
	return m, nil
}

// arc is ZFS's cache, in bytes.
type arc struct {
	size  uint64 // what it has now
	least uint64 // what it never gives back
}

// reclaimable is what the kernel gets back of the cache when it needs it. MemAvailable does not count it.
func (a arc) reclaimable() uint64 { return a.size - min(a.size, a.least) }

// parseArc reads size and c_min of ZFS's arcstats. Lines are "name type data" (kstat's raw format).
func parseArc(path string, raw []byte) (arc, error) {
	var a arc
	wanted := map[string]*uint64{"size": &a.size, "c_min": &a.least}
	for fields := range lines(raw) {
		to, ok := wanted[fields[0]]
		if !ok || len(fields) != 3 {
			continue
		}
		n, err := strconv.ParseUint(fields[2], 10, 64)
		if err != nil {
			return arc{}, &FormatError{path, fmt.Sprintf("%s %q is no number of bytes", fields[0], fields[2])}
		}
		*to = n
		delete(wanted, fields[0])
	}
	for name := range wanted {
		return arc{}, &FormatError{path, "no " + name}
	}
	return a, nil
}

// parseCPUs counts the host's CPUs that are online: the lines cpu0, cpu1, ... of /proc/stat.
func parseCPUs(path string, raw []byte) (uint32, error) {
	var n uint32
	for fields := range lines(raw) {
		number, ok := strings.CutPrefix(fields[0], "cpu")
		if _, err := strconv.ParseUint(number, 10, 32); ok && err == nil {
			n++
		}
	}
	if n == 0 {
		return 0, &FormatError{path, "no line of a CPU"}
	}
	return n, nil
}

// parseLoad returns the load average of the last minute in hundredths, as the kernel rounds it.
func parseLoad(path string, raw []byte) (uint32, error) {
	for fields := range lines(raw) {
		return hundredths(path, fields[0])
	}
	return 0, &FormatError{path, "empty"}
}

// parsePressure returns the share of the last 10 s in which some task waited, in hundredths of a percent.
func parsePressure(path string, raw []byte) (uint32, error) {
	for fields := range lines(raw) {
		if fields[0] != "some" {
			continue
		}
		for _, f := range fields[1:] {
			if value, ok := strings.CutPrefix(f, "avg10="); ok {
				return hundredths(path, value)
			}
		}
	}
	return 0, &FormatError{path, "no some avg10="}
}

// hundredths reads a decimal number.
func hundredths(path, s string) (uint32, error) {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f < 0 || math.IsNaN(f) || f*100 > math.MaxUint32 {
		return 0, &FormatError{path, fmt.Sprintf("%q is no number", s)}
	}
	return uint32(math.Round(f * 100)), nil
}

// lines yields the fields of each line that has some.
func lines(raw []byte) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(raw) {
			if fields := strings.Fields(string(line)); len(fields) > 0 && !yield(fields) {
				return
			}
		}
	}
}

// read reads one file of the proc directory and turns it into a value. A file that cannot be read or understood gives
// zero and is complained of once, until it can be again. One that this kernel need not have may be missing.
func read[T any](s *Source, name string, parse func(path string, raw []byte) (T, error), optional bool) T {
	path := filepath.Join(s.cfg.ProcDir, name)
	raw, err := os.ReadFile(path)
	var value T
	if err == nil {
		value, err = parse(path, raw)
	} else if optional && absent(err) {
		err = nil
	}
	s.complain("proc/"+name, err)
	return value
}

// absent says that the kernel does not keep what was asked for. With PSI switched off its files are there, and
// opening or reading them fails.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EOPNOTSUPP)
}
