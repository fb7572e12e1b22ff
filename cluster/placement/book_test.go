package placement

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// reserved is what a book counts on a node that told its figures some time after
// now.
func reserved(b *Book, at, digest, facts time.Duration) Amount {
	n := nodes(1)
	n[0].State.DigestAt, n[0].State.FactsAt = now.Add(digest), now.Add(facts)
	n[0].Reserved = Amount{VMs: 99} // of another time
	b.Apply(n, now.Add(at))
	return n[0].Reserved
}

var (
	booked  = Amount{Memory: 8 * gibi, CPUs: 4, VMs: 1, Storage: map[string]uint64{"local-lvm": 20 * gibi}}
	onDisk  = Amount{Storage: booked.Storage}
	nothing = Amount{}
)

func TestBook(t *testing.T) {
	for name, tc := range map[string]struct {
		do                func(*Book)
		at, digest, facts time.Duration
		want              Amount
	}{
		"reserved":                            {func(*Book) {}, time.Second, 0, 0, booked},
		"a newer digest says nothing of it":   {func(*Book) {}, 5 * time.Second, 5 * time.Second, 0, booked},
		"but after a while":                   {func(*Book) {}, 6 * time.Second, 5*time.Second + 1, 0, onDisk},
		"the word came late":                  {settleAfter(20 * time.Second), 20 * time.Second, 5*time.Second + 1, 0, onDisk},
		"its disks wait for the word":         {func(*Book) {}, 100 * time.Second, 99 * time.Second, 99 * time.Second, onDisk},
		"taken, and not told yet":             {settleAfter(time.Second), 2 * time.Second, time.Second, 0, booked},
		"taken and told":                      {settleAfter(time.Second), 2 * time.Second, time.Second + 1, 0, onDisk},
		"what PVE says of storages is old":    {settleAfter(time.Second), 62 * time.Second, 61 * time.Second, 61 * time.Second, onDisk},
		"what PVE says of storages is new":    {settleAfter(time.Second), 62 * time.Second, 61 * time.Second, 61*time.Second + 1, nothing},
		"facts come with an older digest":     {settleAfter(time.Second), 62 * time.Second, 0, 62 * time.Second, Amount{Memory: 8 * gibi, CPUs: 4, VMs: 1}},
		"cancelled":                           {func(b *Book) { b.Cancel("a") }, time.Second, 0, 0, nothing},
		"another one is cancelled":            {func(b *Book) { b.Cancel("b") }, time.Second, 0, 0, booked},
		"another one is settled":              {func(b *Book) { b.Settle("b", now) }, time.Second, time.Second, 0, booked},
		"nearly forgotten":                    {func(*Book) {}, 2*time.Minute - 1, 0, 0, booked},
		"forgotten":                           {func(*Book) {}, 2 * time.Minute, 0, 0, nothing},
		"moved":                               {func(b *Book) { b.Reserve("a", "pve9", booked, now) }, time.Second, 0, 0, nothing},
		"reserved anew: not settled any more": {func(b *Book) { b.Settle("a", now); b.Reserve("a", "pve1", booked, now) }, 2 * time.Second, time.Second, 0, booked},
		"two are added up": {func(b *Book) {
			b.Reserve("b", "pve1", Amount{Memory: gibi, CPUs: 1, VMs: 1, Storage: map[string]uint64{"local-lvm": gibi, "nas": gibi}}, now)
		}, time.Second, 0, 0, Amount{Memory: 9 * gibi, CPUs: 5, VMs: 2, Storage: map[string]uint64{"local-lvm": 21 * gibi, "nas": gibi}}},
	} {
		t.Run(name, func(t *testing.T) {
			var b Book
			b.Reserve("a", "pve1", booked, now)
			tc.do(&b)
			got := reserved(&b, tc.at, tc.digest, tc.facts)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			if again := reserved(&b, tc.at, tc.digest, tc.facts); !cmp.Equal(got, again) {
				t.Errorf("once more it is %+v", again)
			}
		})
	}
}

