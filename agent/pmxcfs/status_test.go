package pmxcfs

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestParseRecorded(t *testing.T) {
	t.Parallel()
	v, err := ParseVersion(".version", testdata(t, "version"))
	if err != nil {
		t.Fatal(err)
	}
	if v.StartTime != 1795331521 || v.ClInfo != 9 || v.VMList != 113 || v.Files["vzdump.cron"] != 9 || v.Files["storage.cfg"] != 1 {
		t.Errorf(".version: got %+v", v)
	}
	list, err := ParseVMList(".vmlist", testdata(t, "vmlist"))
	if err != nil {
		t.Fatal(err)
	}
	want := Guest{Node: "pve3", Type: TypeQEMU, Version: 53}
	if list.Version != 113 || len(list.Guests) != 10 || list.Guests[200] != want {
		t.Errorf(".vmlist: got %+v", list)
	}
	m, err := ParseMembers(".members", testdata(t, "members"))
	if err != nil {
		t.Fatal(err)
	}
	wantMembers := Members{Node: "pve1", Cluster: "pvelab", Quorate: true, Nodes: map[string]Member{
		"pve1": {Name: "pve1", ID: 1, Online: true, IP: "10.77.0.11"},
		"pve2": {Name: "pve2", ID: 2, Online: true, IP: "10.77.0.12"},
		"pve3": {Name: "pve3", ID: 3, Online: true, IP: "10.77.0.13"},
	}}
	if diff := cmp.Diff(wantMembers, m, cmpopts.IgnoreUnexported(Members{})); diff != "" {
		t.Errorf(".members (-want +got):\n%s", diff)
	}
}

// Every prefix of a file that is not the whole JSON value is an error that names the file.
func TestTruncated(t *testing.T) {
	t.Parallel()
	parsers := map[string]func(path string, raw []byte) error{
		"version": func(p string, raw []byte) error { _, err := ParseVersion(p, raw); return err },
		"vmlist":  func(p string, raw []byte) error { _, err := ParseVMList(p, raw); return err },
		"members": func(p string, raw []byte) error { _, err := ParseMembers(p, raw); return err },
	}
	for name, parse := range parsers {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := testdata(t, name)
			end := strings.LastIndexByte(string(raw), '}')
			for n := 0; n <= end; n++ {
				err := parse("/x/."+name, raw[:n])
				var format *FormatError
				if !errors.As(err, &format) || format.Path != "/x/."+name {
					t.Fatalf("first %d of %d bytes: got %v, want a FormatError with the path", n, end+1, err)
				}
			}
			if err := parse("/x/."+name, raw[:end+1]); err != nil {
				t.Errorf("all of it: %v", err)
			}
		})
	}
}

func TestParseGarbage(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		parse func(path string, raw []byte) error
		in    string
		want  string // part of the error, "" for none
	}{
		"version, not numbers":      {version, `{"starttime":"x"}`, `"starttime" is not a counter`},
		"version, no start":         {version, `{"vmlist":3}`, "no starttime"},
		"version, array":            {version, `[]`, "cannot unmarshal"},
		"version, zeros":            {version, "\x00\x00\x00", "invalid character"},
		"vmlist, no guests":         {vmlist, `{"version":3}`, ""},
		"vmlist, no version":        {vmlist, `{"ids":{}}`, "no version"},
		"vmlist, null":              {vmlist, `null`, "no version"},
		"vmlist, no node":           {vmlist, `{"version":3,"ids":{"100":{"type":"qemu"}}}`, `bad entry for guest "100"`},
		"vmlist, no type":           {vmlist, `{"version":3,"ids":{"100":{"node":"a"}}}`, `bad entry for guest "100"`},
		"vmlist, not a number":      {vmlist, `{"version":3,"ids":{"x":{"node":"a","type":"qemu"}}}`, `bad entry for guest "x"`},
		"vmlist, negative":          {vmlist, `{"version":3,"ids":{"-1":{"node":"a","type":"qemu"}}}`, `bad entry for guest "-1"`},
		"vmlist, two values":        {vmlist, `{"version":3}{"version":4}`, "after top-level value"},
		"members, no name":          {members, `{"version":3}`, "no nodename"},
		"members, wrong kind":       {members, `{"nodename":7}`, "cannot unmarshal"},
		"members, white space only": {members, " \n\n", "empty"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tt.parse("/etc/pve/file", []byte(tt.in))
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "/etc/pve/file") {
				t.Errorf("got %v, want the path and %q", err, tt.want)
			}
		})
	}
}

func version(p string, raw []byte) error { _, err := ParseVersion(p, raw); return err }
func vmlist(p string, raw []byte) error  { _, err := ParseVMList(p, raw); return err }
func members(p string, raw []byte) error { _, err := ParseMembers(p, raw); return err }

func TestTreeNotMounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, root := range []string{dir, dir + "/nothing", dir + "/file/x"} {
		if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(root).Version()
		if !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), root+": pmxcfs not mounted? .version missing") {
			t.Errorf("%s: got %v", root, err)
		}
	}
}

func TestTreeMembersWithoutCluster(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.write(".members", `{"nodename": "lone", "version": 0}`)
	m, err := Open(c.root).Members()
	if err != nil || m.Quorate || len(m.Nodes) != 0 {
		t.Errorf("corosync.conf is there, but nothing heard from corosync: got %+v, %v; want no quorum", m, err)
	}
	c.check(os.Remove(c.path("corosync.conf")))
	m, err = Open(c.root).Members()
	if err != nil || !m.Quorate || !m.Nodes["lone"].Online {
		t.Errorf("a node without a cluster: got %+v, %v; want quorum", m, err)
	}
}

func TestTreeConf(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve2", 120, string(testdata(t, "120.conf")))
	tree := Open(c.root)
	conf, err := tree.Conf("pve2", 120)
	if err != nil || conf.Name() != "linked120" {
		t.Fatalf("got %v, %v", conf, err)
	}
	path := c.path("nodes/pve1/qemu-server/120.conf")
	if _, err := tree.Conf("pve1", 120); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("on the wrong node: got %v, want fs.ErrNotExist with the path", err)
	}
	c.write("nodes/pve1/qemu-server/1.conf", strings.Repeat("x", maxFile+1))
	if _, err := tree.Conf("pve1", 1); err == nil || !strings.Contains(err.Error(), "1 MiB") {
		t.Errorf("too large: got %v", err)
	}
	c.write("nodes/pve1/qemu-server/2.conf", "name: x\n\x00\x00\n")
	var format *FormatError
	if _, err := tree.Conf("pve1", 2); !errors.As(err, &format) || !strings.Contains(err.Error(), "2.conf: not a valid file: zero byte at offset 8") {
		t.Errorf("zero bytes: got %v", err)
	}
	if _, err := tree.Conf("pve1", 3); !missing(err) {
		t.Errorf("no file: got %v", err)
	}
}
