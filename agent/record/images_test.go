package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func newTestImages(t testing.TB) *Images {
	t.Helper()
	return NewImages(Config{Dir: newDir(t)})
}

func ubuntu() Image {
	return Image{Name: "ubuntu-22.04", Source: "template 9000", Template: "9000", Originals: []Original{{Node: "pve1", VMID: 9000, UUID: "u"}}}
}

func imageFiles(t testing.TB, s *Images) []string {
	t.Helper()
	names, err := s.dir.names()
	check(t, err)
	slices.Sort(names)
	return names
}

func addReplica(node string) func(*Image) bool {
	return func(i *Image) bool {
		i.Replicas = append(i.Replicas, Replica{Node: node, VMID: len(i.Replicas) + 1, Checksums: map[string]string{"scsi0": "sha256:1"}})
		return true
	}
}

func TestImagesLife(t *testing.T) {
	t.Parallel()
	s := newTestImages(t)
	if _, found, err := s.Find("ubuntu-22.04"); found || err != nil {
		t.Errorf("none yet: %v, %v", found, err)
	}
	made, err := s.Create(ubuntu())
	check(t, err)
	if made.Generation != 1 || made.Created.IsZero() {
		t.Errorf("made %+v", made)
	}
	if old, err := s.Create(ubuntu()); !errors.Is(err, ErrImageExists) || old.Template != "9000" {
		t.Errorf("twice: %+v, %v", old, err)
	}
	next, err := s.Update("ubuntu-22.04", addReplica("pve2"))
	check(t, err)
	if next.Generation != 2 || len(next.Replicas) != 1 {
		t.Errorf("updated: %+v", next)
	}
	same, err := s.Update("ubuntu-22.04", func(*Image) bool { return false })
	if err != nil || same.Generation != 2 {
		t.Errorf("unchanged: %+v, %v", same, err)
	}
	if names := imageFiles(t, s); !slices.Equal(names, []string{"ubuntu-22.04.2"}) {
		t.Errorf("files %v", names)
	}
	other := NewImages(Config{Dir: s.dir.root})
	got, found, err := other.Find("ubuntu-22.04")
	if diff := cmp.Diff(next, got, cmpopts.IgnoreUnexported(Image{})); !found || err != nil || diff != "" {
		t.Errorf("another node finds %v, %v (-want +got):\n%s", found, err, diff)
	}
	got.Replicas[0].Checksums["scsi0"] = "changed"
	if again, _, _ := other.Find("ubuntu-22.04"); again.Replicas[0].Checksums["scsi0"] == "changed" {
		t.Error("what is returned is shared")
	}
	if _, err := s.Update("nobody", addReplica("pve2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody: %v", err)
	}
}

// Many nodes change one record at once, and no change is lost.
func TestImagesLoseNothing(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	first := NewImages(Config{Dir: dir})
	_, err := first.Create(ubuntu())
	check(t, err)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			s := NewImages(Config{Dir: dir})
			for m := range 10 {
				for {
					node := fmt.Sprintf("%d-%d", n, m)
					_, err := s.Update("ubuntu-22.04", func(i *Image) bool {
						there := slices.ContainsFunc(i.Replicas, func(r Replica) bool { return r.Node == node })
						return !there && addReplica(node)(i)
					})
					var writing *IncompleteError
					if err == nil {
						break
					}
					if !errors.As(err, &writing) && !strings.Contains(err.Error(), "meanwhile") && !strings.Contains(err.Error(), "came and went") {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	img, _, err := first.Find("ubuntu-22.04")
	check(t, err)
	seen := map[string]bool{}
	for _, r := range img.Replicas {
		seen[r.Node] = true
	}
	if len(seen) != 80 || len(img.Replicas) != 80 || img.Generation != 81 {
		t.Errorf("%d changes of 80 are there, %d in all, generation %d", len(seen), len(img.Replicas), img.Generation)
	}
}

func TestImagesCreateRace(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	var wins atomic.Int64
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := NewImages(Config{Dir: dir}).Create(ubuntu()); err == nil {
				wins.Add(1)
			}
		})
	}
	wg.Wait()
	if wins.Load() != 1 {
		t.Errorf("%d winners", wins.Load())
	}
}

