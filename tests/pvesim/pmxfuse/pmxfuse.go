// Package pmxfuse mounts a node's view of the simulated /etc/pve with FUSE, so
// that its readers meet what they meet on a real node: reads that cost a
// fraction of a millisecond, attributes that may be one second old, opens that
// never are, fixed modes, writes that need quorum, and a mount that can go
// away and come back.
package pmxfuse

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	fusefs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Config says what to mount.
type Config struct {
	// Source is the tree that all nodes share. All paths are absolute.
	Source string
	// View holds the node's own entries of the top directory (.members);
	// an entry there hides the one of that name in Source. "" means none.
	View string
	// MountPoint is a directory. What a crashed process left mounted there
	// is taken away.
	MountPoint string
	// ReadDelay is spent on each open of a file and each listing of a
	// directory: about 300 µs on a real node. It can be changed later.
	ReadDelay time.Duration
	// Changes, if set, counts what was changed through the view, or tried to.
	Changes *atomic.Int64
	// NoCache lets the kernel remember neither names nor attributes. It
	// counts real time: where time is virtual, its second may last for ever.
	NoCache bool
	// Go, if set, starts the goroutines that serve the view: it runs a
	// function on a goroutine of its choice and does not wait for it. In a
	// bubble of [testing/synctest] that has to be one from outside. nil
	// means the go statement.
	Go func(func())
}

// MissingError says why this machine or user cannot mount.
type MissingError struct {
	Needs  string // for people
	Enable string // a command
	Err    error
}

// Error names what is needed and the command that helps.
func (e *MissingError) Error() string {
	return fmt.Sprintf("a FUSE mount needs %s; enable with: %s", e.Needs, e.Enable)
}

// Unwrap returns what failed.
func (e *MissingError) Unwrap() error { return e.Err }

// cacheTime is how long pmxcfs lets the kernel remember names and attributes
// (libfuse's default; it forgets at once what does not exist).
const cacheTime = time.Second

// FS is a mounted view. No lock is held while it waits for anything but the
// file system below it, and it touches no channel or timer of its callers: they
// may live in a bubble of [testing/synctest] while its server does not.
type FS struct {
	cfg    Config
	side   atomic.Pointer[side]
	root   *node
	server *fuse.Server
	delay  atomic.Int64 // nanoseconds
	stop   chan struct{}
	done   chan struct{} // closed when the server has ended

	once sync.Once // closes stop
}

// Mount mounts the view and returns when it can be used. The error is a
// [*MissingError] where mounting is not possible. The caller unmounts.
func Mount(ctx context.Context, cfg Config) (*FS, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", cfg.MountPoint, err)
	}
	var (
		f   *FS
		err error
	)
	cfg.outside(func() { f, err = start(cfg) })
	return f, err
}

// start mounts, with all that goes with it.
func start(cfg Config) (*FS, error) {
	f := &FS{cfg: cfg, stop: make(chan struct{}), done: make(chan struct{})}
	f.side.Store(&side{source: cfg.Source, view: cfg.View})
	f.SetReadDelay(cfg.ReadDelay)
	if err := possible(); err != nil {
		return nil, err
	}
	if err := f.prepare(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", cfg.MountPoint, err)
	}
	if err := f.mount(); err != nil {
		return nil, fmt.Errorf("mount %s: %w", cfg.MountPoint, err)
	}
	return f, nil
}

// possible looks for what cannot be had by trying.
func possible() error {
	if os.Geteuid() != 0 {
		return &MissingError{Needs: "root", Enable: "sudo -E make test", Err: fs.ErrPermission}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return &MissingError{Needs: "/dev/fuse", Enable: "modprobe fuse", Err: err}
	}
	return nil
}

// prepare looks for the directories and takes away what is mounted already.
func (f *FS) prepare() error {
	dirs := []string{f.cfg.Source, f.cfg.MountPoint}
	if f.cfg.View != "" {
		dirs = append(dirs, f.cfg.View)
	}
	for _, dir := range dirs {
		// "" would be the working directory to go-fuse.
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("%q is not an absolute path", dir)
		}
	}
	if err := removeDead(f.cfg.MountPoint); err != nil {
		return err
	}
	for _, dir := range dirs {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return &fs.PathError{Op: "mount", Path: dir, Err: unix.ENOTDIR}
		}
	}
	return nil
}

// removeDead unmounts what crashed processes left, one over the other.
func removeDead(dir string) error {
	for {
		// Not a stat, which may still be answered from the kernel's cache.
		if _, err := os.ReadDir(dir); !errors.Is(err, unix.ENOTCONN) {
			return nil
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("take away a dead mount: %w", err)
		}
	}
}

