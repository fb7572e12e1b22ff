package matrix

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the answers in testdata")

// question is one case of a file: a title, which begins with the field it is about, and what is put into the request
// beside the base, one "part: value" a line. A value of JSON is merged into the base's; others replace it.
type question struct {
	title string
	parts []part
}

type part struct{ name, value string }

// field is what the question is about.
func (q question) field() string {
	name, _, _ := strings.Cut(q.title, ",")
	return name
}

// text is the question as it stands in the file.
func (q question) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "## %s\n", q.title)
	for _, p := range q.parts {
		fmt.Fprintf(&b, "%s: %s\n", p.name, p.value)
	}
	return b.String()
}

// file is testdata/<name>.txt: some words, and then cases whose answers are indented.
type file struct {
	path, head string
	raw        string
	questions  []question
}

func read(t *testing.T, name string) file {
	t.Helper()
	f := file{path: filepath.Join("testdata", name+".txt")}
	raw, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.raw = string(raw)
	head, rest, _ := strings.Cut(f.raw, "\n## ")
	f.head = head
	for text := range strings.SplitSeq(rest, "\n## ") {
		title, body, _ := strings.Cut(text, "\n")
		q := question{title: title}
		for line := range strings.Lines(body) {
			name, value, ok := strings.Cut(strings.TrimRight(line, "\n"), ": ")
			if ok && !strings.HasPrefix(line, "\t") {
				q.parts = append(q.parts, part{name, value})
			}
		}
		f.questions = append(f.questions, q)
	}
	return f
}

// compare puts the answers of each version of PVE together, and compares the file with them. An answer that is the same
// for all versions stands there once.
func (f file) compare(t *testing.T, versions []string, answers map[string][][]string) {
	t.Helper()
	var b strings.Builder
	b.WriteString(f.head)
	for i, q := range f.questions {
		fmt.Fprintf(&b, "\n%s", q.text())
		newest := answers[versions[0]][i]
		for _, line := range newest {
			fmt.Fprintf(&b, "\t%s\n", line)
		}
		for _, v := range versions[1:] {
			if cmp.Equal(newest, answers[v][i]) {
				continue
			}
			fmt.Fprintf(&b, "\tPVE %s:\n", v)
			for _, line := range answers[v][i] {
				fmt.Fprintf(&b, "\t\t%s\n", line)
			}
		}
	}
	if *update {
		if len(versions) < 3 {
			t.Fatal("the answers of three versions belong into the file: go test -tags versions ./tests/matrix -update")
		}
		if err := os.WriteFile(f.path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := f.raw
	if len(versions) == 1 {
		want = newestOnly(want)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("%s (go test -tags versions ./tests/matrix -update rewrites it):\n%s", f.path, diff)
	}
}

// newestOnly takes the answers of older versions away.
func newestOnly(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "\tPVE ") && !strings.HasPrefix(line, "\t\t") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// merged is base with the members of patch put over it, at every level; a null takes a member away.
func merged(t *testing.T, base, patch string) string {
	t.Helper()
	var into, over any
	if base != "" {
		decode(t, base, &into)
	}
	decode(t, patch, &over)
	out, err := json.Marshal(merge(into, over))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func decode(t *testing.T, text string, out any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), out); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func merge(base, patch any) any {
	b, ok := base.(map[string]any)
	p, both := patch.(map[string]any)
	if !ok || !both {
		return patch
	}
	out := maps.Clone(b)
	for k, v := range p {
		if v == nil {
			delete(out, k)
			continue
		}
		out[k] = merge(b[k], v)
	}
	return out
}

// versions are those of PVE that are asked, newest first: all with the tag versions, else the newest.
func versions(t *testing.T) []string {
	t.Helper()
	newest := os.Getenv("PVE_API_SCHEMA")
	if newest == "" {
		t.Skip("skipped: needs the call schemas of PVE; enable with: PVE_API_SCHEMA=<file>")
	}
	all := []string{strings.TrimSuffix(filepath.Base(newest), ".json")}
	for _, v := range olderVersions {
		if _, err := os.Stat(filepath.Join(filepath.Dir(newest), v+".json")); err != nil {
			t.Fatalf("the schema of PVE %s has to be beside that of the newest: %v", v, err)
		}
		all = append(all, v)
	}
	return all
}
