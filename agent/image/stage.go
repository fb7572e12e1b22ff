package image

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

const (
	// pieceSize is how much of a disk is asked for at once.
	pieceSize = 4 << 20
	// noteEvery is how much is copied between two entries in the journal.
	noteEvery = 256 << 20
	// askFor is how long one piece may take.
	askFor = 30 * time.Second
	// patience is how long a source may be silent before another one is taken, if there is one.
	patience = 3 * time.Second
	// sparse is the size of the pieces of zeros that are left out of a file.
	sparse = 64 << 10
)

// errDiffers says that what was copied is not what the source has.
var errDiffers = errors.New("the checksum of what was copied is not that of the source")

// copy copies all disks into files of this node.
func (k *making) copy(ctx context.Context, _ *ops.StepRun) error {
	for n := range k.memo.Disks {
		if k.memo.Disks[n].Sum != "" {
			continue
		}
		if err := k.pull(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// pull copies one disk. While the source does not answer it waits, or goes on with another template of the same content.
func (k *making) pull(ctx context.Context, n int) error {
	var since time.Time // of the first failure in a row
	err := ops.Retry(ctx, func(err error) bool { return k.worth(err) }, func(ctx context.Context) error {
		if !since.IsZero() && (time.Since(since) > patience || !k.online(k.memo.Source.Node)) {
			if err := k.otherSource(ctx); err != nil {
				return err
			}
		}
		before := k.memo.Disks[n].Offset
		err := k.pullOnce(ctx, n)
		if err == nil || k.memo.Disks[n].Offset > before {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		}
		return err
	})
	if err != nil {
		return fault.New(reasonOf(err), "%s: %w", k.act(fmt.Sprintf("copy %s from node %s", k.memo.Disks[n].Volume, k.memo.Source.Node)), err)
	}
	return nil
}

func reasonOf(err error) fault.Reason {
	if errors.Is(err, unix.ENOSPC) {
		return fault.Exhausted
	}
	return fault.Precondition
}

func (m *Images) online(node string) bool {
	world, err := m.cfg.Watcher.World()
	return err != nil || world.Online(node)
}

// worth reports whether a failed copy may go on later. A node that is gone does not come back soon.
func (k *making) worth(err error) bool {
	if errors.Is(err, errDiffers) {
		k.differed++
		return k.differed == 1
	}
	if _, silent := errors.AsType[*forward.PeerError](err); silent {
		world, err := k.cfg.Watcher.World()
		return err != nil || !world.Gone(k.memo.Source.Node, time.Now())
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
		return true
	}
	return false
}

// otherSource goes over to another template of the same content, if there is one. Its disks may be the same bytes or
// others, as when one is in a file and one on a device, so that they are copied from their beginning.
func (k *making) otherSource(ctx context.Context) error {
	set, err := k.Resolve(ctx, k.order.Image)
	if err != nil {
		return nil // as long as that cannot be looked up, the source stays
	}
	world, err := k.cfg.Watcher.World()
	if err != nil {
		return nil
	}
	from, ok := pick(world, set, k.cfg.Node, k.memo.Source.Version, []string{k.memo.Source.Node})
	if !ok {
		return nil
	}
	before := k.memo.Source
	k.memo.Source = sourceOf(from)
	k.log.InfoContext(ctx, "a replica is copied from another node", "image", k.order.Image, "from", from.Node, "before", before.Node)
	if err := k.unstage(); err != nil {
		return err
	}
	if err := k.plan(ctx, from.VM.Conf); err != nil {
		return err
	}
	return k.note()
}

// pullOnce copies one disk, from where it is on, until it is whole.
func (k *making) pullOnce(ctx context.Context, n int) error {
	path, err := k.stagedPath(k.memo.Disks[n])
	if err != nil {
		return err
	}
	f, err := k.openStaged(path, k.memo.Disks[n].Offset)
	if err != nil {
		return err
	}
	err = k.fill(ctx, f, n)
	if err == nil {
		err = k.compare(ctx, f, n)
	}
	return errors.Join(err, f.Close())
}

// openStaged opens the file that a disk is staged in, which is made if nothing of it is there yet.
func (k *making) openStaged(path string, offset int64) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	flags := os.O_RDWR | os.O_CREATE | unix.O_NOFOLLOW
	if offset == 0 {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}

// fill copies what is missing. How far it is goes to the journal from time to time, after the bytes have gone to the disk.
func (k *making) fill(ctx context.Context, f *os.File, n int) error {
	d := &k.memo.Disks[n]
	if err := f.Truncate(d.Size); err != nil {
		return err
	}
	at, noted := d.Offset, d.Offset
	for at < d.Size {
		resp, err := k.ask(ctx, d.Volume, at, pieceSize)
		if err == nil && (resp.GetSize() != d.Size || resp.GetOffset() < at || resp.GetOffset()+int64(len(resp.GetData())) > d.Size) {
			return fmt.Errorf("%s has changed while it was copied", d.Volume)
		}
		if err == nil {
			err = writeSparse(f, resp.GetData(), resp.GetOffset())
		}
		if err != nil {
			return errors.Join(err, k.noteOffset(f, d, at))
		}
		if next := resp.GetOffset() + int64(len(resp.GetData())); next > at {
			at = next
		} else {
			return fmt.Errorf("%s: nothing was read at %d", d.Volume, at)
		}
		if at-noted >= noteEvery {
			if err := k.noteOffset(f, d, at); err != nil {
				return err
			}
			noted = at
		}
	}
	return k.noteOffset(f, d, at)
}

// noteOffset journals how far a disk is, after that much is on our own.
func (k *making) noteOffset(f *os.File, d *disk, at int64) error {
	if at == d.Offset {
		return nil
	}
	if err := f.Sync(); err != nil {
		return err
	}
	d.Offset = at
	return k.note()
}

// writeSparse writes what is not zeros: the file has holes there already.
func writeSparse(f *os.File, data []byte, at int64) error {
	for len(data) > 0 {
		n := min(len(data), sparse)
		if !allZero(data[:n]) {
			if _, err := f.WriteAt(data[:n], at); err != nil {
				return err
			}
		}
		data, at = data[n:], at+int64(n)
	}
	return nil
}

// compare compares the checksums of both ends. If they differ the copy begins anew, once.
func (k *making) compare(ctx context.Context, f *os.File, n int) error {
	d := &k.memo.Disks[n]
	theirs, err := k.theirSum(ctx, d.Volume)
	if err != nil {
		return err
	}
	var ours []byte
	for ours == nil && err == nil && ctx.Err() == nil {
		ours, err = k.sums.of(ctx, f.Name(), f, d.Size)
	}
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case string(ours) != string(theirs):
		d.Offset = 0
		return errors.Join(fmt.Errorf("%s: %w: %x here, %x there", d.Volume, errDiffers, ours, theirs), k.note())
	}
	k.sums.forget(f.Name())
	d.Sum = "sha256:" + hex.EncodeToString(ours)
	return k.note()
}

// theirSum asks the source for a checksum until it knows it.
func (k *making) theirSum(ctx context.Context, volume string) ([]byte, error) {
	for {
		resp, err := k.call(ctx, &peerpb.ReadVolumeRequest{Vmid: int32(k.memo.Source.VMID), Volume: volume, Checksum: true})
		if err != nil || len(resp.GetSha256()) > 0 {
			return resp.GetSha256(), err
		}
	}
}

// ask reads a piece of a disk of the source.
func (k *making) ask(ctx context.Context, volume string, offset int64, length int32) (*peerpb.ReadVolumeResponse, error) {
	return k.call(ctx, &peerpb.ReadVolumeRequest{Vmid: int32(k.memo.Source.VMID), Volume: volume, Offset: offset, Length: length})
}

func (k *making) call(ctx context.Context, rq *peerpb.ReadVolumeRequest) (*peerpb.ReadVolumeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	var resp peerpb.ReadVolumeResponse
	err := k.cfg.Call(ctx, k.memo.Source.Node, peerpb.Peer_ReadVolume_FullMethodName, rq, &resp)
	return &resp, err
}

// stagedPath is the file that a disk is staged in.
func (k *making) stagedPath(d disk) (string, error) {
	world, err := k.cfg.Watcher.World()
	if err != nil {
		return "", err
	}
	s, ok := world.Storages.Get(k.memo.Target.Staging)
	if !ok || s.Path == "" {
		return "", fmt.Errorf("storage %s, where its disks are staged, is there no more", k.memo.Target.Staging)
	}
	return s.VolumePath(d.Staged)
}

// tidy removes the files that PVE has imported.
func (k *making) tidy(context.Context, *ops.StepRun) error {
	if err := k.unstage(); err != nil {
		return fault.New(fault.Precondition, "%s: %w", k.act("remove what was staged"), err)
	}
	return nil
}

// unstage removes the files that disks were staged in, and the directory of a VM's disks if it is empty then.
func (k *making) unstage() error {
	for _, d := range k.memo.Disks {
		path, err := k.stagedPath(d)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if k.memo.Target.Content == "images" {
			_ = os.Remove(filepath.Dir(path)) // fails unless it is empty
		}
	}
	return nil
}
