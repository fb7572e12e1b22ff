package view

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

// extreme sets all numbers of a struct to the greatest there is, and all flags.
func extreme(d *Digest) {
	for v, i := reflect.ValueOf(d).Elem(), 0; i < v.NumField(); i++ {
		switch f := v.Field(i); f.Kind() {
		case reflect.Bool:
			f.SetBool(true)
		default:
			f.SetUint(math.MaxUint64 >> (64 - f.Type().Bits()))
		}
	}
	d.Incarnation, d.Sequence = MaxIncarnation, MaxIncarnation
}

func TestDigestTravels(t *testing.T) {
	var greatest Digest
	extreme(&greatest)
	usual := Digest{
		Incarnation: 1767323045123, Sequence: 4711, MemoryFree: 32 << 30, MemoryTotal: 64 << 30, MemoryPromised: 48<<30 + 12345,
		VCPUs: 32, VCPUsPromised: 70, Load: 1234, PSICPU: 312, PSIMemory: 1, PSIIO: 9999, Quorate: true,
		MemoryReserved: 2105592192,
	}
	for name, want := range map[string]Digest{"least": {Incarnation: 1}, "usual": usual, "greatest": greatest} {
		wire, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", name, len(wire))
		if limit := map[string]int{"greatest": MaxDigest * 7 / 8}[name]; len(wire) > max(limit, MaxDigest*3/5) {
			t.Errorf("%s: %d bytes leave no room for what later versions add", name, len(wire))
		}
		var got Digest
		if err := got.UnmarshalBinary(wire); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", name, diff)
		}
	}
}

