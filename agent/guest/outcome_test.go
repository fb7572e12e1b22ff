package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// etc writes an /etc/pve of two nodes, in which pve2 has VM 500 with a snapshot x1 and may be offline.
func etc(t *testing.T, root string, version int, offline, quorate bool) {
	t.Helper()
	number := map[bool]int{true: 1}
	for name, text := range map[string]string{
		"storage.cfg": "",
		".version":    fmt.Sprintf(`{"starttime":1,"clinfo":%d,"vmlist":%d,"storage.cfg":1}`, version, version),
		".vmlist":     fmt.Sprintf(`{"version":%d,"ids":{"500":{"node":"pve2","type":"qemu","version":1}}}`, version),
		".members": fmt.Sprintf(`{"nodename":"pve1","version":%d,"cluster":{"name":"c","version":1,"nodes":2,"quorate":%d},"nodelist":{
			"pve1":{"id":1,"online":1,"ip":"192.0.2.1"},"pve2":{"id":2,"online":%d,"ip":"192.0.2.2"}}}`, version, number[quorate], number[!offline]),
		"nodes/pve2/qemu-server/500.conf": "name: vm\nparent: x1\nsmbios1: uuid=01234567-89ab-cdef-0123-456789abcdef\n\n[x1]\nname: vm\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTasksOfANodeThatIsGone: as long as it may come back its tasks are its own. When it is gone for good, what there is
// tells how they ended, and that needs quorum.
func TestTasksOfANodeThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := t.TempDir()
		etc(t, root, 1, true, true)
		w := pmxcfs.NewWatcher(pmxcfs.WatchConfig{Tree: pmxcfs.Open(root), Node: "pve1", MaxAge: time.Hour})
		refresh := func() {
			t.Helper()
			if err := w.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		refresh()
		e, stop := engine(t, filepath.Join(t.TempDir(), "journal.db"), nil, nil)
		defer stop()
		g := &Guests{cfg: Config{Node: "pve1", Ops: e, Watcher: w, Records: record.New(record.Config{Dir: filepath.Join(root, "priv")})}}
		const id = "500-01234567"
		outcomes := map[ops.Ref]string{
			{Kind: ops.SnapshotCreate, Subject: id + "/x1"}: "done, ",
			{Kind: ops.SnapshotCreate, Subject: id + "/x2"}: "done, take snapshot x2 of VM " + id + ": there is none",
			{Kind: ops.SnapshotDelete, Subject: id + "/x1"}: "done, delete snapshot x1 of VM " + id + ": it is still there",
			{Kind: ops.SnapshotDelete, Subject: id + "/x2"}: "done, ",
			{Kind: ops.SnapshotRevert, Subject: id + "/x1"}: "not done, ",
			{Kind: ops.Clone, Subject: id}:                  "done, ",
			{Kind: ops.Create, Subject: id}:                 "done, ",
			{Kind: ops.ImagePrepare, Subject: "debian"}:     "not done, ",
		}
		check := func(when string, want func(ops.Ref, string) string) {
			t.Helper()
			for ref, outcome := range outcomes {
				ref.Node, ref.Op = "pve2", "01a202a1-69d6-7b82-8643-75218b485c25"
				done, failure, err := g.TaskStatus(t.Context(), ref.String())
				got := map[bool]string{true: "done, ", false: "not done, "}[done] + failure
				if fault.Is(err, fault.Moved) {
					got = "moved"
				}
				if w := want(ref, outcome); got != w {
					t.Errorf("%s: %s of %s: %q, err %v, want %q", when, ref.Kind, ref.Subject, got, err, w)
				}
			}
		}
		check("a moment ago", func(ops.Ref, string) string { return "moved" })
		time.Sleep(121 * time.Second)
		refresh()
		check("gone", func(_ ops.Ref, outcome string) string { return outcome })
		etc(t, root, 2, true, false)
		refresh()
		check("without quorum", func(ops.Ref, string) string { return "moved" })
	})
}
