package view

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func origin(n int) Origin {
	return Origin{Name: "pve" + string(rune('0'+n)), Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), 7946)}
}

// digestWire is an encoded digest. Different free memory makes it a different
// one with the same stamp.
func digestWire(t testing.TB, s Stamp, free uint64) []byte {
	t.Helper()
	wire, err := Digest{Incarnation: s.Incarnation, Sequence: s.Sequence, MemoryFree: free, Quorate: true}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func factsWire(t testing.TB, s Stamp, vms int) []byte {
	t.Helper()
	wire, err := Facts{Incarnation: s.Incarnation, Sequence: s.Sequence, VMs: vms}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	return wire
}

func merge(t testing.TB, v *View, now time.Time, r Report) News {
	t.Helper()
	news, err := v.Merge(now, r)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

// equal compares all that two views know, however it came.
func equal(a, b *View) string {
	return cmp.Diff(a.entries, b.entries, cmp.AllowUnexported(entry{}, value{}), cmpopts.EquateEmpty(),
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

// reports are random, of few origins and stamps, so that many collide: newer and
// older ones, equal ones with other ages, different ones with one stamp, halves.
func reports(t testing.TB, dice *rand.Rand, n int) []Report {
	out := make([]Report, n)
	for i := range out {
		stamp := Stamp{1 + dice.Uint64N(3), dice.Uint64N(3)}
		r := Report{Origin: origin(dice.IntN(3))}
		if dice.IntN(4) > 0 {
			r.Digest, r.DigestAge = digestWire(t, stamp, dice.Uint64N(2)), time.Duration(dice.IntN(4))*time.Second
		}
		if dice.IntN(4) > 0 {
			r.Facts, r.FactsAge = factsWire(t, stamp, dice.IntN(2)), time.Duration(dice.IntN(4))*time.Second
		}
		out[i] = r
	}
	return out
}

// TestMergeInAnyOrder is commutativity, associativity and idempotence.
func TestMergeInAnyOrder(t *testing.T) {
	dice := rand.New(rand.NewPCG(1, 2))
	for round := range 1000 {
		all := reports(t, dice, 1+dice.IntN(12))
		var a, b, parts View
		for _, r := range all {
			merge(t, &a, start, r)
		}
		again := slices.Concat(all, all[:dice.IntN(len(all))])
		dice.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
		for _, r := range again {
			merge(t, &b, start, r)
		}
		if diff := equal(&a, &b); diff != "" {
			t.Fatalf("round %d: %v, and twice in another order (-once +twice):\n%s", round, all, diff)
		}
		// Half of them are merged elsewhere first, and come as what is passed on.
		half := dice.IntN(len(all) + 1)
		var other View
		for _, r := range all[:half] {
			merge(t, &other, start, r)
		}
		for _, r := range slices.Concat(all[half:], other.Reports(start, time.Hour)) {
			merge(t, &parts, start, r)
		}
		if diff := equal(&a, &parts); diff != "" {
			t.Fatalf("round %d: %v, and by way of another (-direct +relayed):\n%s", round, all, diff)
		}
	}
}

// TestMergeNeverGoesBack compares what is known before and after each report.
func TestMergeNeverGoesBack(t *testing.T) {
	dice := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		var v View
		now := start
		for _, r := range reports(t, dice, 30) {
			before, _ := v.Node(r.Origin)
			now = now.Add(time.Duration(dice.IntN(3)) * time.Second)
			news := merge(t, &v, now, r)
			after, _ := v.Node(r.Origin)
			then, this := Stamp{before.Digest.Incarnation, before.Digest.Sequence}, Stamp{after.Digest.Incarnation, after.Digest.Sequence}
			if this.Compare(then) < 0 {
				t.Fatalf("digest went back from %v to %v", then, this)
			}
			if this == then && !before.DigestAt.IsZero() && before.Digest == after.Digest && after.DigestAt.After(before.DigestAt) {
				t.Fatalf("the same digest grew younger: %v, then %v", before.DigestAt, after.DigestAt)
			}
			thenFacts, thisFacts := Stamp{before.Facts.Incarnation, before.Facts.Sequence}, Stamp{after.Facts.Incarnation, after.Facts.Sequence}
			if thisFacts.Compare(thenFacts) < 0 {
				t.Fatalf("facts went back from %v to %v", thenFacts, thisFacts)
			}
			if want := (News{before.Digest != after.Digest, !cmp.Equal(before.Facts, after.Facts)}); news != want {
				t.Fatalf("news %v, but %+v became %+v", news, before, after)
			}
			if again := merge(t, &v, now, r); again != (News{}) {
				t.Fatalf("%+v is news twice", r)
			}
		}
	}
}

// TestMergeKeepsAges: what two paths bring later, with the ages they have then,
// is what came at once.
func TestMergeKeepsAges(t *testing.T) {
	said := Report{Origin: origin(1), Digest: digestWire(t, Stamp{1, 1}, 1), Facts: factsWire(t, Stamp{1, 2}, 1), FactsAge: 3 * time.Second}
	var first, second, third View
	merge(t, &first, start, said)
	for _, r := range first.Reports(start.Add(10*time.Second), time.Hour) {
		merge(t, &second, start.Add(10*time.Second), r)
	}
	for _, r := range second.Reports(start.Add(25*time.Second), time.Hour) {
		merge(t, &third, start.Add(25*time.Second), r)
	}
	n, known := third.Node(origin(1))
	if age, ok := n.DigestAge(start.Add(30 * time.Second)); !known || !ok || age != 30*time.Second {
		t.Errorf("after two others and 30 s the digest is %v old (%v)", age, ok)
	}
	if age, ok := n.FactsAge(start.Add(30 * time.Second)); !ok || age != 33*time.Second {
		t.Errorf("after two others and 30 s the facts are %v old (%v)", age, ok)
	}
	said.DigestAge = 0 // the very same value, fresh again: by whom?
	merge(t, &third, start.Add(30*time.Second), said)
	n, _ = third.Node(origin(1))
	if age, _ := n.DigestAge(start.Add(30 * time.Second)); age != 30*time.Second {
		t.Errorf("an old digest looks %v old when it is sent again", age)
	}
}

func TestMergeKeepsApartWhoClaimsAName(t *testing.T) {
	var v View
	right, wrong := origin(1), origin(1)
	wrong.Address = origin(2).Address
	merge(t, &v, start, Report{Origin: right, Digest: digestWire(t, Stamp{1, 1}, 1)})
	merge(t, &v, start, Report{Origin: wrong, Digest: digestWire(t, Stamp{9, 9}, 2)})
	if n, _ := v.Node(right); n.Digest.MemoryFree != 1 {
		t.Errorf("free memory %d is that of another agent", n.Digest.MemoryFree)
	}
}

// TestMergeOwnsWhatItKeeps: memberlist uses its buffers again.
func TestMergeOwnsWhatItKeeps(t *testing.T) {
	r := Report{Origin: origin(1), Digest: digestWire(t, Stamp{1, 1}, 1), Facts: factsWire(t, Stamp{1, 1}, 1)}
	want := Report{Origin: r.Origin, Digest: bytes.Clone(r.Digest), Facts: bytes.Clone(r.Facts)}
	var v View
	merge(t, &v, start, r)
	clear(r.Digest)
	clear(r.Facts)
	if diff := cmp.Diff([]Report{want}, v.Reports(start, time.Hour), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-said +passed on):\n%s", diff)
	}
}

func TestMergeLeavesOutWhatCannotBeRead(t *testing.T) {
	var v View
	merge(t, &v, start, Report{Origin: origin(1), Digest: digestWire(t, Stamp{1, 1}, 1)})
	for name, bad := range map[string][]byte{
		"empty":                 {},
		"garbage":               []byte("\xff\xff\xff"),
		"no incarnation":        {0x10, 0x07},
		"incarnation too great": append([]byte{0x08}, bytes.Repeat([]byte{0xff}, 9)...),
		"too long":              append(digestWire(t, Stamp{5, 1}, 1), bytes.Repeat([]byte{0x72, 0}, MaxDigest/2)...),
	} {
		news, err := v.Merge(start, Report{Origin: origin(1), Digest: bad, Facts: factsWire(t, Stamp{2, 1}, 7)})
		if !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: error %v", name, err)
		}
		if news.Digest {
			t.Errorf("%s: news", name)
		}
		n, _ := v.Node(origin(1))
		if n.Digest.Incarnation != 1 || n.Facts.VMs != 7 {
			t.Errorf("%s: %+v", name, n)
		}
	}
	if _, err := v.Merge(start, Report{Origin: origin(2), Facts: []byte{0xff}}); err == nil {
		t.Error("bad facts were taken")
	}
	if n, known := v.Node(origin(2)); known {
		t.Errorf("of bad facts alone a node became known: %+v", n)
	}
}

func TestReportsAndForget(t *testing.T) {
	var v View
	merge(t, &v, start, Report{Origin: origin(2), Digest: digestWire(t, Stamp{1, 1}, 1), Facts: factsWire(t, Stamp{1, 1}, 1)})
	merge(t, &v, start.Add(time.Minute), Report{Origin: origin(1), Digest: digestWire(t, Stamp{1, 1}, 1)})
	merge(t, &v, start.Add(time.Minute), Report{Origin: origin(2), Digest: digestWire(t, Stamp{1, 2}, 1)})
	names := func(oldest time.Duration) (out []string) {
		for _, r := range v.Reports(start.Add(2*time.Minute), oldest) {
			name := r.Name
			if r.Digest != nil {
				name += " digest"
			}
			if r.Facts != nil {
				name += " facts"
			}
			out = append(out, name)
		}
		return out
	}
	if diff := cmp.Diff([]string{"pve1 digest", "pve2 digest facts"}, names(2*time.Minute)); diff != "" {
		t.Errorf("all: %s", diff)
	}
	if diff := cmp.Diff([]string{"pve1 digest", "pve2 digest"}, names(time.Minute)); diff != "" {
		t.Errorf("the younger ones: %s", diff)
	}
	keep := func(o Origin) bool { return o == origin(1) }
	v.Forget(start.Add(2*time.Minute), time.Minute, keep)
	if len(names(time.Hour)) != 2 {
		t.Errorf("what is young enough was forgotten: %v", names(time.Hour))
	}
	v.Forget(start.Add(2*time.Minute), 30*time.Second, keep)
	if diff := cmp.Diff([]string{"pve1 digest"}, names(time.Hour)); diff != "" {
		t.Errorf("after forgetting: %s", diff)
	}
}

func TestUsable(t *testing.T) {
	quorate := Node{Digest: Digest{Quorate: true}, DigestAt: start}
	for name, c := range map[string]struct {
		change func(*Node)
		after  time.Duration
		want   bool
	}{
		"quorate":   {func(*Node) {}, Stale - 1, true},
		"stale":     {func(*Node) {}, Stale, false},
		"unknown":   {func(n *Node) { n.DigestAt = time.Time{} }, 0, false},
		"no quorum": {func(n *Node) { n.Digest.Quorate = false }, 0, false},
		"cordoned":  {func(n *Node) { n.Digest.Cordoned = true }, 0, false},
		"draining":  {func(n *Node) { n.Digest.Draining = true }, 0, false},
	} {
		n := quorate
		c.change(&n)
		if got := n.Usable(start.Add(c.after)); got != c.want {
			t.Errorf("%s: usable %v", name, got)
		}
	}
}
