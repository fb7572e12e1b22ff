package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
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

var sameRecord = cmp.Options{cmpopts.IgnoreUnexported(Record{}), cmpopts.EquateEmpty()}

func TestTakeFindRelease(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	if r, found, err := s.Find("o", "web-1"); found || err != nil {
		t.Fatalf("nothing there: got %+v, %v, %v", r, found, err)
	}
	c := take(t, s, web1())
	want := c.Record()
	if want.Generation != 1 || len(want.Token) != 32 || want.Over != "" || time.Since(want.Created) > time.Minute {
		t.Errorf("claim: got %+v", want)
	}
	got, found, err := s.Find(want.Owner, "web-1")
	check(t, err)
	if diff := cmp.Diff(want, got, sameRecord); !found || diff != "" {
		t.Errorf("Find: %v (-want +got):\n%s", found, diff)
	}
	name := filepath.Base(fileOf(s, want))
	if h, generation, ok := strings.Cut(name, "."); !ok || len(h) != 32 || generation != "1" || !strings.HasPrefix(h, hash(want.Owner, "web-1")) {
		t.Errorf("file name: got %s", name)
	}
	for path, mode := range map[string]fs.FileMode{fileOf(s, want): 0o600, s.dir.path: 0o700, s.dir.root: 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: got %v, %v", path, info, err)
		}
	}
	_, err = s.Take(web1())
	exists := wantErr[*ExistsError](t, err)
	if diff := cmp.Diff(want, exists.Record, sameRecord); diff != "" || !strings.Contains(err.Error(), `"web-1" exists: vm 10000-880d09f7, creating, by operation "op-1" on node pve1`) {
		t.Errorf("the second one: %v\n%s", err, diff)
	}
	other := web1()
	other.Owner = "another"
	take(t, s, other)
	check(t, c.Check())
	check(t, c.Release())
	check(t, c.Release()) // once more, as after a crash
	if _, found, err := s.Find(want.Owner, "web-1"); found || err != nil {
		t.Errorf("released: got %v, %v", found, err)
	}
	if _, found, _ := s.Find("another", "web-1"); !found {
		t.Error("the other owner's record is gone")
	}
}

// race lets many goroutines claim one name; it returns how many got it.
func race(dir string) int {
	var wins atomic.Int64
	var wg sync.WaitGroup
	stores := []*Store{New(Config{Dir: dir}), New(Config{Dir: dir})}
	for i := range 50 {
		wg.Go(func() {
			_, err := stores[i%2].Take(Record{Owner: "o", Name: "n"})
			var exists *ExistsError
			var torn *IncompleteError
			switch {
			case err == nil:
				wins.Add(1)
			case !errors.As(err, &exists) && !errors.As(err, &torn):
				wins.Add(1000)
			}
		})
	}
	wg.Wait()
	return int(wins.Load())
}

// Of 200 callers in four processes exactly one gets the name.
func TestTakeRace(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	check(t, err)
	for range 3 {
		dir := newDir(t)
		total := 0
		var outputs []*bufio.Reader
		var cmds []*exec.Cmd
		for range 3 {
			cmd := exec.CommandContext(t.Context(), self)
			cmd.Env = append(os.Environ(), racerEnv+"="+dir)
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			outputs, cmds = append(outputs, bufio.NewReader(out)), append(cmds, cmd)
		}
		total += race(dir)
		for i, cmd := range cmds {
			line, err := outputs[i].ReadString('\n')
			check(t, err)
			check(t, cmd.Wait())
			if line == "1\n" {
				total++
			} else if line != "0\n" {
				t.Errorf("a process says %q", line)
			}
		}
		if total != 1 {
			t.Fatalf("%d winners", total)
		}
	}
}

// Fields of a later version survive an update by this one, and so does its version.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	r := torn(t, s, web1(), `{"v":2,"owner":"`+web1().Owner+`","name":"web-1","vmid":10000,"token":"t","state":"creating","later":{"a":[1,2]},"tags":["x"]}`+"\n")
	got, found, err := s.Find(r.Owner, r.Name)
	if !found || err != nil {
		t.Fatalf("got %v, %v", found, err)
	}
	check(t, s.Hold(got).Update(func(r *Record) { r.Tags, r.State = nil, Ready }))
	raw, err := os.ReadFile(fileOf(s, r))
	check(t, err)
	for _, want := range []string{`"v":2`, `"later":{"a":[1,2]}`, `"state":"ready"`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("no %s in %s", want, raw)
		}
	}
	if strings.Contains(string(raw), "tags") {
		t.Errorf("removed tags are still in %s", raw)
	}
}