// TestOnTheWire pins the bytes: nodes of other versions read them.
func TestOnTheWire(t *testing.T) {
	digest, err := Digest{
		Incarnation: 1, Sequence: 2, MemoryFree: 3, MemoryTotal: 4, MemoryPromised: 5, VCPUs: 6, VCPUsPromised: 7, Load: 8,
		PSICPU: 9, PSIMemory: 10, PSIIO: 11, Cordoned: true, Draining: true, MemoryReserved: 12,
	}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	const wantDigest = "\x08\x01\x10\x02\x18\x03\x20\x04\x28\x05\x30\x06\x38\x07\x40\x08\x48\x09\x50\x0a\x58\x0b\x60\x05\x68\x0c"
	if diff := cmp.Diff(wantDigest, string(digest)); diff != "" {
		t.Errorf("digest (-want +got):\n%s", diff)
	}
	facts, err := Facts{
		Incarnation: 1, Sequence: 2, PVEVersion: "9.1",
		Storages:  []Storage{{Name: "s", Type: "dir", Total: 9, Free: 8, Content: []string{"iso"}, Shared: true}},
		Templates: []Template{{VMID: 100, Name: "t"}}, Bridges: []string{"b"}, Tags: map[string]int{"y": 2, "x": 1}, VMs: 5, Running: 4,
	}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	const wantFacts = "\x08\x01\x10\x02\x1a\x039.1" + "\x22\x13\x0a\x01s\x12\x03dir\x18\x09\x20\x08\x2a\x03iso\x30\x01" +
		"\x2a\x05\x08\x64\x12\x01t" + "\x32\x01b" + "\x3a\x05\x0a\x01x\x10\x01" + "\x3a\x05\x0a\x01y\x10\x02" + "\x40\x05\x48\x04"
	if diff := cmp.Diff(wantFacts, string(facts)); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
	message, err := Encode(Report{
		Origin: Origin{"n", netip.MustParseAddrPort("10.0.0.1:258")},
		Digest: []byte("D"), DigestAge: time.Second, Facts: []byte("F"), FactsAge: 2 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	const wantMessage = "\x01\x0a\x1b" + "\x0a\x01n" + "\x12\x06\x0a\x00\x00\x01\x02\x01" + "\x1a\x01F\x25\x02\x00\x00\x00" + "\x2a\x01D\x35\xe8\x03\x00\x00"
	if diff := cmp.Diff(wantMessage, string(message)); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	wantRenewed := wantMessage[:len(wantMessage)-4] + "\xd0\x07\x00\x00"
	if diff := cmp.Diff(wantRenewed, string(Renew(message, 2*time.Second))); diff != "" {
		t.Errorf("renewed (-want +got):\n%s", diff)
	}
}

func facts() Facts {
	return Facts{
		Incarnation: 1, Sequence: 2, PVEVersion: "9.1.2",
		Storages:  []Storage{{Name: "local", Type: "dir", Total: 1 << 40, Free: 1 << 39, Content: []string{"iso", "snippets"}}, {Shared: true}},
		Templates: []Template{{VMID: 9000, Name: "debian"}, {}},
		Bridges:   []string{"vmbr0", ""}, Tags: map[string]int{"web": 3, "": 1, "none": 0}, VMs: 30, Running: 29,
	}
}

func TestFactsTravel(t *testing.T) {
	for name, want := range map[string]Facts{"least": {Incarnation: 1}, "many": facts()} {
		wire, err := want.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Facts
		if err := got.UnmarshalBinary(wire); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", name, diff)
		}
	}
}

// TestFactsLimit: a great node fits, and what does not is refused on both sides.
func TestFactsLimit(t *testing.T) {
	great := facts()
	for i := range 1000 {
		great.Templates = append(great.Templates, Template{VMID: 100000 + i, Name: fmt.Sprintf("template-of-somebody-%04d", i)})
		great.Tags[fmt.Sprintf("customer-%05d", i)] = i
	}
	wire, err := great.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("1000 templates and 1000 tags: %d bytes", len(wire))
	for i := range 1000 {
		great.Bridges = append(great.Bridges, fmt.Sprintf("bridge%04d", i))
	}
	if wire, err := great.MarshalBinary(); !errors.Is(err, ErrEncoding) {
		t.Errorf("%d bytes were encoded, error %v", len(wire), err)
	}
	exact := append(wire, appendBytes(nil, fieldBridge, bytes.Repeat([]byte("b"), MaxFacts-len(wire)-3))...)
	if len(exact) != MaxFacts {
		t.Fatalf("%d bytes", len(exact))
	}
	var got Facts
	if err := got.UnmarshalBinary(exact); err != nil {
		t.Errorf("%d bytes: %v", len(exact), err)
	}
	if err := got.UnmarshalBinary(append(exact, 0x40, 1)); !errors.Is(err, ErrEncoding) {
		t.Errorf("more than the limit: error %v", err)
	}
}

// TestUnknownFieldsArePassedOn: a node that is older than who speaks and who
// listens is no obstacle.
func TestUnknownFieldsArePassedOn(t *testing.T) {
	future := protowire.AppendString(protowire.AppendTag(nil, 60, protowire.BytesType), "from the future")
	digest := append(digestWire(t, Stamp{1, 1}, 1), future...)
	facts := append(factsWire(t, Stamp{1, 1}, 1), future...)
	message, err := Encode(Report{Origin: origin(1), Digest: digest, Facts: facts})
	if err != nil {
		t.Fatal(err)
	}
	message = append(message, future...) // of the message itself
	got, err := Decode(message)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	var v View
	merge(t, &v, start, got[0])
	passed := v.Reports(start, time.Hour)
	if len(passed) != 1 || !bytes.Equal(passed[0].Digest, digest) || !bytes.Equal(passed[0].Facts, facts) {
		t.Errorf("passed on as %q", passed)
	}
	if n, _ := v.Node(origin(1)); n.Digest.MemoryFree != 1 || n.Facts.VMs != 1 {
		t.Errorf("read as %+v", n)
	}
}

func TestDecodeGoesOnAfterABadReport(t *testing.T) {
	good := Report{Origin: origin(1), Digest: digestWire(t, Stamp{1, 1}, 1), DigestAge: 7 * time.Millisecond}
	first, err := Encode(good)
	if err != nil {
		t.Fatal(err)
	}
	second := origin(2)
	last, err := Encode(Report{Origin: second})
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"garbage":       []byte("\xff"),
		"no name":       appendBytes(nil, fieldAddress, []byte{10, 0, 0, 1, 1, 2}),
		"no address":    appendText(nil, fieldName, "pve3"),
		"bad address":   appendBytes(appendText(nil, fieldName, "pve3"), fieldAddress, []byte{1, 2, 3}),
		"name too long": appendBytes(appendText(nil, fieldName, strings.Repeat("n", 256)), fieldAddress, []byte{10, 0, 0, 1, 1, 2}),
		"not UTF-8":     appendBytes(appendText(nil, fieldName, "\xff"), fieldAddress, []byte{10, 0, 0, 1, 1, 2}),
		"bad type":      appendNumber(nil, fieldDigest, 7),
	} {
		message := append(appendBytes(bytes.Clone(first), fieldReport, bad), last[1:]...)
		got, err := Decode(message)
		if !errors.Is(err, ErrEncoding) {
			t.Errorf("%s: error %v", name, err)
		}
		if len(got) != 2 || got[0].Name != "pve1" || got[0].DigestAge != 7*time.Millisecond || got[1].Origin != second {
			t.Errorf("%s: decoded %v", name, got)
		}
	}
	for name, message := range map[string][]byte{"nothing": nil, "another version": append([]byte{2}, first[1:]...), "cut": first[:len(first)-1]} {
		if got, err := Decode(message); !errors.Is(err, ErrEncoding) || len(got) > 0 {
			t.Errorf("%s: %v, error %v", name, got, err)
		}
	}
	if _, err := Encode(Report{}); !errors.Is(err, ErrEncoding) {
		t.Errorf("a report of nobody: error %v", err)
	}
}

