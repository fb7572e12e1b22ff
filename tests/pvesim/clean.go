package pvesim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// marker says that a directory is ours to clear.
const marker = ".pvesim"

var ours = regexp.MustCompile(`^(etc|st|tls|env|ready|token-secret|blank\.qcow2|pve\d+)$`)

// clearDir takes away what an earlier run left. A directory that has other
// things in it and no marker is refused.
func (c *Cluster) clearDir(context.Context) error {
	if err := os.MkdirAll(c.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	mark := filepath.Join(c.cfg.Dir, marker)
	entries, err := os.ReadDir(c.cfg.Dir)
	if err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	if _, err := os.Stat(mark); err != nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty and not from pvesim: give another directory or empty it", c.cfg.Dir)
	}
	for _, e := range entries {
		if !ours.MatchString(e.Name()) {
			continue
		}
		if err := clearEntry(filepath.Join(c.cfg.Dir, e.Name())); err != nil {
			return fmt.Errorf("directory: %w", err)
		}
	}
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return fmt.Errorf("directory: %w", err)
	}
	return nil
}

// clearEntry removes one of our entries. A node's etc/pve may still be mounted
// by a run that was killed: mounting it again takes care of that.
func clearEntry(path string) error {
	if filepath.Base(path)[0] != 'p' {
		return os.RemoveAll(path)
	}
	for _, sub := range []string{"own", "run", "lock", "lib", "vz", "st", "host", "agent.yaml", "agent.sock"} {
		if err := os.RemoveAll(filepath.Join(path, sub)); err != nil {
			return err
		}
	}
	copies, err := filepath.Glob(filepath.Join(path, "cut-*"))
	if err != nil {
		return err
	}
	for _, dir := range copies {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
