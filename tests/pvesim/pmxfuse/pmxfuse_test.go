package pmxfuse

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childConfig makes the test program mount and wait to be killed.
const childConfig = "PMXFUSE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childConfig); dir != "" {
		_, err := Mount(context.Background(), Config{Source: filepath.Join(dir, "shared"), MountPoint: filepath.Join(dir, "pve1")})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println("mounted")
		select {}
	}
	goleak.VerifyTestMain(m)
}

// cluster is a shared tree and the views of two nodes.
type cluster struct {
	dir, shared string
	nodes       [2]*FS
	mounts      [2]string
}

// newCluster makes the directories: nodes, priv, and a node's own .members.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{dir: t.TempDir()}
	c.shared = filepath.Join(c.dir, "shared")
	for _, d := range []string{"shared/nodes/pve1/qemu-server", "shared/nodes/pve2/qemu-server", "shared/priv/lock", "own1", "own2", "pve1", "pve2"} {
		if err := os.MkdirAll(filepath.Join(c.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.mounts {
		c.mounts[i] = filepath.Join(c.dir, fmt.Sprintf("pve%d", i+1))
		put(t, filepath.Join(c.dir, fmt.Sprintf("own%d", i+1), ".members"), fmt.Sprintf("node %d", i+1))
	}
	put(t, filepath.Join(c.shared, ".vmlist"), "vmlist")
	put(t, filepath.Join(c.shared, "nodes/pve1/qemu-server/100.conf"), "name: a\n")
	return c
}

// mount mounts the view of node i, or skips.
func (c *cluster) mount(t *testing.T, i int) *FS {
	t.Helper()
	f, err := Mount(t.Context(), Config{
		Source: c.shared, View: filepath.Join(c.dir, fmt.Sprintf("own%d", i+1)), MountPoint: c.mounts[i],
	})
	if missing := (*MissingError)(nil); errors.As(err, &missing) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount(t, f) })
	c.nodes[i] = f
	return f
}

func mounted(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	c.mount(t, 0)
	c.mount(t, 1)
	return c
}

