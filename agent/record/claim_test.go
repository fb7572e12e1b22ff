package record

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTakeOver(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	dead := take(t, s, web1())
	old := dead.Record()
	next := web1()
	next.Name, next.Owner, next.Op, next.Node = "ignored", "ignored", "op-2", "pve2"
	c, err := s.TakeOver(old, next)
	check(t, err)
	r := c.Record()
	if r.Generation != 2 || r.Name != "web-1" || r.Owner != old.Owner || r.Over != old.Token || r.Token == old.Token || r.Op != "op-2" {
		t.Errorf("got %+v", r)
	}
	if names := files1(t, s); !slices.Equal(names, []string{fileName(hash(old.Owner, "web-1"), 2)}) {
		t.Errorf("files: got %v, want generation 2 alone", names)
	}
	check(t, c.Check())
	for what, err := range map[string]error{
		"Check": dead.Check(), "Update": dead.Update(func(*Record) { t.Error("updated") }), "Release": dead.Release(),
	} {
		if !errors.Is(err, ErrLost) {
			t.Errorf("%s of the old holder: got %v, want ErrLost", what, err)
		}
	}
	if _, err := s.TakeOver(old, next); !errors.Is(err, ErrLost) {
		t.Errorf("the same once more: got %v, want ErrLost", err)
	}
	if got, found, err := s.Find(old.Owner, "web-1"); !found || err != nil || got.Token != r.Token {
		t.Errorf("Find: got %+v, %v", got, err)
	}
}

