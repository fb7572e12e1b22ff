package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// keeps are the places below the cluster's directory in which something can be left behind.
var keeps = []string{"etc/pve/nodes", "etc/pve/priv/pve-rigaud/vms", "etc/pve/ha", "st", "pve1/vz", "pve2/vz", "pve1/run", "pve2/run"}

// ownSnippet is the path of a snippet that an agent has made. It stays for seven days when nothing needs it any more.
var ownSnippet = regexp.MustCompile(`/snippets/pve-rigaud-[0-9a-f]{32}\.yaml$`)

// inventory is everything there is of VMs but their snippets: configs, disks, records, sockets; each with its size, and
// small ones with a hash.
func (s *stage) inventory() map[string]string {
	s.Helper()
	found := map[string]string{}
	for _, keep := range keeps {
		err := filepath.WalkDir(filepath.Join(s.rig.Dir, keep), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || path == filepath.Join(s.rig.Dir, keep) || ownSnippet.MatchString(path) {
				return err
			}
			rel, err := filepath.Rel(s.rig.Dir, path)
			if err == nil {
				found[rel], err = fingerprint(path, d)
			}
			return err
		})
		if err != nil {
			s.Fatalf("inventory: %v", err)
		}
	}
	return found
}

func fingerprint(path string, d fs.DirEntry) (string, error) {
	if !d.Type().IsRegular() {
		return d.Type().String(), nil
	}
	info, err := d.Info()
	if err != nil || info.Size() > 1<<16 {
		return fmt.Sprintf("%d bytes", info.Size()), err
	}
	b, err := os.ReadFile(path)
	return fmt.Sprintf("%d bytes %x", len(b), sha256.Sum256(b)), err
}

// nothingLeft checks that there is nothing that was not there before, that everything that was is, and that no
// operation runs.
func (s *stage) nothingLeft(before map[string]string) {
	s.Helper()
	if d := cmp.Diff(before, s.inventory()); d != "" {
		s.Errorf("not as before (-before +now):\n%s", d)
	}
	for line := range strings.Lines(s.scrape("/metrics")) {
		if strings.HasPrefix(line, "pve_rigaud_operations_running") && !strings.HasSuffix(line, " 0\n") {
			s.Errorf("still under way: %s", line)
		}
	}
}

// scrape gets a page of the agent's metrics server, whatever its status.
func (s *stage) scrape(path string) string {
	s.Helper()
	_, body := s.get(path)
	return body
}

func (s *stage) get(path string) (code int, body string) {
	s.Helper()
	rq, err := http.NewRequestWithContext(s.ctx, http.MethodGet, s.agent.Metrics+path, nil)
	if err != nil {
		s.Fatal(err)
	}
	rq.Close = true
	resp, err := http.DefaultClient.Do(rq)
	if err != nil {
		s.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
