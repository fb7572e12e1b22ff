package image

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// served is a disk of a template on another node.
type served struct {
	content []byte
	asked   []int64 // offsets
	// answer may change or refuse an answer.
	answer func(rq *peerpb.ReadVolumeRequest, resp *peerpb.ReadVolumeResponse) error
}

func (s *served) read(rq *peerpb.ReadVolumeRequest, resp *peerpb.ReadVolumeResponse) error {
	size := int64(len(s.content))
	resp.Size, resp.Format, resp.Offset = size, "raw", rq.GetOffset()
	if rq.GetChecksum() {
		sum := sha256.Sum256(s.content)
		resp.Sha256 = sum[:]
	} else if rq.GetLength() > 0 {
		s.asked = append(s.asked, rq.GetOffset())
		resp.Data = bytes.Clone(s.content[rq.GetOffset():min(size, rq.GetOffset()+int64(rq.GetLength()))])
	}
	if s.answer != nil {
		return s.answer(rq, resp)
	}
	return nil
}

// copying runs f as an operation of pve2 that makes a replica of template 9000 of pve1. disks are by node.
func copying(t *testing.T, disks map[string]*served, f func(ctx context.Context, k *making) error) (l *lab, err error) {
	t.Helper()
	l = newLab(t, func(c *Config) {
		c.Node = "pve2"
		c.Call = func(_ context.Context, node, _ string, req, resp proto.Message) error {
			rq, ok1 := req.(*peerpb.ReadVolumeRequest)
			out, ok2 := resp.(*peerpb.ReadVolumeResponse)
			if !ok1 || !ok2 {
				return fmt.Errorf("asked with %T for %T", req, resp)
			}
			return disks[node].read(rq, out)
		}
	})
	vz := t.TempDir()
	l.write("storage.cfg", strings.ReplaceAll(storages, "/var/lib/vz", vz))
	l.recordUbuntu()
	l.write(".version", `{"starttime":2,"vmlist":7,"storage.cfg":7}`)
	l.must(l.cfg.Watcher.Refresh(t.Context()))
	l.cfg.Ops.Handle("try", func(ctx context.Context, r *ops.Run) error {
		k := &making{Images: l.Images, run: r, order: order{Image: "ubuntu"}}
		conf := l.world().VMs[9000].Conf
		k.memo = memo{VMID: 10001, UUID: uuidB, Source: source{Node: "pve1", VMID: 9000, Version: Version(conf), Root: 9000}}
		target, err := targetOn(l.world(), conf, "pve2")
		if err != nil {
			return err
		}
		k.memo.Target = target
		if err := k.plan(ctx, conf); err != nil {
			return err
		}
		return f(ctx, k)
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.cfg.Ops.Run(ctx) }()
	<-l.cfg.Ops.Ready()
	h, _, err := l.cfg.Ops.Start(ctx, ops.Ask{Kind: "try", Key: "try"})
	l.must(err)
	op, err := h.Wait(t.Context(), nil)
	l.must(err)
	cancel()
	l.must(<-ended)
	return l, op.Err()
}

// aDisk is content with holes, which are long enough to be left out.
func aDisk() []byte {
	b := make([]byte, 9<<20)
	rand.Read(b[:1<<20])
	rand.Read(b[8<<20:])
	return b
}

func (l *lab) stagedFile(k *making) ([]byte, int64) {
	l.Helper()
	path, err := k.stagedPath(k.memo.Disks[0])
	l.must(err)
	b, err := os.ReadFile(path)
	l.must(err)
	info, err := os.Stat(path)
	l.must(err)
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		l.Fatalf("%s: no stat", path)
	}
	return b, stat.Blocks * 512
}

func TestPull(t *testing.T) {
	t.Parallel()
	src := &served{content: aDisk()}
	l, err := copying(t, map[string]*served{"pve1": src}, func(ctx context.Context, k *making) error {
		if err := k.copy(ctx, nil); err != nil {
			return err
		}
		got, room := (&lab{T: t, Images: k.Images}).stagedFile(k)
		if !bytes.Equal(got, src.content) || room > 4<<20 {
			t.Errorf("%d bytes on %d of the disk, equal: %v", len(got), room, bytes.Equal(got, src.content))
		}
		if want := fmt.Sprintf("sha256:%x", sha256.Sum256(src.content)); k.memo.Disks[0].Sum != want || k.memo.progress() != 1 {
			t.Errorf("noted %+v, want %s", k.memo.Disks[0], want)
		}
		asked := len(src.asked)
		if err := k.copy(ctx, nil); err != nil || len(src.asked) != asked {
			t.Errorf("what is there is copied again: %v, %v", src.asked, err)
		}
		if err := k.tidy(ctx, nil); err != nil {
			t.Error(err)
		}
		path, _ := k.stagedPath(k.memo.Disks[0])
		if left, err := filepath.Glob(filepath.Dir(path) + "/*"); len(left) > 0 || err != nil {
			t.Errorf("left: %v, %v", left, err)
		}
		return nil
	})
	l.must(err)
}