func settleAfter(d time.Duration) func(*Book) {
	return func(b *Book) { b.Settle("a", now.Add(d)) }
}

// The node takes a VM once: when its making is answered for later, its numbers have had it for long.
func TestBookSettlesOnce(t *testing.T) {
	var b Book
	b.Reserve("a", "pve1", booked, now)
	b.Settle("a", now.Add(time.Second))
	b.Settle("a", now.Add(4*time.Second))
	if got := reserved(&b, 4*time.Second, 2*time.Second, 0); got.Memory != 0 {
		t.Errorf("%+v is reserved", got)
	}
}

// What is over is forgotten, not kept for ever.
func TestBookForgets(t *testing.T) {
	var b Book
	b.Reserve("a", "pve1", Amount{Memory: 1, VMs: 1}, now)
	b.Reserve("b", "gone", booked, now)
	b.Refuse("pve1", "full", now)
	b.Settle("a", now)
	reserved(&b, 5*time.Second-1, time.Second, 0)
	if len(b.entries) != 2 {
		t.Errorf("%d entries, want both: scores count them for 5 s", len(b.entries))
	}
	reserved(&b, 5*time.Second, time.Second, 0)
	if len(b.entries) != 1 {
		t.Errorf("%d entries, want that of the node that is gone", len(b.entries))
	}
	reserved(&b, 2*time.Minute-1, 0, 0)
	if len(b.entries) != 1 {
		t.Errorf("%d entries before 2 min are over", len(b.entries))
	}
	reserved(&b, 2*time.Minute, 0, 0)
	if len(b.entries) != 0 || len(b.refusals) != 0 {
		t.Errorf("%d entries and %d refusals are kept", len(b.entries), len(b.refusals))
	}
}

// What was placed in the last 5 s is known, whether the node has told of it or
// not.
func TestBookRecent(t *testing.T) {
	var b Book
	b.Reserve("a", "pve1", booked, now)
	b.Reserve("b", "pve1", booked, now.Add(time.Second))
	b.Settle("a", now)
	b.Settle("b", now)
	for at, want := range map[time.Duration]Amount{
		5*time.Second - 1: {Memory: 16 * gibi, CPUs: 8, VMs: 2}, 6*time.Second - 1: {Memory: 8 * gibi, CPUs: 4, VMs: 1}, 6 * time.Second: {},
	} {
		n := nodes(1)
		n[0].State.DigestAt, n[0].Recent = now.Add(time.Second), Amount{VMs: 99}
		b.Apply(n, now.Add(at))
		if diff := cmp.Diff(want, n[0].Recent); diff != "" {
			t.Errorf("after %s: %s", at, diff)
		}
		if n[0].Reserved.Memory != 0 {
			t.Errorf("after %s: %d bytes are reserved", at, n[0].Reserved.Memory)
		}
	}
}

func TestBookRefusals(t *testing.T) {
	var b Book
	b.Refuse("pve1", "memory", now)
	b.Refuse("pve1", "CPUs", now.Add(time.Second))
	b.Refuse("pve2", "storage", now)
	for at, want := range map[time.Duration]string{
		0: "CPUs", 10 * time.Second: "CPUs", 11*time.Second - 1: "CPUs",
	} {
		n := nodes(1)
		b.Apply(n, now.Add(at))
		if n[0].Refused != want {
			t.Errorf("after %s: %q, want %q", at, n[0].Refused, want)
		}
	}
	n := nodes(2)
	n[0].Refused = "of another time"
	b.Apply(n, now.Add(11*time.Second))
	if n[0].Refused != "" || n[1].Refused != "" {
		t.Errorf("after 11 s: %q and %q", n[0].Refused, n[1].Refused)
	}
}