func TestTakeOverRace(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	r := take(t, s, web1()).Record()
	for range 20 {
		var wg sync.WaitGroup
		winners := make(chan *Claim, 50)
		for range 50 {
			wg.Go(func() {
				if c, err := s.TakeOver(r, web1()); err == nil {
					winners <- c
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d winners", len(winners))
		}
		c := <-winners
		check(t, c.Check())
		r = c.Record()
	}
	if r.Generation != 21 {
		t.Errorf("generation %d", r.Generation)
	}
}

// A crash in the middle of a take-over leaves two generations: the higher holds, and goes with the lower one.
func TestTakeOverCrash(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	first := take(t, s, web1())
	old := first.Record()
	raw, err := os.ReadFile(fileOf(s, old))
	check(t, err)
	c, err := s.TakeOver(old, web1())
	check(t, err)
	check(t, os.WriteFile(fileOf(s, old), raw, 0o600)) // as if it had not been removed
	if err := first.Check(); !errors.Is(err, ErrLost) {
		t.Errorf("the old holder: got %v", err)
	}
	check(t, c.Check())
	list, err := s.List()
	if err != nil || len(list.Records) != 1 || list.Records[0].Generation != 2 {
		t.Errorf("List: got %+v, %v", list, err)
	}
	third, err := s.TakeOver(c.Record(), web1())
	check(t, err)
	if names := files1(t, s); len(names) != 1 {
		t.Errorf("files: got %v", names)
	}
	check(t, third.Release())
	if names := files1(t, s); len(names) != 0 {
		t.Errorf("released: got %v", names)
	}
}

// Numbers come again; a claim that has the number of an old one is another claim.
func TestGenerationAgain(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	first := take(t, s, web1())
	check(t, first.Release())
	second := take(t, s, web1())
	if err := first.Check(); !errors.Is(err, ErrLost) {
		t.Errorf("Check of the released claim: got %v", err)
	}
	if err := first.Release(); !errors.Is(err, ErrLost) {
		t.Errorf("Release of the released claim: got %v", err)
	}
	if _, err := s.TakeOver(first.Record(), web1()); !errors.Is(err, ErrLost) {
		t.Errorf("TakeOver of the released claim: got %v", err)
	}
	check(t, second.Check())
	check(t, second.Release())
}

// between runs before or after the first creation of a file.
type between struct {
	disk
	once          sync.Once
	before, after func()
}

func (b *between) create(path string) (created file, err error) {
	first := false
	b.once.Do(func() { first = true })
	if first && b.before != nil {
		b.before()
	}
	created, err = b.disk.create(path)
	if first && b.after != nil {
		b.after()
	}
	return created, err
}

// A take-over whose old claim is released, and taken anew, just before it creates its file, gives up, and disturbs nobody.
func TestTakeOverTooLate(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	first := take(t, s, web1())
	var second *Claim
	late := newStore(Config{Dir: s.dir.root}, &between{before: func() {
		check(t, first.Release())
		second = take(t, s, web1())
	}})
	if _, err := late.TakeOver(first.Record(), web1()); !errors.Is(err, ErrLost) {
		t.Errorf("got %v, want ErrLost", err)
	}
	check(t, second.Check())
	if names := files1(t, s); len(names) != 1 {
		t.Errorf("files: got %v", names)
	}
}

// A first generation that is created below a higher one, from someone who came in between, does not hold.
func TestTakeBelow(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	check(t, s.dir.make())
	higher := web1With(2)
	higher.Token = "t"
	late := newStore(Config{Dir: s.dir.root}, &between{before: func() { check(t, s.write(filepath.Base(fileOf(s, higher)), higher)) }})
	_, err := late.Take(web1())
	if e := wantErr[*ExistsError](t, err); e.Record.Generation != 2 {
		t.Errorf("got %v", err)
	}
	if names := files1(t, s); len(names) != 1 {
		t.Errorf("files: got %v", names)
	}
}

func TestHighest(t *testing.T) {
	t.Parallel()
	h := hash("o", "n")
	for _, names := range [][]string{{h + ".2", h + ".10", "x"}, {h + ".10", h + ".2", h + ".11.tmp-1"}} {
		if got := highest(names); !slices.Equal(got, []string{h + ".10"}) {
			t.Errorf("%v: got %v", names, got)
		}
	}
}

func web1With(generation int) Record {
	r := web1()
	r.Generation = generation
	return r
}

// The holder of a new claim is not disturbed by a take-over of the claim before, and is by one of its own.
func TestCheckNextGeneration(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	c := take(t, s, web1())
	next := web1With(2)
	next.Token, next.Over = "t", "another claim's token"
	check(t, s.write(filepath.Base(fileOf(s, next)), next))
	check(t, c.Check())
	for over, content := range map[string]func() error{
		"ours":      func() error { next.Over = c.Record().Token; return s.replace(next) },
		"a torn":    func() error { next.Over = ""; return s.replace(next) },
		"unwritten": func() error { return os.WriteFile(fileOf(s, next), nil, 0o600) },
	} {
		check(t, content())
		if err := c.Check(); !errors.Is(err, ErrLost) {
			t.Errorf("over %s: got %v, want ErrLost", over, err)
		}
	}
	check(t, os.WriteFile(fileOf(s, next), []byte("{garbage}\n"), 0o600))
	if err := c.Check(); errors.Is(err, ErrLost) || err == nil {
		t.Errorf("garbage: got %v, want that error", err)
	}
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	c := take(t, s, web1())
	held := s.Hold(c.Record()) // as after a restart
	check(t, held.Update(func(r *Record) {
		r.VMID, r.Volumes, r.Snippets = 10001, []string{"local:10001/x.qcow2"}, []string{"local:snippets/x"}
		r.Owner, r.Name, r.Token, r.Over, r.Generation = "x", "x", "x", "x", 7
	}))
	got, found, err := s.Find(web1().Owner, "web-1")
	check(t, err)
	want := c.Record()
	want.VMID, want.Volumes, want.Snippets = 10001, []string{"local:10001/x.qcow2"}, []string{"local:snippets/x"}
	if diff := cmp.Diff(want, got, sameRecord); !found || diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	check(t, c.Update(func(r *Record) { r.State = Ready })) // from the file, not from what this claim remembers
	if r := c.Record(); r.VMID != 10001 || r.State != Ready {
		t.Errorf("got %+v", r)
	}
	if err := c.Update(func(r *Record) { r.VMID = 10002 }); err == nil || !strings.Contains(err.Error(), "never change") {
		t.Errorf("a ready VM's vmid: got %v", err)
	}
	if err := c.Update(func(r *Record) { r.UUID = "" }); err == nil {
		t.Error("a ready VM's uuid has changed")
	}
	if names := files1(t, s); len(names) != 1 {
		t.Errorf("files: got %v", names)
	}
	r := c.Record()
	r.Volumes[0] = "changed"
	if c.Record().Volumes[0] == "changed" {
		t.Error("Record shares its slices")
	}
}

// meanwhile runs f before a file is renamed.
type meanwhile struct {
	disk
	f func()
}

func (m *meanwhile) rename(from, to string) error {
	m.f()
	return m.disk.rename(from, to)
}

// An update that crosses a take-over says so, although its rename went well.
func TestUpdateCrossesTakeOver(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	r := take(t, s, web1()).Record()
	var over *Claim
	crossing := newStore(Config{Dir: s.dir.root}, &meanwhile{f: func() {
		var err error
		over, err = s.TakeOver(r, web1())
		check(t, err)
	}})
	if err := crossing.Hold(r).Update(func(r *Record) { r.State = Ready }); !errors.Is(err, ErrLost) {
		t.Errorf("got %v, want ErrLost", err)
	}
	check(t, over.Check())
	check(t, over.Release())
	if names := files1(t, s); len(names) != 0 {
		t.Errorf("files: got %v", names)
	}
}

// A reader never sees half an update.
func TestUpdateAtomic(t *testing.T) {
	t.Parallel()
	s := newTestStore(t)
	c := take(t, s, web1())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 50 {
			check(t, c.Update(func(r *Record) { r.Fingerprint = strings.Repeat("x", i*7%500) }))
		}
	}()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		if _, found, err := s.Find(web1().Owner, "web-1"); !found || err != nil {
			t.Fatalf("got %v, %v", found, err)
		}
	}
}
