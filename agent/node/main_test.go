package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

func TestMain(m *testing.M) {
	if path, ok := os.LookupEnv(dialEnv); ok { // a process of another user, see TestSocketIsForRootOnly
		os.Exit(dialAs(path))
	}
	goleak.VerifyTestMain(m)
}

// now is when everything is asked; /etc/pve was read half a second before.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// lab is a cluster as node pve1 sees it: an /etc/pve with its records, and what gossip and links tell.
type lab struct {
	t       *testing.T
	etc     string
	version int
	watcher *pmxcfs.Watcher
	gone    error // why there is no World
	old     bool  // an old World comes with gone
	records *record.Store
	listErr error
	peers   []cluster.Peer
	links   []forward.Link
	power   map[int]string
	asked   []int // VMs whose power was asked for
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, etc: t.TempDir(), power: map[int]string{}}
	l.write("storage.cfg", "dir: local\n\tpath /var/lib/vz\n")
	l.members(1, "pve1", "pve2", "pve3")
	l.guests(nil)
	l.watcher = pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(l.etc), Node: "pve1"})
	l.records = record.New(record.Config{Dir: filepath.Join(l.etc, "priv", "pve-rigaud")})
	if err := os.MkdirAll(filepath.Join(l.etc, "priv"), 0o700); err != nil {
		t.Fatal(err)
	}
	l.look()
	return l
}

func (l *lab) write(name, text string) {
	l.t.Helper()
	path := filepath.Join(l.etc, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		l.t.Fatal(err)
	}
}

// members writes .members: nodes pve1 to pve3, of which some are online.
func (l *lab) members(quorate int, online ...string) {
	l.t.Helper()
	var list []string
	for i := 1; i <= 3; i++ {
		name, on := fmt.Sprintf("pve%d", i), 0
		for _, o := range online {
			if o == name {
				on = 1
			}
		}
		list = append(list, fmt.Sprintf(`%q:{"id":%d,"online":%d,"ip":"192.0.2.%d"}`, name, i, on, i))
	}
	l.write(".members", fmt.Sprintf(`{"nodename":"pve1","version":2,"cluster":{"name":"lab","version":2,"nodes":3,"quorate":%d},"nodelist":{%s}}`,
		quorate, strings.Join(list, ",")))
}

// guest is one entry of .vmlist, with its config unless it has none.
type guest struct {
	vmid       int
	node, kind string
	conf       string
}

// guests writes .vmlist and the configs.
func (l *lab) guests(all []guest) {
	l.t.Helper()
	l.version++
	var ids []string
	for _, g := range all {
		ids = append(ids, fmt.Sprintf(`"%d":{"node":%q,"type":%q,"version":%d}`, g.vmid, g.node, g.kind, l.version))
		if g.conf != "" {
			l.write(fmt.Sprintf("nodes/%s/qemu-server/%d.conf", g.node, g.vmid), g.conf)
		}
	}
	l.write(".vmlist", fmt.Sprintf(`{"version":%d,"ids":{%s}}`, l.version, strings.Join(ids, ",")))
	l.write(".version", fmt.Sprintf(`{"starttime":1700000000,"clinfo":1,"vmlist":%d}`, l.version))
}

// look makes the watcher see what was written.
func (l *lab) look() {
	l.t.Helper()
	if err := l.watcher.Refresh(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

// world is the watcher's, read at a time that tests know.
func (l *lab) world() (*pmxcfs.World, error) {
	if l.gone != nil && !l.old {
		return nil, l.gone
	}
	w, err := l.watcher.World()
	if err != nil {
		return nil, err
	}
	dated := *w
	dated.ReadAt = now.Add(-500 * time.Millisecond)
	return &dated, l.gone
}

// List lets tests break the records.
func (l *lab) List() (record.Listing, error) {
	if l.listErr != nil {
		return record.Listing{}, l.listErr
	}
	return l.records.List()
}

func (l *lab) take(r record.Record) {
	l.t.Helper()
	r.Created = now.Add(-time.Minute)
	if _, err := l.records.Take(r); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) service() *Service {
	return New(Config{
		Self:  member(1),
		World: l.world, Records: l,
		Power: func(_ context.Context, vm *pmxcfs.VM) string {
			l.asked = append(l.asked, vm.ID)
			return l.power[vm.ID]
		},
		Peers: func() []cluster.Peer { return l.peers },
		Links: func() []forward.Link { return l.links },
		Now:   func() time.Time { return now },
	})
}

// member is what the agent of a node says of itself.
func member(i byte) cluster.Member {
	return cluster.Member{
		Name: fmt.Sprintf("pve%d", i), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 9443),
		Version: "1.0.0", Protocol: cluster.Protocols{Min: 1, Max: 1},
	}
}