// A copy that is not what the source has is made once more, and not for ever.
func TestPullCompares(t *testing.T) {
	t.Parallel()
	for times, fails := range map[int]bool{1: false, 100: true} {
		bad := 0
		src := &served{content: aDisk(), answer: func(rq *peerpb.ReadVolumeRequest, resp *peerpb.ReadVolumeResponse) error {
			if rq.GetOffset() == 0 && len(resp.GetData()) > 0 && bad < times {
				bad++
				resp.Data[100] ^= 1
			}
			return nil
		}}
		l, err := copying(t, map[string]*served{"pve1": src}, func(ctx context.Context, k *making) error {
			err := k.copy(ctx, nil)
			if err != nil {
				return err
			}
			if got, _ := (&lab{T: t, Images: k.Images}).stagedFile(k); !bytes.Equal(got, src.content) {
				t.Error("what was copied differs")
			}
			return nil
		})
		if fails && (!fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "checksum") || bad != 2) {
			t.Errorf("%d times wrong: %v, copied %d times", times, err, bad)
		}
		if !fails {
			l.must(err)
		}
	}
}

// After a failure the copy goes on where it was.
func TestPullGoesOn(t *testing.T) {
	t.Parallel()
	failures := []error{
		status.Error(codes.Unavailable, "restarting"), &forward.PeerError{Node: "pve1", Err: errors.New("connection refused")}, status.Error(codes.DeadlineExceeded, "late"),
	}
	src := &served{content: aDisk()}
	src.answer = func(rq *peerpb.ReadVolumeRequest, _ *peerpb.ReadVolumeResponse) error {
		if rq.GetOffset() >= 4<<20 && len(failures) > 0 {
			err := failures[0]
			failures = failures[1:]
			return err
		}
		return nil
	}
	l, err := copying(t, map[string]*served{"pve1": src}, func(ctx context.Context, k *making) error { return k.copy(ctx, nil) })
	l.must(err)
	if want := fmt.Sprint([]int64{0, 4 << 20, 4 << 20, 4 << 20, 4 << 20, 8 << 20}); fmt.Sprint(src.asked) != want {
		t.Errorf("asked for %v, want %s", src.asked, want)
	}
}

// What the source says for good ends the copy.
func TestPullEnds(t *testing.T) {
	t.Parallel()
	for _, refusal := range []error{status.Error(codes.NotFound, "node pve1 has no template 9000"), status.Error(codes.FailedPrecondition, "cannot be read")} {
		src := &served{content: aDisk(), answer: func(rq *peerpb.ReadVolumeRequest, _ *peerpb.ReadVolumeResponse) error {
			if rq.GetOffset() > 0 {
				return refusal
			}
			return nil
		}}
		_, err := copying(t, map[string]*served{"pve1": src}, func(ctx context.Context, k *making) error { return k.copy(ctx, nil) })
		if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), refusal.Error()) || !strings.Contains(err.Error(), "pve1") {
			t.Errorf("got %v", err)
		}
	}
}

// A disk that changes its size is no template's.
func TestPullOfAnotherSize(t *testing.T) {
	t.Parallel()
	src := &served{content: aDisk(), answer: func(rq *peerpb.ReadVolumeRequest, resp *peerpb.ReadVolumeResponse) error {
		if rq.GetOffset() > 0 {
			resp.Size++
		}
		return nil
	}}
	_, err := copying(t, map[string]*served{"pve1": src}, func(ctx context.Context, k *making) error { return k.copy(ctx, nil) })
	if err == nil || !strings.Contains(err.Error(), "changed while it was copied") {
		t.Errorf("got %v", err)
	}
}

// When the source falls silent, another template of the same content is copied, from its beginning.
func TestPullFromAnother(t *testing.T) {
	t.Parallel()
	dead := &served{content: aDisk(), answer: func(rq *peerpb.ReadVolumeRequest, _ *peerpb.ReadVolumeResponse) error {
		if rq.GetOffset() > 0 {
			return &forward.PeerError{Node: "pve1", Err: errors.New("connection refused")}
		}
		return nil
	}}
	other := &served{content: append(aDisk(), 1, 2, 3)} // the same for a guest, in other bytes
	l, err := copying(t, map[string]*served{"pve1": dead, "pve3": other}, func(ctx context.Context, k *making) error {
		if err := k.copy(ctx, nil); err != nil {
			return err
		}
		if got, _ := (&lab{T: t, Images: k.Images}).stagedFile(k); !bytes.Equal(got, other.content) {
			t.Error("what was copied is not what the other has")
		}
		if k.memo.Source.Node != "pve3" || k.memo.Source.Root != 9000 {
			t.Errorf("source %+v", k.memo.Source)
		}
		return nil
	})
	l.must(err)
	if other.asked[0] != 0 {
		t.Errorf("asked for %v", other.asked)
	}
}

// TestEnter: what is written down is what was copied, once.
func TestEnter(t *testing.T) {
	t.Parallel()
	l, err := copying(t, map[string]*served{"pve1": {content: []byte("x")}}, func(ctx context.Context, k *making) error {
		k.memo.Disks[0].Sum = "sha256:1"
		return errors.Join(k.enter(ctx, nil), k.enter(ctx, nil))
	})
	l.must(err)
	img, _, err := l.cfg.Records.Find("ubuntu")
	l.must(err)
	if len(img.Replicas) != 2 {
		t.Fatalf("on record: %+v", img.Replicas)
	}
	want := record.Replica{Node: "pve2", VMID: 10001, UUID: uuidB, Of: img.Replicas[0].Of, From: 9000}
	got := img.Replicas[1]
	if got.Node != want.Node || got.VMID != want.VMID || got.UUID != want.UUID || got.Of != want.Of || got.From != want.From || got.Checksums["scsi0"] != "sha256:1" || got.Created.IsZero() {
		t.Errorf("got %+v", got)
	}
}