// A file that is not written to its end is neither absent nor garbage; after 60 s it may be taken over.
func TestIncomplete(t *testing.T) {
	t.Parallel()
	whole, err := web1().encode()
	check(t, err)
	for _, content := range []string{"", "{", string(whole[:len(whole)/2]), string(whole[:len(whole)-1])} {
		s := newTestStore(t)
		r := torn(t, s, web1(), content)
		_, _, err := s.Find(r.Owner, r.Name)
		e := wantErr[*IncompleteError](t, err)
		if e.Path != fileOf(s, r) || e.Generation != 1 || e.Dead(time.Now()) || !strings.Contains(err.Error(), e.Path+": being written since") {
			t.Errorf("Find: got %+v", e)
		}
		_, err = s.Take(web1())
		_ = wantErr[*IncompleteError](t, err)
		_, err = s.TakeOver(r, web1())
		_ = wantErr[*IncompleteError](t, err)
		list, err := s.List()
		if err != nil || len(list.Records) != 0 || len(list.Incomplete) != 1 || list.Incomplete[0].Path != e.Path || len(list.Broken) != 0 {
			t.Errorf("List: got %+v, %v", list, err)
		}
		if removed, err := s.Sweep(time.Now()); err != nil || len(removed) != 0 {
			t.Errorf("Sweep: got %v, %v", removed, err)
		}
		age(t, e.Path, 61*time.Second)
		c, err := s.TakeOver(r, web1())
		check(t, err)
		if c.Record().Generation != 2 || len(files1(t, s)) != 1 {
			t.Errorf("taken over: got %+v, %v", c.Record(), files1(t, s))
		}
		check(t, c.Check())
	}
}

