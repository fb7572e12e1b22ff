package pmxcfs

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePools(t *testing.T) {
	const cfg = "user:root@pam:1:0:::root@x::\n\npool:team-b:A comment%3A:100,101:local:\npool:team-a/web::::\n pool:late:\npool::::\npool:x::101, 103,104x:\nacl:1:/pool/other:x@pve:PVEAdmin:\n"
	want := Pools{Names: []string{"late", "team-a/web", "team-b", "x"}, Of: map[int]string{100: "team-b", 101: "team-b", 103: "x"}}
	if diff := cmp.Diff(want, ParsePools([]byte(cfg))); diff != "" {
		t.Errorf("pools (-want +got):\n%s", diff)
	}
	if got := ParsePools(nil); len(got.Names) != 0 {
		t.Errorf("pools %v of nothing", got)
	}
}

func TestPoolsWithoutTheFile(t *testing.T) {
	tree := Open(t.TempDir())
	if got, err := tree.Pools(); err == nil && len(got) != 0 {
		t.Errorf("pools %v, err %v", got, err)
	}
}
