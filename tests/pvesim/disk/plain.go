package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Plain is a [Store] that needs no other program. An image is a page that
// tells format, size, link and snapshots, and behind it the raw content, all
// holes until somebody writes there. No QEMU can boot from one that claims to
// be qcow2, and snapshots keep the size, not the content. A file without that
// page is a raw image.
type Plain struct{}

// page is the first page of a plain image.
type page struct {
	Format    string     `json:"format"`
	Virtual   int64      `json:"virtual"`
	Backing   string     `json:"backing,omitempty"` // relative to the image's directory
	Snapshots []snapshot `json:"snapshots,omitempty"`
}

type snapshot struct {
	Name    string `json:"name"`
	Virtual int64  `json:"virtual"`
}

const (
	pageMark = "pve-rigaud plain disk\n"
	pageSize = 4096
)

// encode writes the page as it stands in the file.
func (p page) encode() ([]byte, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	text = append([]byte(pageMark), text...)
	if len(text) > pageSize {
		return nil, fmt.Errorf("too many snapshots (%d)", len(p.Snapshots))
	}
	return append(text, make([]byte, pageSize-len(text))...), nil
}

// store writes the page and gives the file its size.
func (p page) store(path string) error {
	text, err := p.encode()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, 0)
	if err == nil {
		err = f.Truncate(pageSize + p.Virtual)
	}
	return errors.Join(err, f.Close())
}

// load reads an image's page; start is where its content begins.
func load(path string) (p page, start int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return page{}, 0, err
	}
	defer func() { _ = f.Close() }() // only read
	buf := make([]byte, pageSize)
	n, err := io.ReadFull(f, buf)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return page{}, 0, err
	}
	text, ok := bytes.CutPrefix(buf[:n], []byte(pageMark))
	if !ok {
		info, err := f.Stat()
		if err != nil {
			return page{}, 0, err
		}
		return page{Format: Raw, Virtual: info.Size()}, 0, nil
	}
	err = json.Unmarshal(bytes.TrimRight(text, "\x00"), &p)
	return p, pageSize, err
}

// change reads the page, changes and writes it.
func change(path string, f func(*page) error) error {
	p, start, err := load(path)
	if err != nil {
		return err
	}
	if err := f(&p); err != nil {
		return err
	}
	if start == 0 {
		return os.Truncate(path, p.Virtual) // a raw file from elsewhere
	}
	return p.store(path)
}

func (p page) info(path string, blocks int64) Info {
	info := Info{Virtual: p.Virtual, Format: p.Format, Actual: blocks * 512}
	if p.Backing != "" {
		info.Backing = filepath.Join(filepath.Dir(path), p.Backing)
	}
	for _, s := range p.Snapshots {
		info.Snapshots = append(info.Snapshots, s.Name)
	}
	return info
}

// Create implements [Store].
func (Plain) Create(ctx context.Context, path, format string, size int64) error {
	err := errors.Join(checkFormat(format), ctx.Err())
	if err == nil {
		err = making(path, func() error { return page{Format: format, Virtual: size}.store(path) })
	}
	return act("create", path, err)
}

// Clone implements [Store].
func (Plain) Clone(ctx context.Context, src, dst, format string) error {
	if err := checkFormat(format); err != nil {
		return act("clone to", dst, err)
	}
	p, _, err := load(src)
	if err != nil {
		return act("clone to", dst, err)
	}
	return act("clone to", dst, making(dst, func() error {
		if err := (page{Format: format, Virtual: p.Virtual}).store(dst); err != nil {
			return err
		}
		return copyChain(ctx, src, dst)
	}))
}

// CloneSnapshot implements [Store]. The content is today's, as with Revert.
func (p Plain) CloneSnapshot(ctx context.Context, src, name, dst, format string) error {
	was, _, err := load(src)
	if err == nil {
		err = checkSnapshot(was.info(src, 0), name)
	}
	if err != nil {
		return act("clone to", dst, err)
	}
	return p.Clone(ctx, src, dst, format)
}