func (f *FS) mount() error {
	timeout, never := cacheTime, time.Duration(0)
	if f.cfg.NoCache {
		timeout = 0
	}
	options := &fusefs.Options{
		EntryTimeout: &timeout, AttrTimeout: &timeout, NegativeTimeout: &never,
		MountOptions: fuse.MountOptions{
			FsName: "/dev/fuse", Name: "pmxcfs", DirectMountStrict: true,
			AllowOther: true, Options: []string{"default_permissions"},
			DisableXAttrs: true,
		},
	}
	f.root = &node{fs: f}
	raw := fusefs.NewNodeFS(f.root, options)
	server, err := fuse.NewServer(raw, f.cfg.MountPoint, &options.MountOptions)
	if errors.Is(err, unix.EPERM) {
		return &MissingError{Needs: "the capability SYS_ADMIN", Enable: "docker run --cap-add SYS_ADMIN --device /dev/fuse ...", Err: err}
	}
	if err != nil {
		return err
	}
	f.server = server
	go func() {
		defer close(f.done)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		return errors.Join(err, f.detach())
	}
	return nil
}

// changed counts a change that was made.
func (f *FS) changed() {
	if f.cfg.Changes != nil {
		f.cfg.Changes.Add(1)
	}
}

// SetReadDelay changes the delay of opens and listings.
func (f *FS) SetReadDelay(d time.Duration) { f.delay.Store(int64(d)) }

// SetQuorate says whether the node has quorum: without it everything can be
// read, and every change is refused with EACCES. At the beginning it has.
func (f *FS) SetQuorate(quorate bool) { f.switchTo(func(s *side) { s.frozen = !quorate }) }

// side is where the node stands. Every call takes one look at it and keeps to
// it: what began with quorum is done to the tree that all share, or not at all.
type side struct {
	source string
	view   string
	frozen bool // no quorum
}

// look carries a read out, once more if nothing is there: the view may have
// changed sides in between, and what is behind a name with it.
func (f *FS) look(try func(*side) syscall.Errno) syscall.Errno {
	errno := try(f.side.Load())
	if errno == syscall.ENOENT {
		errno = try(f.side.Load())
	}
	return errno
}

func (f *FS) switchTo(change func(*side)) {
	for {
		was := f.side.Load()
		next := *was
		change(&next)
		if f.side.CompareAndSwap(was, &next) {
			return
		}
	}
}

// SetSource puts another tree behind the view, from one call to the next. Files
// that are open stay what they are.
func (f *FS) SetSource(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("source %q is not an absolute path", dir)
	}
	f.switchTo(func(s *side) { s.source = dir })
	return nil
}

// Unmount takes the view away, also while others have files of it open: they
// keep those, and it waits for them to be closed until ctx ends. Calls in
// progress do not wait out their delay. The mount point is an empty directory
// then, as on a node whose pmxcfs is stopped, and can be mounted again at once.
func (f *FS) Unmount(ctx context.Context) error {
	var err error
	f.once.Do(func() { err = f.detach() })
	if err != nil {
		return fmt.Errorf("unmount %s: %w", f.cfg.MountPoint, err)
	}
	if err := f.wait(ctx); err != nil {
		return fmt.Errorf("unmount %s: files are still open: %w", f.cfg.MountPoint, err)
	}
	return nil
}

// patience is how long Unmount waits for files to be closed where ctx cannot
// end the wait: virtual time stands still meanwhile.
const patience = 2 * time.Second

// wait waits for the server's end.
func (f *FS) wait(ctx context.Context) (err error) {
	if f.cfg.Go == nil {
		select {
		case <-f.done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	f.cfg.outside(func() {
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-f.done:
		case <-timer.C:
			err = context.DeadlineExceeded
		}
	})
	return err
}

// outside runs work to its end where Config.Go runs things. A mutex tells of
// the end: a channel would belong to the caller's bubble.
func (c Config) outside(work func()) {
	if c.Go == nil {
		work()
		return
	}
	var done sync.Mutex
	done.Lock()
	c.Go(func() {
		defer done.Unlock()
		work()
	})
	done.Lock() //nolint:staticcheck // unlocked by the other goroutine
}

func (f *FS) detach() error {
	close(f.stop)
	return unix.Unmount(f.cfg.MountPoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// Done is closed when the view is unmounted, by Unmount or by umount(8), and
// nobody has a file of it open.
func (f *FS) Done() <-chan struct{} { return f.done }

// real is the path behind a name in the view, given relative to its top.
func (s *side) real(rel string) string {
	if s.view != "" && filepath.Dir(rel) == "." && rel != "." && rel != "" {
		own := filepath.Join(s.view, rel)
		if _, err := os.Lstat(own); err == nil {
			return own
		}
	}
	return filepath.Join(s.source, rel)
}

// pause spends the read delay. The runtime's timers cannot do less than one
// millisecond when the process is idle, the kernel's can.
func (f *FS) pause(ctx context.Context) error {
	delay := time.Duration(f.delay.Load())
	if delay <= 0 {
		return nil
	}
	if delay < 5*time.Millisecond {
		left := unix.NsecToTimespec(int64(delay))
		for errors.Is(unix.Nanosleep(&left, &left), unix.EINTR) {
			continue
		}
		return nil
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-f.stop:
	case <-ctx.Done(): // the caller was interrupted
		return unix.EINTR
	}
	return nil
}