// A slow writer that is taken for dead after all does not hold, and who took over does not either: both try again.
func TestIncompleteSlowWriter(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	check(t, s.dir.make())
	slow := newStore(Config{Dir: s.dir.root}, &between{after: func() {
		age(t, fileOf(s, web1With(1)), 2*time.Minute)
		_, err := s.TakeOver(web1With(1), web1())
		check(t, err)
	}})
	_, err := slow.Take(web1())
	if !errors.Is(err, ErrLost) {
		exists := wantErr[*ExistsError](t, err)
		if exists.Record.Generation != 2 {
			t.Errorf("got %v", err)
		}
	}
	if r, found, err := s.Find(web1().Owner, "web-1"); !found || err != nil || r.Generation != 2 {
		t.Errorf("Find: got %+v, %v, %v", r, found, err)
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	for _, content := range []string{"{garbage}\n", "x}\n", `{"owner":"o"}` + "\n", `{"v":"x"}` + "\n", `{"v":1,"vmid":"x"}` + "\n"} {
		s := newTestStore(t)
		r := torn(t, s, web1(), content)
		other := web1()
		other.Name = "other"
		take(t, s, other)
		_, _, err := s.Find(r.Owner, r.Name)
		if e := wantErr[*FormatError](t, err); e.Path != fileOf(s, r) {
			t.Errorf("%q: got %v", content, err)
		}
		_, err = s.Take(web1())
		_ = wantErr[*FormatError](t, err)
		list, err := s.List()
		if err != nil || len(list.Records) != 1 || len(list.Broken) != 1 {
			t.Errorf("%q: List: got %+v, %v", content, list, err)
		}
	}
}

func TestListAndByVMID(t *testing.T) {
	t.Parallel()
	s, writer := newTestStore(t), (*Store)(nil)
	writer = New(Config{Dir: s.dir.root}) // another agent's
	claims := map[int]*Claim{}
	for i := range 30 {
		r := web1()
		r.Name, r.VMID, r.State = "vm-"+string(rune('a'+i)), 10030-i, Ready
		claims[r.VMID] = take(t, writer, r)
	}
	unallocated := web1()
	unallocated.VMID = 0
	take(t, writer, unallocated)
	check(t, os.WriteFile(s.dir.file("a note"), []byte("x"), 0o600))
	check(t, os.WriteFile(s.dir.file(hash("a", "b")+".01"), []byte("x"), 0o600))
	list, err := s.List()
	check(t, err)
	if len(list.Records) != 31 || list.Records[0].VMID != 0 || list.Records[1].VMID != 10001 || list.Records[30].VMID != 10030 {
		t.Errorf("got %d records", len(list.Records))
	}
	for _, vmid := range slices.Sorted(maps.Keys(claims)) {
		if r, found, err := s.ByVMID(vmid); !found || err != nil || r.Name != claims[vmid].Record().Name {
			t.Errorf("%d: got %+v, %v, %v", vmid, r, found, err)
		}
	}
	// Found by number also after it was released and the name taken for another number, or the number by another name.
	check(t, claims[10001].Release())
	again := claims[10001].Record()
	again.VMID = 10100
	take(t, writer, again)
	for _, vmid := range []int{10001, 99} {
		if r, found, err := s.ByVMID(vmid); found || err != nil {
			t.Errorf("%d: got %+v, %v, %v", vmid, r, found, err)
		}
	}
	if r, found, err := s.ByVMID(10100); !found || err != nil || r.Name != again.Name {
		t.Errorf("new number: got %+v, %v, %v", r, found, err)
	}
}

// A take-over that is being written hides the generation below, so nobody can say that there is none.
func TestByVMIDIncomplete(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	take(t, s, web1())
	other := web1()
	other.Name = "other"
	torn(t, s, other, "")
	if _, found, err := s.ByVMID(10001); found || err != nil {
		t.Errorf("a first generation being written: got %v, %v", found, err)
	}
	torn(t, s, web1With(2), "")
	_, _, err := New(Config{Dir: s.dir.root}).ByVMID(10000)
	if e := wantErr[*IncompleteError](t, err); e.Generation != 2 {
		t.Errorf("got %v", err)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	c := take(t, s, web1())
	dead := web1()
	dead.Name = "dead"
	dead = torn(t, s, dead, "")
	temp := fileOf(s, c.Record()) + tempMark + "x"
	check(t, os.WriteFile(temp, []byte("{"), 0o600))
	check(t, os.WriteFile(s.dir.file("a note"), nil, 0o600))
	now := time.Now()
	if removed, err := s.Sweep(now); err != nil || len(removed) != 0 {
		t.Errorf("young: got %v, %v", removed, err)
	}
	removed, err := s.Sweep(now.Add(2 * time.Minute))
	slices.Sort(removed)
	want := []string{temp, fileOf(s, dead)}
	slices.Sort(want)
	if err != nil || !slices.Equal(removed, want) {
		t.Errorf("old: got %v, %v, want %v", removed, err, want)
	}
	check(t, c.Check())
}

// Where nothing is mounted there is no empty world, and nothing is created.
func TestNotMounted(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	cfg := Config{Dir: filepath.Join(root, "priv", "pve-rigaud")}
	s, ids := New(cfg), NewIDs(cfg)
	_, _, findErr := s.Find("o", "n")
	_, takeErr := s.Take(web1())
	_, listErr := s.List()
	_, _, byErr := s.ByVMID(100)
	_, sweepErr := s.Sweep(time.Now())
	_, idErr := ids.Allocate(t.Context(), Range{100, 200}, nil)
	for what, err := range map[string]error{"Find": findErr, "Take": takeErr, "List": listErr, "ByVMID": byErr, "Sweep": sweepErr, "Allocate": idErr} {
		if !errors.Is(err, ErrNotMounted) || !strings.Contains(err.Error(), filepath.Join(root, "priv")) {
			t.Errorf("%s: got %v, want ErrNotMounted with the path", what, err)
		}
	}
	if err := s.dir.make(); !errors.Is(err, ErrNotMounted) {
		t.Errorf("make: got %v", err)
	}
	if entries, err := os.ReadDir(root); err != nil || len(entries) != 0 {
		t.Errorf("created %v, %v", entries, err)
	}
}

// failing lets single operations fail.
type failing struct {
	disk
	onWrite, onRename error
}

type failingFile struct {
	file
	err error
}

func (f *failingFile) Write(p []byte) (int, error) {
	n, err := f.file.Write(p[:len(p)/2])
	return n, errors.Join(err, f.err)
}

func (f *failing) create(path string) (file, error) {
	created, err := f.disk.create(path)
	if err == nil && f.onWrite != nil {
		created = &failingFile{file: created, err: f.onWrite}
	}
	return created, err
}

func (f *failing) rename(from, to string) error {
	if f.onRename != nil {
		return f.onRename
	}
	return f.disk.rename(from, to)
}

// What fails half way leaves nothing behind.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	f := &failing{onWrite: boom}
	s := newStore(Config{Dir: newDir(t)}, f)
	if _, err := s.Take(web1()); !errors.Is(err, boom) || !strings.Contains(err.Error(), `claim "web-1"`) {
		t.Errorf("Take: got %v", err)
	}
	if names := files1(t, s); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
	f.onWrite = nil
	c := take(t, s, web1())
	f.onRename = boom
	if err := c.Update(func(r *Record) { r.State = Ready }); !errors.Is(err, boom) {
		t.Errorf("Update: got %v", err)
	}
	if names := files1(t, s); len(names) != 1 || c.Record().State != Creating {
		t.Errorf("left behind: %v, %v", names, c.Record().State)
	}
}

func FuzzDecode(f *testing.F) {
	whole, err := web1().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(`{"v":3,"x":null,"tags":null}` + "\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decode("x", raw)
		if err != nil {
			return
		}
		out, err := r.encode()
		check(t, err)
		if !wholeFile(out) {
			t.Fatalf("not whole: %q", out)
		}
		again, err := decode("x", out)
		check(t, err)
		for name, value := range r.extra {
			var compact bytes.Buffer
			check(t, json.Compact(&compact, value))
			r.extra[name] = compact.Bytes()
		}
		if diff := cmp.Diff(r, again, cmp.AllowUnexported(Record{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("encode and decode:\n%s", diff)
		}
	})
}