// Linked implements [Store].
func (Plain) Linked(ctx context.Context, base, dst string) error {
	p, _, err := load(base)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return act("link", dst, err)
	}
	backing, err := filepath.Rel(filepath.Dir(dst), base)
	if err != nil {
		return act("link", dst, err)
	}
	return act("link", dst, making(dst, func() error {
		return page{Format: QCOW2, Virtual: p.Virtual, Backing: backing}.store(dst)
	}))
}

// Resize implements [Store].
func (Plain) Resize(_ context.Context, path, format string, size int64) error {
	return act("resize", path, change(path, func(p *page) error {
		if p.Format != format {
			return fmt.Errorf("image is %s, not %s", p.Format, format)
		}
		if size < p.Virtual {
			return fmt.Errorf("from %d to %d bytes: %w", p.Virtual, size, ErrShrink)
		}
		p.Virtual = size
		return nil
	}))
}

// Info implements [Store].
func (Plain) Info(_ context.Context, path string) (Info, error) {
	p, _, err := load(path)
	if err != nil {
		return Info{}, act("look at", path, err)
	}
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return Info{}, act("look at", path, err)
	}
	return p.info(path, stat.Blocks), nil
}

// Remove implements [Store].
func (Plain) Remove(path string) error { return os.Remove(path) }

// Snapshot implements [Store].
func (Plain) Snapshot(_ context.Context, path, name string) error {
	return act("snapshot", path, change(path, func(p *page) error {
		if err := checkNewSnapshot(p.info(path, 0), name); err != nil {
			return err
		}
		p.Snapshots = append(p.Snapshots, snapshot{Name: name, Virtual: p.Virtual})
		return nil
	}))
}

// DeleteSnapshot implements [Store].
func (Plain) DeleteSnapshot(_ context.Context, path, name string) error {
	return act("delete snapshot of", path, change(path, func(p *page) error {
		if err := checkSnapshot(p.info(path, 0), name); err != nil {
			return err
		}
		p.Snapshots = slices.DeleteFunc(p.Snapshots, func(s snapshot) bool { return s.Name == name })
		return nil
	}))
}

// Revert implements [Store].
func (Plain) Revert(_ context.Context, path, name string) error {
	return act("revert", path, change(path, func(p *page) error {
		if err := checkSnapshot(p.info(path, 0), name); err != nil {
			return err
		}
		i := slices.IndexFunc(p.Snapshots, func(s snapshot) bool { return s.Name == name })
		p.Virtual = p.Snapshots[i].Virtual
		return nil
	}))
}

// CloudInit implements [Store].
func (Plain) CloudInit(_ context.Context, path string, files map[string][]byte) error {
	image, err := cloudInitImage(files)
	if err != nil {
		return act("make cloud-init drive", path, err)
	}
	return act("make cloud-init drive", path, replacing(path, func(tmp string) error {
		text, err := page{Format: formatOf(path), Virtual: cloudInitSize}.encode()
		if err != nil {
			return err
		}
		return os.WriteFile(tmp, append(text, image...), 0o640)
	}))
}

// copyChain copies the content of an image, and what it is linked to below it.
func copyChain(ctx context.Context, src, dst string) error {
	p, start, err := load(src)
	if err != nil {
		return err
	}
	if p.Backing != "" {
		if err := copyChain(ctx, filepath.Join(filepath.Dir(src), p.Backing), dst); err != nil {
			return err
		}
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	out, err := os.OpenFile(dst, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(copyData(ctx, in, start, out), out.Close())
}

// copyData copies what is not a hole of in from start on, to behind the page
// of out.
func copyData(ctx context.Context, in *os.File, start int64, out *os.File) error {
	for at := start; ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only holes from here on
		}
		if err != nil {
			return err
		}
		if at, err = unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err = out.Seek(pageSize+data-start, io.SeekStart); err != nil {
			return err
		}
		if _, err = io.Copy(out, io.NewSectionReader(in, data, at-data)); err != nil {
			return err
		}
	}
}
