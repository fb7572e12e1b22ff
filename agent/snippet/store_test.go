package snippet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

func TestWrite(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	w.change(func() { w.offline["pve3"] = true })
	torn := w.put("pve1", secret, 0)
	w.must(os.WriteFile(torn, []byte("half"), 0o644))
	w.must(os.Chmod(torn, 0o644))
	w.must(n.Write(t.Context(), "local", []byte(secret), []byte("meta")))
	for _, data := range []string{secret, "meta"} {
		if got := w.everywhere(data); got != "pve1 pve2" {
			t.Errorf("%q is on %s", data, got)
		}
		for _, name := range []string{"pve1", "pve2"} {
			got, err := os.ReadFile(w.path(name, data))
			info, serr := os.Stat(w.path(name, data))
			if err != nil || serr != nil || string(got) != data || info.Mode() != 0o600 {
				t.Errorf("%s: %q, %v, %v, %v", name, got, info, err, serr)
			}
		}
	}
	if got := w.have("pve1/vz"); len(got) != 2 {
		t.Errorf("also left: %q", got)
	}
	if gaps := n.Gaps(); len(gaps) > 0 {
		t.Errorf("gaps: %v", gaps)
	}
	// Twice is no change but of its age.
	w.age(torn, time.Hour)
	w.must(os.Chmod(torn, 0o644))
	w.must(n.Write(t.Context(), "local", []byte(secret)))
	if info, err := os.Stat(torn); err != nil || time.Since(info.ModTime()) > time.Minute || info.Mode() != 0o600 {
		t.Errorf("written again: %v, %v", info, err)
	}
	w.must(n.Write(t.Context(), "shared", []byte("shared")))
	if got := w.have("shared"); !slices.Equal(got, []string{fileOf([]byte("shared"))}) || w.nodes["pve2"].calls() != 3 {
		t.Errorf("on shared storage: %q, %d calls", got, w.nodes["pve2"].calls())
	}
	w.keptQuiet()
}

// TestWriteIsRefused: an agent that lives and cannot write fails the write, which names its node; the others have the file.
func TestWriteIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		breaks func(w *world)
		want   []string
		at     string // who has it
	}{
		"no directory there":        {breaks: func(w *world) { w.must(os.WriteFile(filepath.Join(w.dir, "pve2/vz/snippets"), nil, 0o600)) }, want: []string{"node pve2", "not a directory"}, at: "pve1 pve3"},
		"the storage is away there": {breaks: func(w *world) { w.must(os.Remove(filepath.Join(w.dir, "pve2/vz"))) }, want: []string{"node pve2", "no such file"}, at: "pve1 pve3"},
		"a directory has its name":  {breaks: func(w *world) { w.must(os.MkdirAll(w.path("pve3", secret), 0o755)) }, want: []string{"node pve3"}, at: "pve1 pve2 pve3"},
		"not here":                  {breaks: func(w *world) { w.must(os.Remove(filepath.Join(w.dir, "pve1/vz"))) }, want: []string{"node pve1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			tc.breaks(w)
			err := w.nodes["pve1"].Write(t.Context(), "local", []byte(secret))
			for _, want := range append(tc.want, "write cloud-init snippets") {
				if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %q", err, want)
				}
			}
			if got := w.everywhere(secret); got != tc.at {
				t.Errorf("it is on %q, want %q", got, tc.at)
			}
			if gaps := w.nodes["pve1"].Gaps(); len(gaps) > 0 {
				t.Errorf("a refusal is no gap: %v", gaps)
			}
			w.keptQuiet(err)
		})
	}
	w := newWorld(t)
	if err := w.nodes["pve1"].Write(t.Context(), "nowhere", nil); !fault.Is(err, fault.Precondition) {
		t.Errorf("got %v", err)
	}
}

// TestNodesWithoutTheStorage are not asked.
func TestNodesWithoutTheStorage(t *testing.T) {
	w := newWorld(t)
	w.change(func() { w.cfg = "dir: two\n\tpath DIR/NODE/vz\n\tcontent snippets\n\tnodes pve1,pve3\n" })
	w.must(w.nodes["pve1"].Write(t.Context(), "two", []byte("a")))
	if got := w.everywhere("a"); got != "pve1 pve3" || w.nodes["pve2"].calls() > 0 {
		t.Errorf("it is on %s", got)
	}
}

