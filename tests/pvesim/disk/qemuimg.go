package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// MissingError says that qemu-img is not installed.
type MissingError struct{ Err error }

// Error names the package and the command that installs it.
func (e *MissingError) Error() string {
	return "real disks need qemu-utils; enable with: apt-get install --no-install-recommends qemu-utils"
}

// Unwrap returns what was looked for in vain.
func (e *MissingError) Unwrap() error { return e.Err }

// QemuImg is a [Store] of real images.
type QemuImg struct{ binary string }

// NewQemuImg finds qemu-img. The error is a [*MissingError] if there is none.
func NewQemuImg() (*QemuImg, error) {
	binary, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, &MissingError{Err: err}
	}
	return &QemuImg{binary: binary}, nil
}

// run calls qemu-img; its error is what it said.
func (q *QemuImg) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, q.binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch {
	case err == nil:
		return out, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
}

// Create implements [Store].
func (q *QemuImg) Create(ctx context.Context, path, format string, size int64) error {
	if err := checkFormat(format); err != nil {
		return act("create", path, err)
	}
	return act("create", path, making(path, func() error {
		_, err := q.run(ctx, "create", "-q", "-f", format, path, strconv.FormatInt(size, 10))
		return err
	}))
}

// Clone implements [Store].
func (q *QemuImg) Clone(ctx context.Context, src, dst, format string) error {
	if err := checkFormat(format); err != nil {
		return act("clone to", dst, err)
	}
	info, err := q.Info(ctx, src)
	if err != nil {
		return act("clone to", dst, err)
	}
	return q.convert(ctx, src, dst, "-f", info.Format, "-O", format)
}

// CloneSnapshot implements [Store].
func (q *QemuImg) CloneSnapshot(ctx context.Context, src, name, dst, format string) error {
	info, err := q.Info(ctx, src)
	if err == nil {
		err = errors.Join(checkFormat(format), checkSnapshot(info, name))
	}
	if err != nil {
		return act("clone to", dst, err)
	}
	return q.convert(ctx, src, dst, "-f", info.Format, "-O", format, "-l", "snapshot.name="+name)
}

func (q *QemuImg) convert(ctx context.Context, src, dst string, how ...string) error {
	return act("clone to", dst, making(dst, func() error {
		_, err := q.run(ctx, slices.Concat([]string{"convert", "-q", "-U"}, how, []string{src, dst})...)
		return err
	}))
}

// Linked implements [Store].
func (q *QemuImg) Linked(ctx context.Context, base, dst string) error {
	info, err := q.Info(ctx, base)
	if err != nil {
		return act("link", dst, err)
	}
	// Relative, as Proxmox VE has it: a storage may be mounted elsewhere.
	backing, err := filepath.Rel(filepath.Dir(dst), base)
	if err != nil {
		return act("link", dst, err)
	}
	return act("link", dst, making(dst, func() error {
		_, err := q.run(ctx, "create", "-q", "-f", QCOW2, "-b", backing, "-F", info.Format, dst)
		return err
	}))
}

// Resize implements [Store].
func (q *QemuImg) Resize(ctx context.Context, path, format string, size int64) error {
	info, err := q.Info(ctx, path)
	if err == nil && size < info.Virtual {
		err = fmt.Errorf("from %d to %d bytes: %w", info.Virtual, size, ErrShrink)
	}
	if err == nil {
		_, err = q.run(ctx, "resize", "-q", "-f", format, path, strconv.FormatInt(size, 10))
	}
	return act("resize", path, err)
}

// Info implements [Store].
func (q *QemuImg) Info(ctx context.Context, path string) (Info, error) {
	if _, err := os.Stat(path); err != nil {
		return Info{}, act("look at", path, err)
	}
	out, err := q.run(ctx, "info", "-U", "--output=json", path)
	if err != nil {
		return Info{}, act("look at", path, err)
	}
	var said struct {
		Virtual   int64  `json:"virtual-size"`
		Actual    int64  `json:"actual-size"`
		Format    string `json:"format"`
		Backing   string `json:"full-backing-filename"`
		Snapshots []struct {
			Name string `json:"name"`
		} `json:"snapshots"`
	}
	if err := json.Unmarshal(out, &said); err != nil {
		return Info{}, act("look at", path, err)
	}
	info := Info{Virtual: said.Virtual, Actual: said.Actual, Format: said.Format}
	if said.Backing != "" {
		info.Backing = filepath.Clean(said.Backing)
	}
	for _, s := range said.Snapshots {
		info.Snapshots = append(info.Snapshots, s.Name)
	}
	return info, nil
}

// Remove implements [Store].
func (*QemuImg) Remove(path string) error { return os.Remove(path) }

// Snapshot implements [Store].
func (q *QemuImg) Snapshot(ctx context.Context, path, name string) error {
	info, err := q.Info(ctx, path)
	if err == nil {
		err = checkNewSnapshot(info, name)
	}
	if err == nil {
		_, err = q.run(ctx, "snapshot", "-q", "-c", name, path)
	}
	return act("snapshot", path, err)
}

// DeleteSnapshot implements [Store].
func (q *QemuImg) DeleteSnapshot(ctx context.Context, path, name string) error {
	return act("delete snapshot of", path, q.onSnapshot(ctx, "-d", path, name))
}

// Revert implements [Store].
func (q *QemuImg) Revert(ctx context.Context, path, name string) error {
	return act("revert", path, q.onSnapshot(ctx, "-a", path, name))
}

func (q *QemuImg) onSnapshot(ctx context.Context, flag, path, name string) error {
	info, err := q.Info(ctx, path)
	if err != nil {
		return err
	}
	if err := checkSnapshot(info, name); err != nil {
		return err
	}
	_, err = q.run(ctx, "snapshot", "-q", flag, name, path)
	return err
}

// CloudInit implements [Store].
func (q *QemuImg) CloudInit(ctx context.Context, path string, files map[string][]byte) error {
	image, err := cloudInitImage(files)
	if err != nil {
		return act("make cloud-init drive", path, err)
	}
	return act("make cloud-init drive", path, replacing(path, func(tmp string) error {
		if formatOf(path) == Raw {
			return os.WriteFile(tmp, image, 0o640)
		}
		return replacing(tmp, func(converted string) error {
			if err := os.WriteFile(tmp, image, 0o640); err != nil {
				return err
			}
			_, err := q.run(ctx, "convert", "-q", "-f", Raw, "-O", QCOW2, tmp, converted)
			return err
		})
	}))
}
