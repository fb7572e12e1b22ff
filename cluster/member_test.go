package cluster

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
)

func member() Member {
	return Member{
		Name:     "pve1",
		Address:  netip.MustParseAddrPort("192.0.2.1:9443"),
		Version:  "0.1.0",
		Protocol: Protocols{Min: 1, Max: 3},
	}
}

func equal(a, b Member) string {
	return cmp.Diff(a, b, cmp.AllowUnexported(Member{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }))
}

func TestMemberTravels(t *testing.T) {
	longest := member()
	longest.Name = strings.Repeat("n", 63)
	longest.Address = netip.MustParseAddrPort("[2001:db8:1111:2222:3333:4444:5555:6666]:65535")
	longest.Version = "10.20.30~rc1+git1234567-dirty"
	longest.Protocol = Protocols{Min: 1<<32 - 1, Max: 1<<32 - 1}
	zoned := member()
	zoned.Address = netip.MustParseAddrPort("[fe80::1%vmbr0]:9443")
	for name, want := range map[string]Member{"usual": member(), "longest": longest, "zone": zoned} {
		t.Run(name, func(t *testing.T) {
			data, err := want.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			if len(data) > MaxMetadata/2 {
				t.Errorf("%d bytes leave no room for what later versions add", len(data))
			}
			var got Member
			if err := got.UnmarshalBinary(data); err != nil {
				t.Fatal(err)
			}
			if diff := equal(want, got); diff != "" {
				t.Errorf("(-sent +received):\n%s", diff)
			}
		})
	}
}

// TestMemberOnTheWire pins the bytes: nodes of other versions read them.
func TestMemberOnTheWire(t *testing.T) {
	const want = "\x0a\x04pve1" + "\x12\x0e192.0.2.1:9443" + "\x1a\x050.1.0" + "\x20\x01" + "\x28\x03"
	got, err := member().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMemberKeepsWhatItDoesNotKnow(t *testing.T) {
	sent, err := member().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	sent = protowire.AppendTag(sent, 9, protowire.BytesType)
	sent = protowire.AppendString(sent, "from the future")
	sent = protowire.AppendTag(sent, 900, protowire.VarintType)
	sent = protowire.AppendVarint(sent, 7)

	var m Member
	if err := m.UnmarshalBinary(sent); err != nil {
		t.Fatal(err)
	}
	again, err := m.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(sent, again) {
		t.Errorf("passed on as\n%q, was\n%q", again, sent)
	}
}

func TestMemberRefused(t *testing.T) {
	for name, change := range map[string]func(*Member){
		"no name":         func(m *Member) { m.Name = "" },
		"garbled name":    func(m *Member) { m.Name = "\xff" },
		"no address":      func(m *Member) { m.Address = netip.AddrPort{} },
		"any address":     func(m *Member) { m.Address = netip.MustParseAddrPort("0.0.0.0:9443") },
		"no port":         func(m *Member) { m.Address = netip.MustParseAddrPort("192.0.2.1:0") },
		"garbled version": func(m *Member) { m.Version = "\xff" },
		"no protocol":     func(m *Member) { m.Protocol = Protocols{} },
		"empty range":     func(m *Member) { m.Protocol = Protocols{Min: 3, Max: 2} },
		"too long":        func(m *Member) { m.Version = strings.Repeat("v", MaxMetadata) },
	} {
		t.Run(name, func(t *testing.T) {
			m := member()
			change(&m)
			if data, err := m.MarshalBinary(); !errors.Is(err, ErrMetadata) {
				t.Errorf("encoded as %q, error %v", data, err)
			}
		})
	}
}

func TestMetadataRefused(t *testing.T) {
	good, err := member().MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	field := func(number protowire.Number, text string) []byte {
		return protowire.AppendString(protowire.AppendTag(bytes.Clone(good), number, protowire.BytesType), text)
	}
	number := func(number protowire.Number, n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(bytes.Clone(good), number, protowire.VarintType), n)
	}
	for name, data := range map[string][]byte{
		"nothing":               nil,
		"garbage":               []byte("\xff\xff\xff\xff"),
		"half of it":            good[:len(good)/2],
		"address of words":      field(fieldAddress, "pve1:9443"),
		"number for a name":     number(fieldName, 1),
		"text for a protocol":   field(fieldProtocolMax, "3"),
		"protocol out of range": number(fieldProtocolMax, 1<<32+3),
		"too long":              field(9, strings.Repeat("x", MaxMetadata)),
	} {
		t.Run(name, func(t *testing.T) {
			got := member()
			if err := got.UnmarshalBinary(data); !errors.Is(err, ErrMetadata) {
				t.Errorf("decoded as %+v, error %v", got, err)
			}
			if diff := equal(member(), got); diff != "" {
				t.Errorf("member changed although the metadata was refused:\n%s", diff)
			}
		})
	}
}

func TestProtocolsCommon(t *testing.T) {
	for _, c := range []struct {
		a, b Protocols
		want uint32
		ok   bool
	}{
		{Protocols{1, 1}, Protocols{1, 1}, 1, true},
		{Protocols{1, 2}, Protocols{2, 3}, 2, true},
		{Protocols{1, 9}, Protocols{2, 3}, 3, true},
		{Protocols{1, 2}, Protocols{3, 4}, 2, false},
	} {
		for _, pair := range [][2]Protocols{{c.a, c.b}, {c.b, c.a}} {
			got, ok := pair[0].Common(pair[1])
			if ok != c.ok || (ok && got != c.want) {
				t.Errorf("%v and %v: %d, %v; want %d, %v", pair[0], pair[1], got, ok, c.want, c.ok)
			}
		}
	}
}

func FuzzMember(f *testing.F) {
	good, err := member().MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var m, again Member
		if m.UnmarshalBinary(data) != nil {
			return
		}
		sent, err := m.MarshalBinary()
		if err != nil {
			if len(data) < MaxMetadata/2 {
				t.Fatalf("decoded, but not encoded again: %v", err)
			}
			return // it came in a shorter form than ours, and ours is too long
		}
		if err := again.UnmarshalBinary(sent); err != nil {
			t.Fatal(err)
		}
		if diff := equal(m, again); diff != "" {
			t.Errorf("(-once +twice):\n%s", diff)
		}
	})
}