// What is handed in is not changed, and may be changed.
func TestBookKeepsItsOwn(t *testing.T) {
	var b Book
	storage := map[string]uint64{"local-lvm": gibi}
	b.Reserve("a", "pve1", Amount{Storage: storage}, now)
	storage["local-lvm"] = 7
	n := nodes(1)
	b.Apply(n, now)
	n[0].Reserved.Storage["local-lvm"] = 9
	if got := reserved(&b, 0, 0, 0).Storage["local-lvm"]; got != gibi {
		t.Errorf("%d", got)
	}
}

// A VM that is under way counts for the policies of the next one.
func TestJoin(t *testing.T) {
	db := Want{Name: "db-1", Tags: []string{"db"}, Memory: gibi}
	s := Settings{Policies: []Policy{{
		Name: "db", Match: Match{Tags: []string{"db"}}, MaxVMsPerNode: 1, AntiAffinity: []Term{{Key: "tag", Operator: "In", Values: []string{"db"}, Hard: true}},
	}}}
	var b Book
	b.Reserve("a", "pve2", db.Amount("pve2"), now)
	b.Identify("a", db)
	b.Identify("unknown", db)
	b.Reserve("c", "pve1", Amount{VMs: 1}, now) // nobody tells which
	second := Want{Name: "db-2", Tags: []string{"db"}, Memory: gibi}
	look := func(what string, at time.Duration, vms []VM, want string) {
		t.Helper()
		c := Cluster{Nodes: nodes(3), VMs: vms}
		for i := range c.Nodes {
			c.Nodes[i].State.DigestAt = now.Add(at)
		}
		c.Nodes[0].Cordoned, c.Nodes[2].Cordoned = "cordoned", "cordoned"
		c.VMs = slices.Grow(c.VMs, 5)
		before := c.VMs
		b.Join(&c, now.Add(at))
		if before[:cap(before)][len(before)].Name != "" {
			t.Errorf("%s: what is behind somebody else's VMs is written over", what)
		}
		if n := c.Nodes[0].Reserved.VMs; (n == 1) != (at < takenWithin) {
			t.Errorf("%s: %d VMs are reserved besides", what, n)
		}
		d := Place(c, second, s, now.Add(at))
		if got := d.Rows[1]; len(got.Reasons) == 0 && want != "" || len(got.Reasons) > 0 && got.why() != want {
			t.Errorf("%s: %q, want %q", what, got.why(), want)
		}
		if len(c.VMs) > 1 {
			t.Errorf("%s: the VM is there %d times", what, len(c.VMs))
		}
	}
	refused := func(id string) string {
		return `VMs (has 1, policy "db" allows 1) and has VM ` + id + ` "db-1" (anti-affinity of policy "db": tag In db)`
	}
	made := []VM{{Node: 1, ID: 104, Name: "db-1", Tags: []string{"db"}}}
	look("under way", time.Second, nil, refused("0"))
	look("in the list already", time.Second, made, refused("104"))
	b.Settle("a", now.Add(time.Second))
	look("its memory is told, and it is not in the list yet", 10*time.Second, nil, refused("0"))
	look("then the list is to be believed", 11*time.Second, nil, "")
}

// What is reserved is what the filters ask for.
func TestAmount(t *testing.T) {
	w := Want{
		Memory: gibi, CPUs: 2, Disks: []Disk{{"local-lvm", "images", gibi}, {"local-lvm", "images", 2 * gibi}, {"nas", "snippets", 0}, {"", "images", 5}},
		Source: &Source{Nodes: map[string]Reach{"pve1": {How: OnDemand, Disks: []Disk{{"fast", "images", 3 * gibi}, {"local-lvm", "images", gibi}}}}},
	}
	want := Amount{Memory: gibi, CPUs: 2, VMs: 1, Storage: map[string]uint64{"local-lvm": 4 * gibi, "fast": 3 * gibi}}
	if diff := cmp.Diff(want, w.Amount("pve1")); diff != "" {
		t.Error(diff)
	}
	want.Storage = map[string]uint64{"local-lvm": 3 * gibi}
	if diff := cmp.Diff(want, w.Amount("pve2")); diff != "" {
		t.Error(diff)
	}
}