func TestReportStamp(t *testing.T) {
	r := Report{Digest: digestWire(t, Stamp{3, 1}, 1), Facts: factsWire(t, Stamp{3, 2}, 1)}
	if got := r.Stamp(); got != (Stamp{3, 2}) {
		t.Errorf("%v", got)
	}
	if got := (Report{Digest: []byte{0xff}}).Stamp(); got != (Stamp{}) {
		t.Errorf("of garbage: %v", got)
	}
}

func TestRefusedToEncode(t *testing.T) {
	for _, s := range []Stamp{{}, {MaxIncarnation + 1, 1}, {1, MaxIncarnation + 1}} {
		if _, err := (Digest{Incarnation: s.Incarnation, Sequence: s.Sequence}).MarshalBinary(); !errors.Is(err, ErrEncoding) {
			t.Errorf("digest with %v: error %v", s, err)
		}
		if _, err := (Facts{Incarnation: s.Incarnation, Sequence: s.Sequence}).MarshalBinary(); !errors.Is(err, ErrEncoding) {
			t.Errorf("facts with %v: error %v", s, err)
		}
	}
	f := Facts{Incarnation: 1, VMs: -1, Running: math.MaxInt}
	wire, err := f.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.UnmarshalBinary(wire); err != nil || f.VMs != 0 || f.Running != math.MaxInt32 {
		t.Errorf("counts came as %+v, error %v", f, err)
	}
}

func TestFieldsRefused(t *testing.T) {
	stamp := []byte{0x08, 1}
	for name, wire := range map[string][]byte{
		"vcpus out of range": appendNumber(bytes.Clone(stamp), fieldVCPUs, math.MaxUint32+1),
		"text for a number":  appendText(bytes.Clone(stamp), fieldMemoryFree, "much"),
		"text for flags":     appendText(bytes.Clone(stamp), fieldFlags, "all"),
	} {
		d := Digest{Incarnation: 7}
		if err := d.UnmarshalBinary(wire); !errors.Is(err, ErrEncoding) || d != (Digest{Incarnation: 7}) {
			t.Errorf("%s: %+v, error %v", name, d, err)
		}
	}
	for name, wire := range map[string][]byte{
		"too many VMs":       appendNumber(bytes.Clone(stamp), fieldVMs, math.MaxInt32+1),
		"number for text":    appendNumber(bytes.Clone(stamp), fieldPVEVersion, 9),
		"bad storage":        appendBytes(bytes.Clone(stamp), fieldStorage, []byte{0xff}),
		"bad template":       appendBytes(bytes.Clone(stamp), fieldTemplate, appendText(nil, fieldTemplateVMID, "x")),
		"bad tag":            appendBytes(bytes.Clone(stamp), fieldTag, appendText(nil, fieldTagCount, "x")),
		"bridge of no text":  appendBytes(bytes.Clone(stamp), fieldBridge, []byte{0xff}),
		"shared of no truth": appendBytes(bytes.Clone(stamp), fieldStorage, appendText(nil, fieldStorageShared, "x")),
	} {
		f := Facts{Incarnation: 7}
		if err := f.UnmarshalBinary(wire); !errors.Is(err, ErrEncoding) || !cmp.Equal(f, Facts{Incarnation: 7}) {
			t.Errorf("%s: %+v, error %v", name, f, err)
		}
	}
}

