package record

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func allocate(t testing.TB, a *IDs, r Range, taken func(int) bool) int {
	t.Helper()
	id, err := a.Allocate(t.Context(), r, taken)
	check(t, err)
	return id
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	cfg := Config{Dir: newDir(t)}
	r := Range{10000, 10100}
	a := NewIDs(cfg)
	for want := 10000; want < 10020; want++ {
		if got := allocate(t, a, r, nil); got != want {
			t.Fatalf("got %d, want %d", got, want)
		}
	}
	if marks, err := a.marks(); err != nil || len(marks) != keptMarks || top(marks) != 10019 {
		t.Errorf("marks: got %v, %v", marks, err)
	}
	taken := func(id int) bool { return id < 10030 || id == 10031 }
	b := NewIDs(cfg) // a restarted agent
	if got := allocate(t, b, r, taken); got != 10030 {
		t.Errorf("skipping taken ones: got %d", got)
	}
	if got := allocate(t, a, r, taken); got != 10032 {
		t.Errorf("skipping taken ones: got %d", got)
	}
	if got := allocate(t, a, Range{20000, 20010}, nil); got != 20000 {
		t.Errorf("a higher range: got %d", got)
	}
	_, err := a.Allocate(t.Context(), r, nil)
	if e := wantErr[*RangeError](t, err); e.Highest != 20000 ||
		!strings.Contains(err.Error(), "vmid-range 10000-10100 is used up") || !strings.Contains(err.Error(), "set a vmid-range that reaches further") {
		t.Errorf("a lower range: got %v", err)
	}
}

func TestAllocateExhausted(t *testing.T) {
	t.Parallel()
	a := NewIDs(Config{Dir: newDir(t)})
	r := Range{100, 102}
	for range 3 {
		allocate(t, a, r, nil)
	}
	_, err := a.Allocate(t.Context(), r, nil)
	_ = wantErr[*RangeError](t, err)
	_, err = a.Allocate(t.Context(), Range{103, 105}, func(int) bool { return true })
	_ = wantErr[*RangeError](t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Allocate(ctx, Range{103, 105}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	check(t, os.WriteFile(a.dir.file("junk"), nil, 0o600))
	check(t, os.WriteFile(a.dir.file("00200"), nil, 0o600))
	check(t, os.WriteFile(a.dir.file("-7"), nil, 0o600))
	if got := allocate(t, a, Range{103, 105}, nil); got != 103 {
		t.Errorf("names that are no numbers: got %d", got)
	}
}

// slow delays every operation for a random time, which inside a bubble takes none: each run is another interleaving.
type slow struct {
	disk
}

func pause() { time.Sleep(time.Duration(rand.IntN(1000))) }

func (s slow) list(dir string) ([]string, error) {
	pause()
	names, err := s.disk.list(dir)
	pause()
	return names, err
}

func (s slow) create(path string) (file, error) {
	pause()
	f, err := s.disk.create(path)
	pause()
	return f, err
}

func (s slow) remove(path string) error {
	pause()
	return s.disk.remove(path)
}

// span is one allocation, by a clock that counts calls.
type span struct {
	id, began, ended int64
}

// However operations are delayed against each other, no number is given out twice, and one that is asked for after
// another was given out is higher.
func TestAllocateConcurrently(t *testing.T) {
	t.Parallel()
	for range 8 {
		dir := newDir(t)
		synctest.Test(t, func(t *testing.T) {
			checkSpans(t, allocateMany(t, dir, dir, func() files { return slow{} }))
		})
	}
}

// The same without delays, in real time.
func TestAllocateRace(t *testing.T) {
	t.Parallel()
	dir := newDir(t)
	checkSpans(t, allocateMany(t, dir, dir, func() files { return disk{} }))
}

// allocateMany allocates from 16 goroutines, over two processes' worth of IDs.
func allocateMany(t *testing.T, dirA, dirB string, f func() files) []span {
	t.Helper()
	both := []*IDs{newIDs(Config{Dir: dirA}, f()), newIDs(Config{Dir: dirB}, f())}
	var (
		clock atomic.Int64
		wg    sync.WaitGroup
		mu    sync.Mutex
		spans []span
	)
	for i := range 16 {
		wg.Go(func() {
			for range 10 {
				began := clock.Add(1)
				id, err := both[i%2].Allocate(t.Context(), Range{10000, 99999}, func(id int) bool { return id%7 == 0 })
				ended := clock.Add(1)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				spans = append(spans, span{int64(id), began, ended})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return spans
}

func checkSpans(t *testing.T, spans []span) {
	t.Helper()
	if len(spans) != 160 {
		t.Fatalf("%d allocations", len(spans))
	}
	for i, a := range spans {
		if a.id%7 == 0 {
			t.Errorf("%d is taken", a.id)
		}
		for _, b := range spans[i+1:] {
			if a.id == b.id {
				t.Errorf("%d was given out twice", a.id)
			}
			if a.ended < b.began && a.id >= b.id || b.ended < a.began && b.id >= a.id {
				t.Errorf("%+v and %+v: not upward", a, b)
			}
		}
	}
}

// gate stops the first creation of a file until it is opened.
type gate struct {
	disk
	once    sync.Once
	reached chan string
	open    chan struct{}
	created []string
}

func (g *gate) create(path string) (file, error) {
	g.once.Do(func() {
		g.reached <- path
		<-g.open
	})
	f, err := g.disk.create(path)
	if err == nil {
		g.created = append(g.created, path)
	}
	return f, err
}

// B has looked and wants h. Meanwhile A gives out h and many more, and removes the mark of h. B creates h again, which
// nothing prevents; and must not give it out.
func TestAllocateStaleListing(t *testing.T) {
	t.Parallel()
	for meanwhile := 1; meanwhile <= 3*keptMarks; meanwhile++ {
		t.Run(strconv.Itoa(meanwhile), func(t *testing.T) {
			t.Parallel()
			cfg, r := Config{Dir: newDir(t)}, Range{10000, 19999}
			a := NewIDs(cfg)
			last := allocate(t, a, r, nil)
			stale := &gate{reached: make(chan string), open: make(chan struct{})}
			b := newIDs(cfg, stale)
			got := make(chan int, 1)
			go func() {
				id, err := b.Allocate(t.Context(), r, nil)
				if err != nil {
					t.Error(err)
				}
				got <- id
			}()
			h := <-stale.reached
			for range meanwhile {
				last = allocate(t, a, r, nil)
			}
			_, err := os.Stat(h)
			if pruned := meanwhile > keptMarks; errors.Is(err, os.ErrNotExist) != pruned {
				t.Fatalf("the mark of h: %v", err)
			}
			close(stale.open)
			if id := <-got; id != last+1 {
				t.Errorf("got %d, want %d", id, last+1)
			}
			if createdAgain := slices.Contains(stale.created, h); createdAgain != (meanwhile > keptMarks) {
				t.Errorf("h was created again: %v", createdAgain)
			}
		})
	}
}

// vanishing forgets what is created, as a directory does that is mounted over.
type vanishing struct {
	disk
}

func (v vanishing) create(path string) (file, error) {
	f, err := v.disk.create(path)
	if err == nil {
		err = v.remove(path)
	}
	return f, err
}

func TestAllocateVanishing(t *testing.T) {
	t.Parallel()
	a := newIDs(Config{Dir: newDir(t)}, vanishing{})
	if id, err := a.Allocate(t.Context(), Range{100, 200}, nil); err == nil || !strings.Contains(err.Error(), "vanished") {
		t.Errorf("got %d, %v", id, err)
	}
}
