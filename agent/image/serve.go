package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

const (
	// maxPiece is how much of a volume one answer has at most.
	maxPiece = 8 << 20
	// sumFor is how long one call works on a checksum.
	sumFor = 3 * time.Second
)

// zeros is what holes consist of.
var zeros [1 << 20]byte

// ReadVolume implements that call of peerpb.PeerServer: it returns a piece of a disk of a template of this node, or the
// checksum of the whole. Whoever serves it makes sure that an agent of this cluster asks.
func (m *Images) ReadVolume(ctx context.Context, rq *peerpb.ReadVolumeRequest) (*peerpb.ReadVolumeResponse, error) {
	v, err := m.exported(int(rq.GetVmid()), rq.GetVolume())
	if err != nil {
		return nil, err
	}
	f, size, err := v.open()
	if errors.Is(err, fs.ErrNotExist) && v.Device {
		return nil, status.Errorf(codes.FailedPrecondition, "%s: %s is not there: LVM keeps the disks of templates inactive (lvchange -ay -K %s)", rq.GetVolume(), v.Path, v.Path)
	}
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%s: %v", rq.GetVolume(), err)
	}
	resp := &peerpb.ReadVolumeResponse{Offset: max(0, rq.GetOffset()), Size: size, Format: v.Format}
	if rq.GetChecksum() {
		resp.Sha256, err = m.sums.of(ctx, v.Path, f, size)
	} else {
		err = piece(f, resp, min(int64(rq.GetLength()), maxPiece))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "%s: %v", rq.GetVolume(), err)
	}
	return resp, nil
}

// exported finds a disk that others may read: one that the config of a template of this node names.
func (m *Images) exported(vmid int, volid string) (volume, error) {
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return volume{}, status.Error(codes.Unavailable, err.Error())
	}
	vm := world.VMs[vmid]
	if vm == nil || vm.Conf == nil || vm.Node != m.cfg.Node || !vm.Conf.Template() {
		return volume{}, status.Errorf(codes.NotFound, "node %s has no template %d", m.cfg.Node, vmid)
	}
	if !slices.ContainsFunc(copied(vm.Conf), func(d pmxcfs.Drive) bool { return d.Volume == volid }) {
		return volume{}, status.Errorf(codes.NotFound, "template %d has no disk %q", vmid, volid)
	}
	v, err := locate(world, volid, m.cfg.Devices)
	if err != nil {
		return v, status.Error(codes.FailedPrecondition, err.Error())
	}
	return v, nil
}

// piece reads at most length bytes from resp.Offset on. Holes before them are skipped, and so is what is all zeros.
func piece(f *os.File, resp *peerpb.ReadVolumeResponse, length int64) error {
	if length <= 0 || resp.GetOffset() >= resp.GetSize() {
		return nil
	}
	at, err := data(f, resp.GetOffset(), resp.GetSize())
	if err != nil {
		return err
	}
	resp.Offset = at
	buf := make([]byte, min(length, resp.GetSize()-at))
	n, err := f.ReadAt(buf, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if buf = buf[:n]; allZero(buf) {
		resp.Offset = at + int64(n)
		return nil
	}
	resp.Data = buf
	return nil
}

// data returns where the next data of a file begins, at or after an offset; size if there is none. What has no notion of
// holes, such as a device, is all data.
func data(f *os.File, from, size int64) (int64, error) {
	at, err := f.Seek(from, unix.SEEK_DATA)
	switch {
	case err == nil:
		return at, nil
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTSUP):
		return from, nil
	}
	return 0, err
}

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// checksums are those of volumes that were asked for, by path. Disks of templates never change; should a file have been
// replaced, then its size or time has changed.
type checksums struct {
	mu   sync.Mutex // guards sums
	sums map[string]*sum
}

// sum is a checksum that is being computed, or known.
type sum struct {
	mu      sync.Mutex // guards what follows
	size    int64
	changed time.Time
	hash    hash.Hash
	done    int64 // bytes that are in hash
}

// of goes on with the checksum of a volume for a while, and returns it when it is known.
func (c *checksums) of(ctx context.Context, path string, f *os.File, size int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.sums == nil {
		c.sums = map[string]*sum{}
	}
	s := c.sums[path]
	if s == nil {
		s = &sum{}
		c.sums[path] = s
	}
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hash == nil || s.size != size || !s.changed.Equal(info.ModTime()) {
		s.hash, s.size, s.changed, s.done = sha256.New(), size, info.ModTime(), 0
	}
	ctx, cancel := context.WithTimeout(ctx, sumFor)
	defer cancel()
	if err := s.advance(ctx, f); err != nil || s.done < s.size {
		return nil, err
	}
	return s.hash.Sum(nil), nil
}

// forget drops what is known of a file.
func (c *checksums) forget(path string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sums, path)
}

// advance hashes on until ctx ends.
func (s *sum) advance(ctx context.Context, f *os.File) error {
	buf := make([]byte, len(zeros))
	for s.done < s.size && ctx.Err() == nil {
		at, err := data(f, s.done, s.size)
		if err != nil {
			return err
		}
		for s.done < at && ctx.Err() == nil {
			n, _ := s.hash.Write(zeros[:min(at-s.done, int64(len(zeros)))]) // a hash takes everything
			s.done += int64(n)
		}
		if s.done < at || s.done >= s.size {
			return nil
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), s.size-s.done)], s.done)
		if n == 0 && err != nil {
			return fmt.Errorf("read at %d: %w", s.done, err)
		}
		n, _ = s.hash.Write(buf[:n])
		s.done += int64(n)
	}
	return nil
}
