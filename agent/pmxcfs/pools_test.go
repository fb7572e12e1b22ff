package pmxcfs

import (
	"slices"
	"testing"
)

func TestParsePools(t *testing.T) {
	const cfg = "user:root@pam:1:0:::root@x::\n\npool:team-b:A comment%3A:100,101:local:\npool:team-a/web::::\n pool:late:\npool::::\nacl:1:/pool/other:x@pve:PVEAdmin:\n"
	if got, want := ParsePools([]byte(cfg)), []string{"late", "team-a/web", "team-b"}; !slices.Equal(got, want) {
		t.Errorf("pools %v, want %v", got, want)
	}
	if got := ParsePools(nil); len(got) != 0 {
		t.Errorf("pools %v of nothing", got)
	}
}

func TestPoolsWithoutTheFile(t *testing.T) {
	tree := Open(t.TempDir())
	if got, err := tree.Pools(); err == nil && len(got) != 0 {
		t.Errorf("pools %v, err %v", got, err)
	}
}