func unmount(t *testing.T, f *FS) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := f.Unmount(ctx); err != nil {
		t.Error(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func want(t *testing.T, what string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Errorf("%s: %v, want %v", what, err, target)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	for i, m := range c.mounts {
		if got := get(t, filepath.Join(m, ".members")); got != fmt.Sprintf("node %d", i+1) {
			t.Errorf("node %d reads %q", i+1, got)
		}
		if got := get(t, filepath.Join(m, ".vmlist")); got != "vmlist" {
			t.Errorf("node %d reads %q", i+1, got)
		}
		if got := get(t, filepath.Join(m, "nodes/pve1/qemu-server/100.conf")); got != "name: a\n" {
			t.Errorf("node %d reads %q", i+1, got)
		}
	}
	entries, err := os.ReadDir(c.mounts[0])
	ok(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{".members", ".vmlist", "nodes", "priv"}, names); diff != "" {
		t.Error(diff)
	}
	var st syscall.Statfs_t
	ok(t, syscall.Statfs(c.mounts[0], &st))
	if size := int64(st.Blocks) * st.Bsize; size != 128<<20 {
		t.Errorf("holds %d bytes", size)
	}
}

func TestChanges(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	a, b := c.mounts[0], c.mounts[1]
	conf := "nodes/pve1/qemu-server/101.conf"
	// As a config is written: beside it, then renamed over it.
	for _, text := range []string{"name: one\n", "name: two, and longer than the first\n", "short\n"} {
		put(t, filepath.Join(a, conf+".tmp"), text)
		ok(t, os.Rename(filepath.Join(a, conf+".tmp"), filepath.Join(a, conf)))
		for _, m := range []string{a, b, c.shared} {
			if got := get(t, filepath.Join(m, conf)); got != text {
				t.Errorf("%s has %q, want %q", m, got, text)
			}
		}
	}
	// A migration moves it between nodes.
	ok(t, os.Rename(filepath.Join(a, conf), filepath.Join(a, "nodes/pve2/qemu-server/101.conf")))
	_, err := os.ReadFile(filepath.Join(b, conf))
	want(t, "the old place", err, fs.ErrNotExist)
	if got := get(t, filepath.Join(b, "nodes/pve2/qemu-server/101.conf")); got != "short\n" {
		t.Errorf("the new place has %q", got)
	}
	// A lock: mkdir is atomic, utime renews it, rmdir frees it.
	lock := filepath.Join(a, "priv/lock/x")
	ok(t, os.Mkdir(lock, 0o755))
	want(t, "taken twice", os.Mkdir(filepath.Join(b, "priv/lock/x"), 0o755), fs.ErrExist)
	when := time.Unix(1_700_000_000, 0)
	ok(t, os.Chtimes(lock, when, when))
	if info, err := os.Stat(filepath.Join(c.shared, "priv/lock/x")); err != nil || !info.ModTime().Equal(when) {
		t.Errorf("renewed: %v, %v", info, err)
	}
	ok(t, os.Remove(lock))
	// In place: append, cut short, remove.
	note := filepath.Join(a, "note")
	put(t, note, "one")
	f, err := os.OpenFile(note, os.O_APPEND|os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.WriteString(" two")
	ok(t, errors.Join(err, f.Sync(), f.Close()))
	if got := get(t, filepath.Join(b, "note")); got != "one two" {
		t.Errorf("appended: %q", got)
	}
	ok(t, os.Truncate(note, 2))
	if got := get(t, filepath.Join(b, "note")); got != "on" {
		t.Errorf("cut short: %q", got)
	}
	ok(t, os.Remove(note))
	_, err = os.ReadFile(filepath.Join(b, "note"))
	want(t, "removed", err, fs.ErrNotExist)
}

func TestExclusiveCreate(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	const names, rivals = 20, 4
	var wins [names]atomic.Int32
	var work sync.WaitGroup
	for r := range rivals {
		work.Go(func() {
			for i := range names {
				path := filepath.Join(c.mounts[r%2], "priv", fmt.Sprintf("claim-%d", i))
				f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				switch {
				case err == nil:
					wins[i].Add(1)
					_ = f.Close()
				case !errors.Is(err, fs.ErrExist):
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	for i := range wins {
		if n := wins[i].Load(); n != 1 {
			t.Errorf("claim %d has %d winners", i, n)
		}
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	m := c.mounts[0]
	ok(t, os.WriteFile(filepath.Join(m, "priv/secret"), nil, 0o666))
	ok(t, os.WriteFile(filepath.Join(m, "note"), nil, 0o666))
	for name, mode := range map[string]fs.FileMode{
		"": 0o755 | fs.ModeDir, "nodes": 0o755 | fs.ModeDir, "priv": 0o700 | fs.ModeDir, "priv/lock": 0o700 | fs.ModeDir,
		"priv/secret": 0o600, "note": 0o640, ".members": 0o640, "nodes/pve1/qemu-server/100.conf": 0o640,
	} {
		info, err := os.Stat(filepath.Join(m, name))
		ok(t, err)
		if info.Mode() != mode {
			t.Errorf("%q is %v, want %v", name, info.Mode(), mode)
		}
		if st, isStat := info.Sys().(*syscall.Stat_t); !isStat || st.Uid != 0 || st.Gid != wwwData {
			t.Errorf("%q belongs to %+v", name, info.Sys())
		}
	}
	ok(t, os.Chmod(filepath.Join(m, "note"), 0o640))
	ok(t, os.Chmod(filepath.Join(m, "priv/secret"), 0o600))
	want(t, "chmod", os.Chmod(filepath.Join(m, "note"), 0o600), fs.ErrPermission)
	want(t, "chmod", os.Chmod(filepath.Join(m, "priv/secret"), 0o640), fs.ErrPermission)
	ok(t, os.Chown(filepath.Join(m, "note"), 0, wwwData))
	want(t, "chown", os.Chown(filepath.Join(m, "note"), 1000, -1), fs.ErrPermission)
	note := filepath.Join(m, "note")
	want(t, "rename with flags", unix.Renameat2(unix.AT_FDCWD, note, unix.AT_FDCWD, note+"2", unix.RENAME_NOREPLACE), syscall.EINVAL)
	want(t, "symlink", os.Symlink("a", filepath.Join(m, "b")), syscall.ENOTSUP)
}

// What another node did is seen by an open at once, by a stat within a second.
func TestOpenIsNeverStale(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	conf, behind := filepath.Join(c.mounts[0], "nodes/pve1/qemu-server/100.conf"), filepath.Join(c.shared, "nodes/pve1/qemu-server/100.conf")
	before, err := os.Stat(conf)
	ok(t, err)
	put(t, behind+".tmp", "name: something much longer\n")
	ok(t, os.Rename(behind+".tmp", behind))
	if got := get(t, conf); got != "name: something much longer\n" {
		t.Errorf("read %q after a change elsewhere", got)
	}
	ok(t, os.Remove(behind))
	_, err = os.Open(conf)
	want(t, "open of what was removed elsewhere", err, fs.ErrNotExist)
	for deadline := time.Now().Add(time.Minute); ; {
		if _, err := os.Stat(conf); errors.Is(err, fs.ErrNotExist) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a stat still knows %v", before)
		}
	}
	// What did not exist is looked for again each time.
	put(t, behind, "back\n")
	if got := get(t, conf); got != "back\n" {
		t.Errorf("read %q after it came back", got)
	}
}

// What is read is never cached, also not while a file stays open.
func TestReadIsNeverStale(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	f, err := os.Open(filepath.Join(c.mounts[0], ".vmlist"))
	ok(t, err)
	defer func() { _ = f.Close() }()
	for _, text := range []string{"VMLIST", "vmList"} {
		put(t, filepath.Join(c.shared, ".vmlist"), text) // in place, of the same length
		buf := make([]byte, len(text))
		if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != text {
			t.Errorf("read %q, %v after a change to %q", buf, err, text)
		}
	}
}

// A directory held open is the same, and of use, when the kernel has forgotten
// its name and looked it up again.
func TestDirectoryKeepsItsIdentity(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	held, err := os.OpenRoot(filepath.Join(c.mounts[0], "nodes"))
	ok(t, err)
	defer func() { _ = held.Close() }()
	before, err := held.Stat(".")
	ok(t, err)
	if errno := c.nodes[0].root.NotifyEntry("nodes"); errno != 0 {
		t.Fatal(errno)
	}
	after, err := os.Stat(filepath.Join(c.mounts[0], "nodes"))
	ok(t, err)
	if !os.SameFile(before, after) {
		t.Error("it has another inode")
	}
	text, err := held.ReadFile("pve1/qemu-server/100.conf")
	if err != nil || string(text) != "name: a\n" {
		t.Errorf("read %q, %v", text, err)
	}
}

func TestReaderKeepsItsFile(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	conf := filepath.Join(c.mounts[0], "nodes/pve1/qemu-server/100.conf")
	f, err := os.Open(conf)
	ok(t, err)
	defer func() { _ = f.Close() }()
	put(t, conf+".tmp", "name: b\n")
	ok(t, os.Rename(conf+".tmp", conf))
	if old, err := io.ReadAll(f); err != nil || string(old) != "name: a\n" {
		t.Errorf("an open file turned into %q, %v", old, err)
	}
	if info, err := f.Stat(); err != nil || info.Size() != 8 {
		t.Errorf("an open file without name: %v, %v", info, err)
	}
	if got := get(t, conf); got != "name: b\n" {
		t.Errorf("a new reader has %q", got)
	}
}

func TestReadDelay(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	vmlist := filepath.Join(c.mounts[0], ".vmlist")
	for _, delay := range []time.Duration{2 * time.Millisecond, 50 * time.Millisecond} {
		c.nodes[0].SetReadDelay(delay)
		began := time.Now()
		get(t, vmlist)
		if took := time.Since(began); took < delay {
			t.Errorf("a read took %v in spite of a delay of %v", took, delay)
		}
		began = time.Now()
		_, err := os.ReadDir(c.mounts[0])
		ok(t, err)
		if took := time.Since(began); took < delay {
			t.Errorf("a listing took %v in spite of a delay of %v", took, delay)
		}
	}
}

func TestNoQuorum(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	m := c.mounts[0]
	put(t, filepath.Join(m, "note"), "before")
	c.nodes[0].SetQuorate(false)
	_, create := os.OpenFile(filepath.Join(m, "priv/claim"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	_, open := os.OpenFile(filepath.Join(m, "note"), os.O_WRONLY, 0)
	now := time.Now()
	for name, err := range map[string]error{
		"create": create, "open": open, "mkdir": os.Mkdir(filepath.Join(m, "priv/lock/x"), 0o755),
		"remove": os.Remove(filepath.Join(m, "note")), "rename": os.Rename(filepath.Join(m, "note"), filepath.Join(m, "n")),
		"rmdir": os.Remove(filepath.Join(m, "priv/lock")), "truncate": os.Truncate(filepath.Join(m, "note"), 0),
		"utime": os.Chtimes(filepath.Join(m, "note"), now, now),
	} {
		want(t, name, err, syscall.EACCES)
	}
	if got := get(t, filepath.Join(m, "note")); got != "before" {
		t.Errorf("reads %q", got)
	}
	put(t, filepath.Join(c.mounts[1], "other"), "the other node has quorum")
	c.nodes[0].SetQuorate(true)
	put(t, filepath.Join(m, "note"), "after")
}

func TestUnmountAndRemount(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	vmlist := filepath.Join(c.mounts[0], ".vmlist")
	held, err := os.Open(vmlist)
	ok(t, err)
	// While a file is open the view is gone for everybody else.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	want(t, "unmount", c.nodes[0].Unmount(ctx), context.DeadlineExceeded)
	_, err = os.ReadFile(vmlist)
	want(t, "read of an unmounted view", err, fs.ErrNotExist)
	select {
	case <-c.nodes[0].Done():
		t.Error("done in spite of an open file")
	default:
	}
	// It comes back before the last reader of the old one has gone.
	c.mount(t, 0)
	if got := get(t, vmlist); got != "vmlist" {
		t.Errorf("after a remount: %q", got)
	}
	if old, err := io.ReadAll(held); err != nil || string(old) != "vmlist" {
		t.Errorf("the file held open: %q, %v", old, err)
	}
	ok(t, held.Close())
}

// Readers that wait for a slow view do not keep it from going. The reader is
// another process: see the package's documentation.
func TestUnmountInterruptsDelays(t *testing.T) {
	t.Parallel()
	c := mounted(t)
	c.nodes[0].SetReadDelay(time.Hour)
	reader := exec.CommandContext(t.Context(), "cat", filepath.Join(c.mounts[0], ".vmlist"))
	ok(t, reader.Start())
	unmount(t, c.nodes[0])
	_ = reader.Wait() // it read, or found nothing
}

func TestTakesAwayDeadMount(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	if missing := (*MissingError)(nil); errors.As(possible(), &missing) {
		t.Skipf("skipped: %v", missing)
	}
	crash := exec.CommandContext(t.Context(), os.Args[0])
	crash.Env = append(os.Environ(), childConfig+"="+c.dir)
	out, err := crash.StdoutPipe()
	ok(t, err)
	ok(t, crash.Start())
	_, err = bufio.NewReader(out).ReadString('\n')
	ok(t, err)
	ok(t, crash.Process.Kill())
	_ = crash.Wait() // killed
	_, err = os.ReadFile(filepath.Join(c.mounts[0], ".vmlist"))
	want(t, "a dead mount", err, syscall.ENOTCONN)
	c.mount(t, 0)
	if got := get(t, filepath.Join(c.mounts[0], ".vmlist")); got != "vmlist" {
		t.Errorf("reads %q", got)
	}
}

func TestMountRefuses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	if missing := (*MissingError)(nil); errors.As(possible(), &missing) {
		t.Skipf("skipped: %v", missing)
	}
	file := filepath.Join(c.shared, ".vmlist")
	for name, cfg := range map[string]Config{
		"no source":            {Source: filepath.Join(c.dir, "none"), MountPoint: c.mounts[0]},
		"no mount point":       {Source: c.shared, MountPoint: filepath.Join(c.dir, "none")},
		"no view":              {Source: c.shared, View: filepath.Join(c.dir, "none"), MountPoint: c.mounts[0]},
		"a file is no tree":    {Source: file, MountPoint: c.mounts[0]},
		"nothing":              {},
		"a file is no target":  {Source: c.shared, MountPoint: file},
		"no source, no target": {View: c.shared},
	} {
		if f, err := Mount(t.Context(), cfg); err == nil {
			t.Errorf("%s: mounted", name)
			unmount(t, f)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Mount(ctx, Config{Source: c.shared, MountPoint: c.mounts[0]})
	want(t, "cancelled", err, context.Canceled)
}
