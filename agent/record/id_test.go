package record

import (
	"strings"
	"testing"
)

func TestParseID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]ID{
		"10000-1a2b3c4d": {10000, "1a2b3c4d"}, "100": {VMID: 100}, "999999999": {VMID: 999999999}, "100-00000000": {100, "00000000"},
	} {
		id, err := ParseID(in)
		if err != nil || id != want || id.String() != in {
			t.Errorf("%q: got %+v (%s), %v", in, id, id, err)
		}
	}
	for _, in := range []string{
		"", "abc", "99", "0", "pve1:100", "100 ", " 100", "1000000000", "99999999999999999999999", "-100", "+100", "0100", "1e3", "100.0",
		"100-", "-1a2b3c4d", "100-1A2B3C4D", "100-1a2b3c4", "100-1a2b3c4d5", "100-1a2b3c4g", "100-1a2b-3c4d", "100_1a2b3c4d", "100\n", "１００",
		strings.Repeat("9", 10000),
	} {
		id, err := ParseID(in)
		if err == nil {
			t.Errorf("%q: got %+v, want an error", in, id)
		} else if len(err.Error()) > 250 || !strings.Contains(err.Error(), "not a vm id: ") {
			t.Errorf("%.20q: error is %v", in, err)
		}
	}
}

func TestNewID(t *testing.T) {
	t.Parallel()
	for uuid, want := range map[string]string{
		"880D09F7-F1FC-44C7-A077-EB1C4EDB01DA": "100-880d09f7", "880d09f7": "100-880d09f7", "": "100", "880d09f": "100", "not a uuid": "100",
	} {
		if got := NewID(100, uuid).String(); got != want {
			t.Errorf("%q: got %s, want %s", uuid, got, want)
		}
	}
}

func TestIDFits(t *testing.T) {
	t.Parallel()
	const uuid = "880D09F7-f1fc-44c7-a077-eb1c4edb01da"
	for in, want := range map[string]bool{"100-880d09f7": true, "100": true, "101-880d09f7": false, "101": false, "100-880d09f8": false} {
		id, err := ParseID(in)
		check(t, err)
		if got := id.Fits(100, uuid); got != want {
			t.Errorf("%s: got %v", in, got)
		}
	}
	id, err := ParseID("100-880d09f7")
	check(t, err)
	if id.Fits(100, "") {
		t.Error("a VM without a uuid is not the one that had one")
	}
}
