package image

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// text is a set on one line.
func text(s Set) string {
	parts := []string{s.Name}
	for _, m := range s.Members {
		part := fmt.Sprintf("%s:%d %s", m.Node, m.VMID, m.State)
		if m.Replica {
			part += " replica"
		}
		if m.Shared {
			part += " shared"
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, ", ")
}

func (l *lab) resolves(ref, want string) {
	l.Helper()
	got, err := l.Resolve(l.Context(), ref)
	if err != nil || text(got) != want {
		l.Errorf("%s: got %s, %v; want %s", ref, text(got), err, want)
	}
}

func (l *lab) refuses(ref string, reason fault.Reason, says ...string) {
	l.Helper()
	got, err := l.Resolve(l.Context(), ref)
	if fault.Of(err) != reason || err == nil {
		l.Errorf("%s: got %s, %v; want %s", ref, text(got), err, reason)
		return
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			l.Errorf("%s: %v does not say %q", ref, err, s)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.put(100, "pve1", "name: web\nscsi0: local:100/vm-100-disk-0.qcow2,size=1G\n")
	l.put(101, "pve2", "name: twin\n")
	l.put(102, "pve2", "name: twin\n")
	l.put(103, "pve2", "name: ubuntu\n") // a VM of a template's name is not meant
	l.put(9000, "pve2", templateConf(9000, "ubuntu", "local", uuidA))
	l.put(9001, "pve1", templateConf(9001, "ubuntu", "local-lvm", uuidB))
	l.put(9002, "pve3", templateConf(9002, "shared", "ceph", uuidC))
	l.put(9003, "pve1", templateConf(9003, "double", "local", uuidA))
	l.put(9004, "pve1", templateConf(9004, "double", "local", uuidB))
	l.put(9005, "pve2", templateConf(9005, "double", "local", uuidC))
	l.refresh()
	l.resolves("ubuntu", "ubuntu, pve1:9001 ready, pve2:9000 ready")
	l.resolves("9000", "ubuntu, pve2:9000 ready")
	l.resolves("9004", "double, pve1:9004 ready")
	l.resolves("shared", "shared, pve3:9002 ready shared")
	l.resolves("web", "web, pve1:100 ready")
	l.resolves("100", "web, pve1:100 ready")
	l.refuses("double", fault.Precondition, `"double"`, "9003 on pve1", "9004 on pve1", "use the VMID")
	l.refuses("twin", fault.Precondition, `"twin"`, "101 on pve2", "102 on pve2")
	l.refuses("nobody", fault.NotFound, `"nobody"`)
	l.refuses("9999", fault.NotFound, "9999")
}

// recordUbuntu records an image whose replica on pve3 is a copy of template 9000 as it is now.
func (l *lab) recordUbuntu() {
	l.Helper()
	l.put(9000, "pve1", templateConf(9000, "ubuntu-tmpl", "local", uuidA))
	l.put(10000, "pve3", templateConf(10000, "ubuntu-tmpl", "local", uuidC))
	l.refresh()
	_, err := l.cfg.Records.Create(record.Image{
		Name: "ubuntu", Template: "ubuntu-tmpl", Originals: []record.Original{{Node: "pve1", VMID: 9000, UUID: uuidA}},
		Replicas: []record.Replica{{Node: "pve3", VMID: 10000, UUID: uuidC, Of: Version(l.world().VMs[9000].Conf), From: 9000, Created: time.Now()}},
	})
	l.must(err)
}

func TestResolveRecorded(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.recordUbuntu()
	all := "ubuntu, pve1:9000 ready, pve3:10000 ready replica"
	for _, ref := range []string{"ubuntu", "9000", "10000"} {
		l.resolves(ref, all)
	}
	l.resolves("ubuntu-tmpl", "ubuntu-tmpl, pve1:9000 ready") // another name; the replica is not one of the administrator's

	// A second template of the name: the one that was recorded is meant.
	l.put(9001, "pve1", templateConf(9001, "ubuntu-tmpl", "local", uuidB))
	l.refresh()
	l.resolves("ubuntu", all)
	// Rebuilt under another number.
	l.put(9000, "pve1", "")
	l.refresh()
	l.resolves("ubuntu", "ubuntu, pve1:9001 ready, pve3:10000 stale replica")
	// Without any, what is left of it is as good as it was.
	l.put(9001, "pve1", "")
	l.refresh()
	l.resolves("ubuntu", "ubuntu, pve3:10000 ready replica")
	l.resolves("ubuntu-tmpl", "ubuntu, pve3:10000 ready replica")
	// Rebuilt under its number.
	l.put(9000, "pve1", templateConf(9000, "ubuntu-tmpl", "local", uuidB))
	l.refresh()
	l.resolves("ubuntu", "ubuntu, pve1:9000 ready, pve3:10000 stale replica")
	// The number of the replica is somebody else's.
	l.put(10000, "pve3", "name: other\nsmbios1: uuid="+uuidA+"\n")
	l.refresh()
	l.resolves("ubuntu", "ubuntu, pve1:9000 ready, pve3:10000 missing replica")
	l.put(9000, "pve1", "")
	l.refresh()
	l.refuses("ubuntu", fault.NotFound, `"ubuntu"`, "ubuntu-tmpl")
}

// A record that cannot be read hides its own image only.
func TestResolveBesideABrokenRecord(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.recordUbuntu()
	l.put(9100, "pve1", templateConf(9100, "debian", "local", uuidB))
	l.refresh()
	l.write("priv/pve-rigaud/images/debian.1", "{garbage}\n")
	l.resolves("ubuntu", "ubuntu, pve1:9000 ready, pve3:10000 ready replica")
	l.resolves("9100", "debian, pve1:9100 ready")
	l.refuses("debian", fault.Precondition, "debian.1", "not a record")
	if err := l.pass(t.Context()); err == nil || !strings.Contains(err.Error(), "debian.1") {
		t.Errorf("nobody is told: %v", err)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	base := templateConf(9000, "ubuntu", "local", uuidA)
	version := func(conf string) string {
		l.put(9000, "pve1", conf)
		l.refresh()
		return Version(l.world().VMs[9000].Conf)
	}
	was := version(base)
	for what, same := range map[string]bool{
		base + "memory: 4096\ntags: x\ndescription: y\n":      true,
		base + "ide2: local:iso/x.iso,media=cdrom\n":          true,
		strings.ReplaceAll(base, uuidA, uuidB):                false,
		strings.ReplaceAll(base, "size=2G", "size=3G"):        false,
		strings.ReplaceAll(base, "disk-0", "disk-1"):          false,
		base + "meta: creation-qemu=9.0.0,ctime=1700000000\n": false,
	} {
		if (version(what) == was) != same {
			t.Errorf("same version: want %v for\n%s", same, what)
		}
	}
}

// reachText is who reaches an image and who does not, by node.
func (l *lab) reachText(ref, storage string) string {
	l.Helper()
	src, _, err := l.Reach(l.Context(), ref, storage)
	l.must(err)
	var lines []string
	for node, r := range src.Nodes {
		line := node + " " + r.How.String()
		for _, d := range r.Disks {
			line += fmt.Sprintf(" %s/%s:%d", d.Storage, d.Content, d.Bytes>>30)
		}
		lines = append(lines, line)
	}
	for node, why := range src.Why {
		lines = append(lines, node+" "+why)
	}
	slices.Sort(lines)
	return strings.Join(append([]string{src.Name}, lines...), "\n")
}

func TestReach(t *testing.T) {
	t.Parallel()
	here, common, onDemand := placement.Here.String(), placement.Shared.String(), placement.OnDemand.String()
	cordoned := func(node string) string {
		if node == "pve2" {
			return "cordoned"
		}
		return ""
	}
	for _, x := range []struct {
		what, ref, storage string
		replicas           int
		want               string
	}{
		{"no replicas are made", "ubuntu", "", 1, `replica of "ubuntu"
pve1 ` + here + ` local/images:2
pve2 has no replica of "ubuntu"
pve3 ` + here + ` local/images:2`},
		{"there are as many as may be", "ubuntu", "", 2, `replica of "ubuntu"
pve1 ` + here + ` local/images:2
pve2 has no replica of "ubuntu", which is on as many nodes as it is to be (placement.image-replicas is 2)
pve3 ` + here + ` local/images:2`},
		{"one more may be made, but not there", "ubuntu", "local-lvm", EveryNode, `replica of "ubuntu"
pve1 ` + here + ` local-lvm/images:2
pve2 has no replica of "ubuntu", and gets none: cordoned
pve3 ` + here + ` local-lvm/images:2`},
		{"made on demand", "alone", "", EveryNode, `replica of "alone"
pve1 ` + onDemand + ` local/images:6
pve2 ` + here + ` local/images:2
pve3 ` + onDemand + ` local/images:6`},
		{"on shared storage", "shared", "", EveryNode, `replica of "shared"
pve1 ` + common + ` ceph/images:2
pve2 ` + common + ` ceph/images:2
pve3 ` + here + ` ceph/images:2`},
		{"an ordinary VM", "web", "", EveryNode, `source "web"
pve1 ` + here + ` local/images:1
pve2 does not have "web"
pve3 does not have "web"`},
	} {
		t.Run(x.what, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, func(c *Config) { c.Replicas, c.Cordoned = x.replicas, cordoned })
			l.recordUbuntu()
			l.put(100, "pve1", "name: web\nscsi0: local:100/vm-100-disk-0.qcow2,size=1G\n")
			l.put(9100, "pve2", templateConf(9100, "alone", "local", uuidB))
			l.put(9200, "pve3", templateConf(9200, "shared", "ceph", uuidB))
			l.refresh()
			if diff := cmp.Diff(x.want, l.reachText(x.ref, x.storage)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// A replica that is out of date is made of nothing any more.
func TestReachStale(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.recordUbuntu()
	l.put(9000, "pve1", templateConf(9000, "ubuntu-tmpl", "local", uuidB))
	l.refresh()
	want := `replica of "ubuntu"
pve1 ` + placement.Here.String() + ` local/images:2
pve2 has no replica of "ubuntu"
pve3 its replica of "ubuntu" is out of date: template 9000, which it is a copy of, was rebuilt or has changed`
	if diff := cmp.Diff(want, l.reachText("ubuntu", "")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if vm, err := l.Here(t.Context(), "ubuntu"); err != nil || vm.ID != 9000 {
		t.Errorf("here: %v, %v", vm, err)
	}
	l.put(9000, "pve1", "")
	l.refresh()
	_, err := l.Here(t.Context(), "ubuntu")
	if !fault.Is(err, fault.Moved) || !strings.Contains(err.Error(), "pve3") {
		t.Errorf("of another node: %v", err)
	}
}

func TestTargetOn(t *testing.T) {
	t.Parallel()
	const here = "dir: local\n\tpath /vz\n\tcontent iso\n\n"
	for what, x := range map[string]struct{ cfg, want string }{
		"nowhere to put it": {here, "no storage for disks"},
		"nowhere to stage it": {
			here + "lvmthin: local-lvm\n\tvgname pve\n\tthinpool data\n\tcontent images\n", "content import",
		},
		"not clear where": {
			here + "zfspool: a\n\tpool a\n\tcontent images\n\nzfspool: b\n\tpool b\n\tcontent images\n\n", "which of a, b",
		},
		"the only one of its type": {
			here + "dir: big\n\tpath /big\n\tcontent images\n\nzfspool: a\n\tpool a\n\tcontent images\n\n", "scsi0 to big, staged on big as images",
		},
		"of its own name": {
			"dir: local\n\tpath /vz\n\tcontent images,import\n\ndir: big\n\tpath /big\n\tcontent images\n\n", "scsi0 to local, staged on local as import",
		},
		"of its own first": {
			"nfs: far\n\tpath /far\n\tcontent images,import\n\ndir: local\n\tpath /vz\n\tcontent images,import\n\n", "scsi0 to local, staged on local as import",
		},
	} {
		l := newLab(t)
		l.write("storage.cfg", x.cfg)
		l.put(9000, "pve1", templateConf(9000, "ubuntu", "local", uuidA))
		l.write(".version", `{"starttime":2,"vmlist":1,"storage.cfg":2}`)
		l.refresh()
		l.write(".version", `{"starttime":3,"vmlist":9,"storage.cfg":9}`)
		l.must(l.cfg.Watcher.Refresh(t.Context()))
		got, err := targetOn(l.world(), l.world().VMs[9000].Conf, "pve2")
		said := fmt.Sprintf("scsi0 to %s, staged on %s as %s", got.Storages["scsi0"], got.Staging, got.Content)
		if err != nil {
			said = err.Error()
		}
		if !strings.Contains(said, x.want) {
			t.Errorf("%s: got %s, want %s", what, said, x.want)
		}
	}
}

// A replica that is on record is struck off only when it is gone without doubt.
func TestGone(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.recordUbuntu()
	replica := func() Member {
		set, err := l.Resolve(t.Context(), "ubuntu")
		l.must(err)
		return set.Members[len(set.Members)-1]
	}
	for what, x := range map[string]struct {
		conf string
		gone bool
	}{
		"as it was":      {templateConf(10000, "ubuntu-tmpl", "local", uuidC), false},
		"being made":     {"lock: create\n", false},
		"not a template": {"name: ubuntu-tmpl\nsmbios1: uuid=" + uuidC + "\n", false},
		"somebody else":  {"name: web\nsmbios1: uuid=" + uuidA + "\n", true},
		"nowhere":        {"", true},
	} {
		l.put(10000, "pve3", x.conf)
		l.refresh()
		if got := l.gone(t.Context(), replica()); got != x.gone {
			t.Errorf("%s: gone is %v", what, got)
		}
	}
	// What is known may be old.
	l.put(10000, "pve3", "name: web\nsmbios1: uuid="+uuidA+"\n")
	l.refresh()
	unlike := replica()
	l.put(10000, "pve3", templateConf(10000, "ubuntu-tmpl", "local", uuidC))
	l.serial++
	l.write(".version", fmt.Sprintf(`{"starttime":1,"vmlist":%d}`, l.serial))
	l.write(".vmlist", fmt.Sprintf(`{"version":%d,"ids":{"9000":{"node":"pve1","type":"qemu","version":1},"10000":{"node":"pve3","type":"qemu","version":99}}}`, l.serial))
	if unlike.State != Missing || l.gone(t.Context(), unlike) {
		t.Errorf("it was another machine when the world was read, and is not: %+v", unlike)
	}
	l.put(10000, "pve3", "")
	l.refresh()
	old := replica()
	l.put(10000, "pve3", templateConf(10000, "ubuntu-tmpl", "local", uuidC))
	l.serial++
	l.write(".version", fmt.Sprintf(`{"starttime":1,"vmlist":%d}`, l.serial))
	l.write(".vmlist", fmt.Sprintf(`{"version":%d,"ids":{"9000":{"node":"pve1","type":"qemu","version":1},"10000":{"node":"pve3","type":"qemu","version":9}}}`, l.serial))
	if old.State != Missing || l.gone(t.Context(), old) {
		t.Errorf("it was there when it was looked for anew: %+v", old)
	}
}