// A record that is being written is never believed, and never taken for absent where there was one before.
func TestImagesHalfWritten(t *testing.T) {
	t.Parallel()
	s := newTestImages(t)
	_, err := s.Create(ubuntu())
	check(t, err)
	whole, err := os.ReadFile(s.dir.file("ubuntu-22.04.1"))
	check(t, err)
	for _, content := range []string{"", string(whole[:len(whole)/2]), string(whole[:len(whole)-1])} {
		path := s.dir.file("ubuntu-22.04.2")
		check(t, os.WriteFile(path, []byte(content), 0o600))
		got, found, err := NewImages(Config{Dir: s.dir.root}).Find("ubuntu-22.04")
		if !found || err != nil || got.Generation != 1 {
			t.Errorf("with %d bytes of the next: %+v, %v, %v", len(content), got, found, err)
		}
		_, err = s.Update("ubuntu-22.04", addReplica("pve2"))
		if e := wantErr[*IncompleteError](t, err); e.Generation != 2 {
			t.Errorf("changed while it is written: %v", err)
		}
	}
	age(t, s.dir.file("ubuntu-22.04.2"), 2*time.Minute) // its writer died
	next, err := s.Update("ubuntu-22.04", addReplica("pve2"))
	if err != nil || next.Generation != 3 {
		t.Errorf("after a crash: %+v, %v", next, err)
	}
	if names := imageFiles(t, s); !slices.Equal(names, []string{"ubuntu-22.04.3"}) {
		t.Errorf("files %v", names)
	}
	// A first one is not there yet.
	check(t, os.WriteFile(s.dir.file("debian.1"), nil, 0o600))
	if _, found, err := s.Find("debian"); found || err != nil {
		t.Errorf("debian: %v, %v", found, err)
	}
	if list, broken, err := s.List(); len(list) != 1 || len(broken) != 0 || err != nil {
		t.Errorf("listed %v, %v, %v", list, broken, err)
	}
}

// A writer that was taken for dead, or that looked long ago, does not bring back what was.
func TestImagesTooLate(t *testing.T) {
	t.Parallel()
	s := newTestImages(t)
	_, err := s.Create(ubuntu())
	check(t, err)
	for range 3 {
		_, err = s.Update("ubuntu-22.04", addReplica("pve2"))
		check(t, err)
	}
	old := ubuntu()
	old.Generation = 2
	if err := s.write(old); !errors.Is(err, ErrLost) {
		t.Errorf("an old generation: %v", err)
	}
	if names := imageFiles(t, s); !slices.Equal(names, []string{"ubuntu-22.04.4"}) {
		t.Errorf("files %v", names)
	}
	late := newImages(Config{Dir: s.dir.root}, &between{after: func() {
		img, _, err := s.Find("ubuntu-22.04")
		check(t, err)
		img.Generation = 6
		check(t, s.write(img))
	}})
	got, err := late.Update("ubuntu-22.04", addReplica("pve3"))
	if err != nil || got.Generation != 7 || len(got.Replicas) != 4 {
		t.Errorf("overtaken, and then: %+v, %v", got, err)
	}
}

// A later version's fields stay.
func TestImagesOfALaterVersion(t *testing.T) {
	t.Parallel()
	s := newTestImages(t)
	check(t, s.dir.make())
	check(t, os.WriteFile(s.dir.file("x.1"), []byte(`{"v":2,"name":"x","template":"9000","news":{"a":[1]}}`+"\n"), 0o600))
	_, err := s.Update("x", addReplica("pve2"))
	check(t, err)
	raw, err := os.ReadFile(s.dir.file("x.2"))
	check(t, err)
	if text := string(raw); !strings.Contains(text, `"news":{"a":[1]}`) || !strings.Contains(text, `"v":2`) {
		t.Errorf("got %s", text)
	}
	check(t, os.WriteFile(s.dir.file("broken.1"), []byte("{}\n"), 0o600))
	list, broken, err := s.List()
	if err != nil || len(list) != 1 || len(broken) != 1 {
		t.Errorf("listed %v, %v, %v", list, broken, err)
	}
	_, _, err = s.Find("broken")
	_ = wantErr[*FormatError](t, err)
}

func TestImageFile(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"ubuntu-22.04": "ubuntu-22.04.7", "../x": "%2E.%2Fx.7", "a b%": "a%20b%25.7", "ü": "%C3%BC.7", ".": "%2E.7",
	} {
		file := imageFile(name, 7)
		if escaped, generation, ok := parseImageFile(file); file != want || !ok || generation != 7 || escaped != escapeName(name) || filepath.Base(file) != file {
			t.Errorf("%q: file %q, parsed as %q, %d, %v", name, file, escaped, generation, ok)
		}
	}
	for _, file := range []string{"", ".1", "x", "x.0", "x.01", "x.-1", "x.1.tmp-2"} {
		if _, _, ok := parseImageFile(file); ok {
			t.Errorf("%q is no record", file)
		}
	}
}

func TestImagesNotMounted(t *testing.T) {
	t.Parallel()
	s := NewImages(Config{Dir: filepath.Join(t.TempDir(), "priv", "pve-rigaud")})
	if _, _, err := s.Find("x"); !errors.Is(err, ErrNotMounted) {
		t.Errorf("Find: %v", err)
	}
	if _, err := s.Create(ubuntu()); !errors.Is(err, ErrNotMounted) {
		t.Errorf("Create: %v", err)
	}
}