func TestNoticeable(t *testing.T) {
	told := Digest{
		Incarnation: 1, MemoryFree: 50 << 30, MemoryTotal: 100 << 30, MemoryPromised: 10 << 30,
		VCPUs: 40, VCPUsPromised: 10, Load: 1000, PSICPU: 1000, PSIMemory: 1000, PSIIO: 1000, Quorate: true,
	}
	for name, c := range map[string]struct {
		change func(*Digest)
		want   bool
	}{
		"nothing":           {func(*Digest) {}, false},
		"stamp":             {func(d *Digest) { d.Incarnation, d.Sequence = 9, 9 }, false},
		"quorum":            {func(d *Digest) { d.Quorate = false }, true},
		"cordoned":          {func(d *Digest) { d.Cordoned = true }, true},
		"draining":          {func(d *Digest) { d.Draining = true }, true},
		"more memory":       {func(d *Digest) { d.MemoryTotal++ }, true},
		"more CPUs":         {func(d *Digest) { d.VCPUs++ }, true},
		"4.9 % free":        {func(d *Digest) { d.MemoryFree += 49 << 30 / 10 }, false},
		"5 % free":          {func(d *Digest) { d.MemoryFree -= 5 << 30 }, true},
		"5 % promised":      {func(d *Digest) { d.MemoryPromised += 5 << 30 }, true},
		"5 % reserved":      {func(d *Digest) { d.MemoryReserved += 5 << 30 }, true},
		"1 of 40 vCPUs":     {func(d *Digest) { d.VCPUsPromised++ }, false},
		"2 of 40 vCPUs":     {func(d *Digest) { d.VCPUsPromised += 2 }, true},
		"load of 1.9 of 40": {func(d *Digest) { d.Load += 190 }, false},
		"load of 2 of 40":   {func(d *Digest) { d.Load -= 200 }, true},
		"5 % CPU pressure":  {func(d *Digest) { d.PSICPU += 500 }, true},
		"4 % IO pressure":   {func(d *Digest) { d.PSIIO += 400 }, false},
		"5 % mem. pressure": {func(d *Digest) { d.PSIMemory -= 500 }, true},
	} {
		now := told
		c.change(&now)
		if got := now.Noticeable(told); got != c.want {
			t.Errorf("%s: noticeable %v", name, got)
		}
	}
	if (Digest{}).Noticeable(Digest{}) {
		t.Error("nothing at all is noticeable")
	}
}

func FuzzDecode(f *testing.F) {
	good, err := Encode(Report{Origin: origin(1), Digest: digestWire(f, Stamp{1, 1}, 1), Facts: factsWire(f, Stamp{1, 1}, 1)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, message []byte) {
		got, _ := Decode(message)
		var once, twice View
		for _, r := range got {
			_, _ = once.Merge(start, r)
		}
		again, err := Encode(once.Reports(start, 1<<62)...)
		if err != nil {
			t.Fatalf("decoded, but not encoded again: %v", err)
		}
		got, err = Decode(again)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range got {
			if _, err := twice.Merge(start, r); err != nil {
				t.Fatal(err)
			}
		}
		if diff := equal(&once, &twice); diff != "" {
			t.Errorf("(-once +twice):\n%s", diff)
		}
	})
}
