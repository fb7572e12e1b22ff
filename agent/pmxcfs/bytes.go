package pmxcfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// maxFile is the largest file pmxcfs holds (1 MiB, pve-cluster memdb.h); whatever is larger is not pmxcfs.
	maxFile = 1 << 20
	// oneRead is what surely comes from pmxcfs in a single answer: FUSE asks for at most 32 pages at once, and the buffer
	// may begin in the middle of one.
	oneRead = 120 << 10
	// stableTries is how often a status file of several answers is read until two readings agree.
	stableTries = 5
)

// read returns a whole file of at most maxFile bytes, in one read if it is small: pmxcfs looks a file up by its path for
// each read, so that two reads could get halves of two files.
func (t *Tree) read(name string) ([]byte, error) {
	raw, _, err := t.readFile(name, false)
	return raw, err
}

// readStatus returns one of the files that pmxcfs makes up: .version, .vmlist, .members. Their content is made anew when
// pmxcfs is asked for their attributes, not when they are read (pve-cluster, cfs-plug-func.c), and the kernel answers
// that from its cache for a second: without asking explicitly we would get content that old. Anyone else who asks
// replaces the content under a reader who needs several reads, so a large one is read until two readings agree.
func (t *Tree) readStatus(name string) ([]byte, error) {
	var last []byte
	for range stableTries {
		raw, atOnce, err := t.readFile(name, true)
		if err != nil || atOnce || last != nil && bytes.Equal(last, raw) {
			return raw, err
		}
		last = raw
	}
	return nil, &FormatError{Path: t.path(name), Reason: "changes faster than it can be read"}
}

// readFile reads a file, and tells whether one read was enough.
func (t *Tree) readFile(name string, anew bool) (raw []byte, atOnce bool, err error) {
	f, err := os.Open(t.path(name))
	if err != nil {
		return nil, false, err
	}
	if anew {
		err = askAttributes(f)
	}
	if err == nil {
		raw, atOnce, err = readAll(f)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, false, err
	}
	if len(raw) > maxFile {
		return nil, false, &FormatError{Path: t.path(name), Reason: "larger than 1 MiB, which pmxcfs does not allow"}
	}
	return raw, atOnce, nil
}

// askAttributes makes the kernel ask the file system for a file's attributes, whatever it has cached.
func askAttributes(f *os.File) error {
	var st unix.Statx_t
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st)
	if err != nil && !errors.Is(err, unix.ENOSYS) {
		return &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return nil
}

// buffers are for readAll.
var buffers = sync.Pool{New: func() any { return new([oneRead]byte) }}

// readAll reads to the end. A read that comes back short is the end.
func readAll(r io.Reader) (raw []byte, atOnce bool, err error) {
	pooled, _ := buffers.Get().(*[oneRead]byte)
	defer buffers.Put(pooled)
	buf := pooled[:]
	for reads := 1; ; reads++ {
		n, err := r.Read(buf)
		raw = append(raw, buf[:n]...)
		switch {
		case errors.Is(err, io.EOF) || err == nil && n < len(buf):
			return raw, reads == 1, nil
		case err != nil:
			return nil, false, err
		case len(raw) > maxFile:
			return raw, false, nil
		}
	}
}