func TestOnlyAgentsMayCall(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	path := w.put("pve1", secret, 0)
	volume := Volume("local", []byte(secret))
	_, err := n.service.GetSnippet(t.Context(), &peerpb.GetSnippetRequest{Volume: volume})
	_, perr := n.service.PutSnippet(t.Context(), &peerpb.PutSnippetRequest{Volume: Volume("local", []byte("b")), Content: []byte("b")})
	if status.Code(err) != codes.PermissionDenied || status.Code(perr) != codes.PermissionDenied || len(w.have("pve1/vz")) != 1 {
		t.Errorf("got %v and %v, there is %q", err, perr, w.have("pve1/vz"))
	}
	ctx := context.WithValue(t.Context(), callerKey{}, "pve2")
	got, err := n.service.GetSnippet(ctx, &peerpb.GetSnippetRequest{Volume: volume})
	if err != nil || string(got.GetContent()) != secret {
		t.Errorf("an agent gets %v, %v", got, err)
	}
	for _, tc := range []struct {
		volume, data string
		want         codes.Code
	}{
		{volume, "another content", codes.InvalidArgument},
		{Volume("other", []byte("b")), "b", codes.FailedPrecondition},
		{"local:snippets/user.yaml", "b", codes.InvalidArgument},
	} {
		if _, err := n.service.PutSnippet(ctx, &peerpb.PutSnippetRequest{Volume: tc.volume, Content: []byte(tc.data)}); status.Code(err) != tc.want {
			t.Errorf("put %s: %v, want %s", tc.volume, err, tc.want)
		}
	}
	w.must(os.WriteFile(path, []byte("damaged"), 0o600))
	if _, err := n.service.GetSnippet(ctx, &peerpb.GetSnippetRequest{Volume: volume}); status.Code(err) != codes.NotFound {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestMounted(t *testing.T) {
	list := "22 28 0:21 / /sys rw - sysfs sysfs rw\n" +
		"40 28 0:40 / /mnt/pve/auto rw shared:9 - autofs systemd-1 rw\n" +
		"41 28 0:41 / /mnt/pve/nfs rw shared:9 master:1 - nfs4 192.0.2.1:/export rw\n" +
		"42 28 8:1 / /mnt/with\\040space rw - ext4 /dev/sda1 rw\n" +
		"43 28 8:1 / /mnt/pve/ceph rw - ceph 192.0.2.1:/ rw\n" +
		"44 28 8:1 / /mnt/pve/smb rw - cifs //192.0.2.1/x rw\n"
	file := filepath.Join(t.TempDir(), "mountinfo")
	if err := os.WriteFile(file, []byte(list), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind, path, option string
		want               bool
	}{
		{kind: "dir", path: "/anywhere", want: true},
		{kind: "dir", path: "/anywhere", option: "no", want: true},
		{kind: "dir", path: "/anywhere", option: "yes"},
		{kind: "btrfs", path: "/anywhere", option: "1"},
		{kind: "dir", path: "/mnt/with space", option: "1", want: true},
		{kind: "dir", path: "/mnt/with space/", option: "on", want: true},
		{kind: "dir", path: "/mnt/with space/below", option: "/mnt/with space", want: true},
		{kind: "dir", path: "/mnt/with space/below", option: "yes"},
		{kind: "nfs", path: "/mnt/pve/nfs", want: true},
		{kind: "nfs", path: "/mnt/pve/nf"},
		{kind: "nfs", path: "/mnt/pve/auto"}, // whoever mounts it has not done so
		{kind: "nfs", path: "/mnt/pve/smb"},
		{kind: "cifs", path: "/mnt/pve/smb", want: true},
		{kind: "cephfs", path: "/mnt/pve/ceph", want: true},
		{kind: "cephfs", path: "/mnt/pve/other"},
		{kind: "glusterfs", path: "/mnt/pve/other"},
	} {
		st := pmxcfs.Storage{ID: "st", Type: tc.kind, Path: tc.path, Options: map[string]string{"is_mountpoint": tc.option}}
		if err := mounted(file, st); (err == nil) != tc.want {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	if err := mounted("/nowhere", pmxcfs.Storage{Type: "nfs", Path: "/x"}); err == nil {
		t.Error("what cannot be known counts as mounted")
	}
}

// TestNothingBelowAMountPoint: what is written where nothing is mounted is lost as soon as something is.
func TestNothingBelowAMountPoint(t *testing.T) {
	w := newWorld(t)
	for _, cfg := range []string{
		"nfs: st\n\tpath DIR/shared\n\tserver 192.0.2.1\n\texport /x\n\tcontent snippets\n",
		"dir: st\n\tpath DIR/shared\n\tcontent snippets\n\tis_mountpoint yes\n",
		"dir: st\n\tpath DIR/away\n\tcontent snippets\n",
		"dir: st\n\tpath DIR/shared\n\tcontent snippets\n\tcontent-dirs snippets=../elsewhere\n",
	} {
		w.change(func() { w.cfg = cfg })
		err := w.nodes["pve1"].Write(t.Context(), "st", []byte("a"))
		if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "storage st") {
			t.Errorf("%s: got %v", cfg, err)
		}
		for _, dir := range []string{"shared/snippets", "away", "elsewhere"} {
			if _, err := os.Stat(filepath.Join(w.dir, dir)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s was made: %v", cfg, dir, err)
			}
		}
	}
	w.change(func() {
		w.cfg = "dir: st\n\tpath DIR/shared\n\tcontent snippets\n\tshared 1\n\tcontent-dirs snippets=a/b\n"
	})
	w.must(w.nodes["pve1"].Write(t.Context(), "st", []byte("a")))
	if _, err := os.Stat(filepath.Join(w.dir, "shared/a/b", fileOf([]byte("a")))); err != nil {
		t.Error(err)
	}
}

// TestHungStorage holds up nobody for longer than he wants to wait, and no other storage.
func TestHungStorage(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	w.must(os.MkdirAll(filepath.Join(w.dir, "shared/snippets"), 0o755))
	hole := filepath.Join(w.dir, "shared/snippets", fileOf([]byte("a")))
	w.must(syscall.Mkfifo(hole, 0o600)) // a read never ends
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if err := n.Write(ctx, "shared", []byte("a")); !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "storage shared") {
			t.Errorf("got %v", err)
		}
		cancel()
	}
	w.must(n.Write(t.Context(), "local", []byte("a")))
	f, err := os.OpenFile(hole, os.O_WRONLY, 0)
	w.must(err)
	w.must(f.Close())
	n.drain()
	w.must(n.Write(t.Context(), "shared", []byte("b")))
}

func TestDrop(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	path := w.put("pve1", "a", time.Hour)
	n.Drop(t.Context(), []string{Volume("local", []byte("a")), Volume("local", []byte("b")), Volume("other", []byte("a")), "local:iso/x.iso"})
	if info, err := os.Stat(path); err != nil || time.Since(info.ModTime()) > time.Minute {
		t.Errorf("got %v, %v", info, err)
	}
}
