package capacity

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// containerDir has a directory for each container that runs here, named by its number (PVE::LXC, with cgroup v2).
const containerDir = "fs/cgroup/lxc"

// containers returns how many bytes the containers that run here may use: they are promised as a VM's memory is. One
// without a limit is not counted; PVE makes none such.
func (s *Source) containers() uint64 {
	dir := filepath.Join(s.cfg.SysDir, containerDir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // none has run since the host was started
	}
	s.complain("sys/"+containerDir, err)
	var sum uint64
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(dir, e.Name(), "memory.max"))
		if err != nil {
			continue // it has just ended
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64); err == nil {
			sum += n
		}
	}
	return sum
}
