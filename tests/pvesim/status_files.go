package pvesim

import (
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
	if err := t.lockedReplace(filepath.Join(t.root, ".vmlist"), t.vmlistText(), 0o440); err != nil {
		return err
	}
	return t.lockedReplace(filepath.Join(t.root, ".version"), t.versionText(), 0o440)
}

func (t *tree) vmlistText() []byte {
	var b strings.Builder
	if len(t.guests) == 0 {
		fmt.Fprintf(&b, "{\n\"version\": %d\n\n}\n", t.vmlist)
		return []byte(b.String())
	}
	fmt.Fprintf(&b, "{\n\"version\": %d,\n\"ids\": {\n", t.vmlist)
	sep := ""
	for _, id := range slices.Sorted(maps.Keys(t.guests)) {
		g := t.guests[id]
		fmt.Fprintf(&b, "%s\"%d\": { \"node\": \"%s\", \"type\": \"%s\", \"version\": %d }", sep, id, g.node, g.kind, g.version)
		sep = ",\n"
	}
	b.WriteString("}\n\n}\n")
	return []byte(b.String())
}

func (t *tree) versionText() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"starttime\": %d,\n\"clinfo\": %d,\n\"vmlist\": %d", t.start, t.clinfo, t.vmlist)
	for _, f := range tracked {
		fmt.Fprintf(&b, ",\n\"%s\": %d", f, t.files[f])
	}
	b.WriteString(",\n\"kvstore\": {\n")
	for i, n := range t.nodes {
		if i > 0 {
			b.WriteString(",\n")
		}
		fmt.Fprintf(&b, "\"%s\": {\n\"tasklist\": %d}\n", n, t.files["tasklist/"+n])
	}
	b.WriteString("}\n}\n")
	return []byte(b.String())
}

// lockedMembers writes each node's .members: they differ in "nodename", and
// in "quorate" and "online" when the cluster is split.
func (t *tree) lockedMembers() error {
	for i, view := range t.views {
		if err := t.lockedReplace(filepath.Join(view, ".members"), t.membersText(t.nodes[i]), 0o440); err != nil {
			return err
		}
	}
	return t.lockedReplace(filepath.Join(t.root, ".members"), t.membersText(t.nodes[0]), 0o440)
}

func (t *tree) membersText(self string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\"nodename\": \"%s\",\n\"version\": %d,\n", self, t.clinfo)
	fmt.Fprintf(&b, "\"cluster\": { \"name\": \"%s\", \"version\": %d, \"nodes\": %d, \"quorate\": %d },\n",
		ClusterName, len(t.nodes), len(t.nodes), bit(t.quorate[self]))
	b.WriteString("\"nodelist\": {\n")
	for i, n := range t.nodes {
		end := ",\n"
		if i == len(t.nodes)-1 {
			end = "\n"
		}
		fmt.Fprintf(&b, "  \"%s\": { \"id\": %d, \"online\": %d, \"ip\": \"%s\"}%s", n, i+1, bit(t.online[n]), t.ips[i], end)
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

// setOnline and setQuorate change what .members says.
func (t *tree) setOnline(node string, on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.online[node] = on
	return t.lockedClusterChanged()
}

func (t *tree) setQuorate(node string, on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quorate[node] = on
	return t.lockedClusterChanged()
}

func (t *tree) lockedClusterChanged() error {
	t.clinfo++
	if err := t.lockedMembers(); err != nil {
		return err
	}
	return t.lockedPublish()
}

func (t *tree) isOnline(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.online[node]
}

func (t *tree) isQuorate(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.quorate[node]
}
