package snippet

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
)

const emptyFile = "pve-rigaud-e3b0c44298fc1c149afbf4c8996fb924.yaml"

func TestVolume(t *testing.T) {
	if got, want := Volume("local", nil), "local:snippets/"+emptyFile; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestIn(t *testing.T) {
	a, b := Volume("local", []byte("a")), Volume("nfs-1.x", []byte("b"))
	for text, want := range map[string][]string{
		"":                    nil,
		"cicustom: user=" + a: {a},
		"cicustom: user=" + a + ",meta=" + b + "\n[snap]\ncicustom: user=" + a: {a, b},
		"local:snippets/other.yaml":                 nil,
		":snippets/" + emptyFile:                    nil,
		a[:len(a)-1]:                                nil,
		strings.ToUpper(a):                          nil,
		strings.Replace(a, "snippets", "images", 1): nil,
		"x/" + a + "/../y":                          {a},
	} {
		if got := In(text); !slices.Equal(got, want) {
			t.Errorf("In(%q) = %q, want %q", text, got, want)
		}
	}
}

func TestStorage(t *testing.T) {
	w := newWorld(t)
	n := w.nodes["pve1"]
	for _, tc := range []struct{ name, wish, cfg, want, failure string }{
		{name: "the first", cfg: plainCfg, want: "local"},
		{name: "the one that is wished", wish: "shared", cfg: plainCfg, want: "shared"},
		{name: "not here", cfg: "dir: local\n\tpath DIR/x\n\tcontent images\n\ndir: a\n\tpath /a\n\tcontent snippets\n\tnodes pve2\n", failure: "no storage of node pve1"},
		{name: "wished and not here", wish: "other", cfg: plainCfg, failure: `storage "other" (snippets-storage)`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.change(func() { w.cfg = tc.cfg })
			w.must(n.watcher.Refresh(t.Context()))
			known, err := n.watcher.World()
			w.must(err)
			n.cfg.Storage = tc.wish
			st, err := n.Storage(known)
			if tc.failure == "" && err == nil && st.ID == tc.want {
				return
			}
			if tc.failure == "" || err == nil || !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), tc.failure) {
				t.Errorf("got %s, %v", st.ID, err)
			}
		})
	}
}

// FuzzVolumeFromTheWire: whatever another agent asks for, nothing is touched but files of ours in the one directory.
func FuzzVolumeFromTheWire(f *testing.F) {
	for _, volume := range []string{
		"local:snippets/" + emptyFile, "local:snippets/../" + emptyFile, "local:snippets/pve-rigaud-/../../../../etc/passwd.yaml",
		"../x:snippets/" + emptyFile, "local:snippets//" + emptyFile, "local:snippets/" + emptyFile + "\x00", "local:iso/" + emptyFile, "",
		"local:snippets/local:snippets/" + emptyFile, "local:snippets/..", strings.Repeat("a", 5000),
	} {
		f.Add(volume, "")
	}
	f.Fuzz(func(t *testing.T, volume, data string) {
		w := newWorld(t)
		n := w.nodes["pve1"]
		ctx := context.WithValue(t.Context(), callerKey{}, "pve2")
		_, err := n.service.PutSnippet(ctx, &peerpb.PutSnippetRequest{Volume: volume, Content: []byte(data)})
		if storage, file, serr := split(volume); serr == nil {
			if storage+":snippets/"+file != volume || filepath.Base(file) != file || strings.HasPrefix(file, ".") {
				t.Errorf("%q is taken for %q and %q", volume, storage, file)
			}
		} else if status.Code(err) != codes.InvalidArgument || len(err.Error()) > 1000 {
			t.Errorf("put %q: %v", volume, err)
		}
		if _, err := n.service.GetSnippet(ctx, &peerpb.GetSnippetRequest{Volume: volume}); err != nil && len(err.Error()) > 1000 {
			t.Errorf("get %q: %v", volume, err)
		}
		for _, name := range w.have("pve1/vz") {
			if name != fileOf([]byte(data)) {
				t.Errorf("put %q made %q", volume, name)
			}
		}
		if left, err := filepath.Glob(filepath.Join(w.dir, "pve1/vz/*")); err != nil || len(left) > 1 {
			t.Errorf("put %q made %q, %v", volume, left, err)
		}
	})
}
