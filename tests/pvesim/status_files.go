package pvesim

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func stampOf(fi fs.FileInfo) stamp {
	s := stamp{mtime: fi.ModTime(), size: fi.Size()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}

// lockedPublish writes .vmlist and then .version: who reads the counter of a
// change finds the change.
func (t *tree) lockedPublish() error {
	errs := []error{
		t.lockedStatus(filepath.Join(t.root, ".vmlist"), vmlistText(&t.shown)),
		t.lockedStatus(filepath.Join(t.root, ".version"), t.versionText(&t.shown, t.start)),
	}
	for _, node := range t.nodes {
		if v := t.views[node]; v.lag > 0 && v.frozen == nil {
			if v.behind == nil {
				v.behind = t.clone()
			}
			t.lockedLate(node)
		}
		errs = append(errs, t.lockedShow(node))
	}
	return errors.Join(errs...)
}

// lockedStatus writes a status file, if it is not what it says already.
func (t *tree) lockedStatus(path string, text []byte) error {
	if t.status[path] == string(text) {
		return nil
	}
	if err := t.lockedReplace(path, text, 0o440); err != nil {
		return err
	}
	t.status[path] = string(text)
	return nil
}

func vmlistText(s *shown) []byte {
	var b strings.Builder
	if len(s.guests) == 0 {
		fmt.Fprintf(&b, "{\n\"version\": %d\n\n}\n", s.vmlist)
		return []byte(b.String())
	}
	fmt.Fprintf(&b, "{\n\"version\": %d,\n\"ids\": {\n", s.vmlist)
	sep := ""
	for _, id := range slices.Sorted(maps.Keys(s.guests)) {
		g := s.guests[id]
		fmt.Fprintf(&b, "%s\"%d\": { \"node\": \"%s\", \"type\": \"%s\", \"version\": %d }", sep, id, g.node, g.kind, g.version)
		sep = ",\n"
	}
	b.WriteString("}\n\n}\n")
	return []byte(b.String())
}

func (t *tree) versionText(s *shown, start int64) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"starttime\": %d,\n\"clinfo\": %d,\n\"vmlist\": %d", start, t.clinfo, s.vmlist)
	for _, f := range tracked {
		fmt.Fprintf(&b, ",\n\"%s\": %d", f, s.files[f])
	}
	b.WriteString(",\n\"kvstore\": {\n")
	for i, n := range t.nodes {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, "\"%s\": {\n\"tasklist\": %d}\n", n, s.files["tasklist/"+n])
	}
	b.WriteString("}\n}\n")
	return []byte(b.String())
}

// lockedMembers writes each node's .members: they differ in "nodename", and
// in "quorate" and "online" when the cluster is split.
func (t *tree) lockedMembers() error {
	for _, node := range t.nodes {
		if err := t.lockedReplace(filepath.Join(t.own[node], ".members"), t.membersText(node), 0o440); err != nil {
			return err
		}
	}
	return t.lockedReplace(filepath.Join(t.root, ".members"), t.membersText(t.nodes[0]), 0o440)
}

func (t *tree) membersText(self string) []byte {
	v := t.views[self]
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"nodename\": \"%s\",\n\"version\": %d,\n", self, t.clinfo)
	fmt.Fprintf(&b, "\"cluster\": { \"name\": \"%s\", \"version\": %d, \"nodes\": %d, \"quorate\": %d },\n",
		ClusterName, len(t.nodes), len(t.nodes), bit(v.quorate))
	b.WriteString("\"nodelist\": {\n")
	for i, n := range t.nodes {
		end := ",\n"
		if i == len(t.nodes)-1 {
			end = "\n"
		}
		fmt.Fprintf(&b, "  \"%s\": { \"id\": %d, \"online\": %d, \"ip\": \"%s\"}%s", n, i+1, bit(slices.Contains(v.members, n)), t.ips[i], end)
	}
	b.WriteString("  }\n}\n")
	return []byte(b.String())
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}
