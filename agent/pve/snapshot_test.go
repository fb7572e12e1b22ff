package pve

import (
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestSnapshotsOfARecordedAnswer: of PVE 9.2, with one snapshot of the disks alone and one with memory.
func TestSnapshotsOfARecordedAnswer(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		ok(w, `{"data":[{"description":"first","snaptime":1795330381,"name":"s1","vmstate":0},{"vmstate":1,"name":"ram1","snaptime":1795330382,"description":"with ram","parent":"s1"},{"running":1,"digest":"393e215074751bfd3e5ac8fa51f881fa6e540334","name":"current","parent":"ram1","description":"You are here!"}]}`)
	})
	got, err := c.Snapshots(t.Context(), "pve1", 100)
	want := []Snapshot{
		{Name: "s1", Description: "first", Time: 1795330381},
		{Name: "ram1", Description: "with ram", Parent: "s1", Time: 1795330382, Memory: true},
		{Name: "current", Description: "You are here!", Parent: "ram1"},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestHasFeature(t *testing.T) {
	for body, want := range map[string]bool{
		`{"data":{"hasFeature":1,"nodes":["pve1"]}}`: true, `{"data":{"hasFeature":0,"nodes":[]}}`: false,
		`{"data":{"hasFeature":true}}`: true, `{"data":{"nodes":[]}}`: false,
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { ok(w, body) })
		if got, err := c.HasFeature(t.Context(), "pve1", 100, FeatureSnapshot); err != nil || got != want {
			t.Errorf("%s: %v %v", body, got, err)
		}
	}
}

func TestMachines(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		ok(w, `{"data":[{"id":"pc-q35-9.2+pve1","type":"q35","version":"9.2+pve1","changes":"x"},{"id":"pc-i440fx-9.2","type":"i440fx","version":"9.2"}]}`)
	})
	got, err := c.Machines(t.Context(), "pve1")
	want := []Machine{{ID: "pc-q35-9.2+pve1", Type: "q35", Version: "9.2+pve1"}, {ID: "pc-i440fx-9.2", Type: "i440fx", Version: "9.2"}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

// TestWhyASnapshotCannotBe: the words of PVE::AbstractConfig and of the storages.
func TestWhyASnapshotCannotBe(t *testing.T) {
	for text, want := range map[string]Kind{
		"snapshot feature is not available":                                                                  KindNoSnapshots,
		"can't rollback, 's1' is not most recent snapshot on 'local-zfs:vm-100-disk-0'":                      KindNotNewest,
		"can't rollback, snapshot 's1' does not exist on 'local-zfs:vm-100-disk-0'":                          KindNoSnapshot,
		"you can't take a snapshot if it's a template":                                                       KindTemplate,
		"snapshot name 's1' already used":                                                                    KindExists,
		"unable to rollback to incomplete snapshot (snapstate = prepare)":                                    KindOther,
		"Cannot live-migrate, snapshot (with RAM), or hibernate a VM with: virtiofs":                         KindOther,
		"snapshot 's1' needed by replication job '100-0' - run replication first":                            KindOther,
		"storage 'zfs' does not exist":                                                                       KindNoStorage,
		"unable to create snapshot: zfs error: cannot create snapshot: out of space":                         KindNoSpace,
		"can't lock file '/var/lock/qemu-server/lock-100.conf' - got timeout":                                KindLockTimeout,
		"VM is locked (snapshot-delete)":                                                                     KindLocked,
		"qemu-img: Could not create snapshot 's1': -28 (No space left on device)":                            KindNoSpace,
		"VM 100 qmp command 'savevm-start' failed - State blocked by non-migratable device '0000:00:10.0/v'": KindOther,
	} {
		if got := KindOf(&TaskError{ExitStatus: text}); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestSnapshotNamesStayInTheirPlace(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked %s %s", r.Method, r.URL) })
	for _, name := range []string{"", ".", "..", "../../status/stop"} {
		if _, err := c.DeleteSnapshot(t.Context(), "pve1", 100, name); err == nil {
			t.Errorf("snapshot %q was asked for", name)
		}
	}
}
