package pmxcfs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// vmlistOf is a .vmlist as pmxcfs writes it.
func vmlistOf(guests int) []byte {
	var b strings.Builder
	b.WriteString("{\n\"version\": 113,\n\"ids\": {\n")
	for i := range guests {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, `"%d": { "node": "pve%d", "type": "qemu", "version": %d }`, 100+i, i%3, i)
	}
	b.WriteString("}\n\n}\n")
	return []byte(b.String())
}

// What pmxcfs writes takes the quick way.
func TestScanVMList(t *testing.T) {
	t.Parallel()
	for name, raw := range map[string][]byte{
		"recorded": testdata(t, "vmlist"), "no guests": []byte("{\n\"version\": 7\n\n}\n"), "a thousand": vmlistOf(1000),
	} {
		if _, ok := scanVMList(raw); !ok {
			t.Errorf("%s: not understood", name)
		}
	}
	list, _ := scanVMList(vmlistOf(1000))
	if list.Version != 113 || len(list.Guests) != 1000 || list.Guests[1099] != (Guest{Node: "pve0", Type: TypeQEMU, Version: 999}) {
		t.Errorf("got version %d, %d guests, %+v", list.Version, len(list.Guests), list.Guests[1099])
	}
}

// Wherever the quick way has an answer, it is that of encoding/json.
func FuzzScanVMList(f *testing.F) {
	f.Add(testdata(f, "vmlist"))
	f.Add(vmlistOf(3))
	for _, s := range []string{
		`{"version":1}`, `{"version":1,"ids":{}}`, `{"version":01}`, `{"version":1,"ids":{"0":{"node":"a","type":"b","version":1}}}`,
		`{"version":1,"ids":{"1":{"node":"a","type":"b","version":1},"1":{"node":"c","type":"b","version":1}}}`,
		`{"version":1,"ids":{"01":{"node":"a","type":"b","version":1},}}`, `{"version":1}x`, `{"version":18446744073709551615}`,
		`{"version":1,"ids":{"1":{"node":"\u0061","type":"b","version":1}}}`, `{"version":1,"ids":{"1":{"node":"","type":"b","version":1}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		quick, ok := scanVMList(raw)
		if !ok {
			return
		}
		// With a key that is not expected there, the same goes the long way.
		slow, err := ParseVMList("x", append([]byte(`{"unusual":0,`), raw[strings.IndexByte(string(raw), '{')+1:]...))
		if err != nil {
			t.Fatalf("the quick way takes what is an error: %v", err)
		}
		if diff := cmp.Diff(slow, quick); diff != "" {
			t.Fatalf("(-slow +quick):\n%s", diff)
		}
	})
}

func BenchmarkParseVMList(b *testing.B) {
	raw := vmlistOf(1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseVMList("x", raw); err != nil {
			b.Fatal(err)
		}
	}
}
