package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	uuidA = "0a1b2c3d-0000-4000-8000-000000000001"
	uuidB = "0a1b2c3e-0000-4000-8000-000000000002"
)

// folder is files as a simulated cluster has them.
type folder struct {
	*testing.T
	dir string
}

func (c folder) write(path, text string) {
	c.Helper()
	path = filepath.Join(c.dir, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		c.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
}

func (c folder) vm(id int, node, name, uuid, more string) {
	c.Helper()
	disk := fmt.Sprintf("%d/vm-%d-disk-0.qcow2", id, id)
	c.write(fmt.Sprintf("etc/pve/nodes/%s/qemu-server/%d.conf", node, id),
		fmt.Sprintf("name: %s\nsmbios1: uuid=%s\nscsi0: local:%s,size=1G\n%s\n[snap]\nname: other\n", name, uuid, disk, more))
	c.write(node+"/vz/images/"+disk, "")
}

func (c folder) record(id int, name, uuid, state string) {
	c.Helper()
	c.write(fmt.Sprintf("etc/pve/priv/pve-rigaud/vms/%d.1", id), fmt.Sprintf(`{"name":%q,"vmid":%d,"uuid":%q,"state":%q,"node":"pve1"}`+"\n", name, id, uuid, state))
}

// TestTheCheckSees: a check that sees nothing would find every cluster in order.
func TestTheCheckSees(t *testing.T) {
	for name, c := range map[string]struct {
		make func(folder)
		want []string
	}{
		"nothing wrong": {make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "")
			c.record(100, "web-1", uuidA, "ready")
			c.vm(101, "pve2", "of-somebody-else", uuidB, "lock: backup")
			c.vm(9000, "pve1", "web-1", uuidB, "template: 1")
		}},
		"two of a name": {want: []string{"web-1: also VM 101 on pve2"}, make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "")
			c.record(100, "web-1", uuidA, "ready")
			c.vm(101, "pve2", "web-1", uuidB, "")
			c.record(101, "web-1", uuidB, "ready")
		}},
		"locked": {want: []string{"VM 100 (web-1) on pve1: locked (clone)"}, make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "lock: clone")
			c.record(100, "web-1", uuidA, "ready")
		}},
		"without a record": {want: []string{"VM 100 (web-1) on pve1: no record"}, make: func(c folder) { c.vm(100, "pve1", "web-1", uuidA, "") }},
		"half made": {want: []string{"VM 100 (web-1) on pve1: its record says creating"}, make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "")
			c.record(100, "web-1", uuidA, "creating")
		}},
		"of another VM": {want: []string{"VM 100 (web-1) on pve1: its record is of another VM", `record of "web-1" (VM 100, ready) on pve1: no such VM`}, make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "")
			c.record(100, "web-1", uuidB, "ready")
		}},
		"a record of nothing": {want: []string{`record of "web-2" (VM 100, creating) on pve1: no such VM`}, make: func(c folder) { c.record(100, "web-2", uuidA, "creating") }},
		"a torn record":       {want: []string{`record of "" (VM 0, torn) on : no such VM`}, make: func(c folder) { c.write("etc/pve/priv/pve-rigaud/vms/x.1", "{") }},
		"a volume of nothing": {want: []string{"volume 100/vm-100-disk-1.qcow2: of no VM"}, make: func(c folder) {
			c.vm(100, "pve1", "web-1", uuidA, "")
			c.record(100, "web-1", uuidA, "ready")
			c.write("st/shared/images/100/vm-100-disk-1.qcow2", "")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c.make(folder{t, dir})
			r := &Runner{initial: map[string]bool{}}
			r.ledger.tell("web-1", "100-0a1b2c3d")
			truth, err := look(dir)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			found := func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) }
			r.countDuplicates(truth, found)
			r.countHalfMade(truth, found)
			slices.Sort(got)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestTheLedgerSees: one name must not get a second id while the first is good.
func TestTheLedgerSees(t *testing.T) {
	var l ledger
	l.become(l.tell("web-1", "100-0a1b2c3d"), made)
	l.tell("web-1", "100-0a1b2c3d")
	if len(l.violations) != 0 {
		t.Errorf("the same answer twice: %v", l.violations)
	}
	l.tell("web-1", "101-0a1b2c3e")
	if len(l.violations) != 1 || !strings.Contains(l.violations[0], "another id than web-1#1") {
		t.Errorf("two ids for one VM: %v", l.violations)
	}
	l.become(l.find("web-1#1"), deleted)
	l.become(l.find("web-1#1"), made) // a late answer
	if s := l.stageOf(l.find("web-1#1")); s != deleted {
		t.Errorf("a deleted VM has become %v", s)
	}
}
