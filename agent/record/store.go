package record

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// parallel is how many files List reads at once.
	parallel = 8
	// attempts is how often a call starts again because files came and went under it.
	attempts = 5
)

// Config says where the records are.
type Config struct {
	// Dir is <pmxcfs>/priv/pve-rigaud. It is created when first needed; the directory above it must exist.
	Dir string
	// Now is the clock that records are dated by; default time.Now.
	Now func() time.Time
}

// Store is the records of the cluster. It is safe for concurrent use, in several processes and on several nodes.
type Store struct {
	dir folder
	now func() time.Time

	mu     sync.Mutex // guards byVMID
	byVMID map[int]string
}

// New makes a Store. Nothing is read or created.
func New(cfg Config) *Store { return newStore(cfg, disk{}) }

func newStore(cfg Config, f files) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{dir: newFolder(f, cfg.Dir, "vms"), now: cfg.Now, byVMID: make(map[int]string)}
}

// Take claims owner and name for the VM that r describes: it creates the first generation. If they are claimed already
// the error is *ExistsError, or *IncompleteError while that claim is being written. Generation, Token, Over and, if zero,
// Created are set here; see Claim.Record.
func (s *Store) Take(r Record) (*Claim, error) {
	h := hash(r.Owner, r.Name)
	r.Generation, r.Token, r.Over = 1, newToken(), ""
	if r.Created.IsZero() {
		r.Created = s.now().UTC()
	}
	for range attempts {
		if err := s.vacant(h); err != nil {
			return nil, fmt.Errorf("claim %q: %w", r.Name, err)
		}
		claim, err := s.create(h, r)
		if !errors.Is(err, fs.ErrExist) {
			return claim, err
		}
	}
	return nil, fmt.Errorf("claim %q: it came and went %d times", r.Name, attempts)
}

// vacant returns nil if nobody holds a claim, else who does.
func (s *Store) vacant(h string) error {
	r, found, err := s.find(h)
	if err == nil && found {
		err = &ExistsError{Record: r}
	}
	return err
}

// exists is the error for a claim that somebody else has, even if it was released just now.
func (s *Store) exists(h string) error {
	if err := s.vacant(h); err != nil {
		return err
	}
	return fmt.Errorf("it came and went: %w", fs.ErrExist)
}

// create writes a new claim and makes sure that it holds: a higher generation may have come from someone who had not
// seen that the one before it was released.
func (s *Store) create(h string, r Record) (*Claim, error) {
	name := fileName(h, r.Generation)
	if err := s.write(name, r); err != nil {
		return nil, fmt.Errorf("claim %q: %w", r.Name, err)
	}
	generations, err := s.generations(h)
	switch {
	case err != nil:
	case !slices.Contains(generations, r.Generation):
		err = ErrLost
	case generations[len(generations)-1] > r.Generation:
		err = s.exists(h)
	default:
		return &Claim{store: s, rec: r}, nil
	}
	return nil, errors.Join(fmt.Errorf("claim %q: %w", r.Name, err), s.dir.drop(name))
}

// write creates a file with a record in it. What could not be written whole is removed again.
func (s *Store) write(name string, r Record) error {
	raw, err := r.encode()
	if err != nil {
		return err
	}
	f, err := s.dir.createIn(name)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, s.dir.drop(name))
	}
	return nil
}

// Find returns the record for owner and name: the highest generation. *IncompleteError while that is being written.
func (s *Store) Find(owner, name string) (Record, bool, error) {
	r, found, err := s.find(hash(owner, name))
	if err != nil {
		return Record{}, false, fmt.Errorf("find record of %q: %w", name, err)
	}
	return r, found, nil
}

func (s *Store) find(h string) (Record, bool, error) {
	for range attempts {
		generations, err := s.generations(h)
		if err != nil || len(generations) == 0 {
			return Record{}, false, err
		}
		r, err := s.readFile(fileName(h, generations[len(generations)-1]))
		if !errors.Is(err, fs.ErrNotExist) {
			return r, err == nil, err
		}
	}
	return Record{}, false, fmt.Errorf("%s: generations came and went %d times", s.dir.file(h), attempts)
}

// generations lists the generations of one hash, lowest first.
func (s *Store) generations(h string) ([]int, error) {
	names, err := s.dir.names()
	if err != nil {
		return nil, err
	}
	var list []int
	for _, name := range names {
		if of, generation, ok := parseFileName(name); ok && of == h {
			list = append(list, generation)
		}
	}
	slices.Sort(list)
	return list, nil
}

// readFile reads one record file: *IncompleteError if it is not whole, *FormatError if it is no record.
func (s *Store) readFile(name string) (Record, error) {
	path := s.dir.file(name)
	raw, err := s.dir.read(path)
	if err != nil {
		return Record{}, err
	}
	h, generation, _ := parseFileName(name)
	if !wholeFile(raw) {
		modified, err := s.dir.modTime(path)
		if err != nil {
			return Record{}, err
		}
		return Record{}, &IncompleteError{Incomplete{Path: path, Hash: h, Generation: generation, ModTime: modified}}
	}
	r, err := decode(path, raw)
	r.Generation = generation
	return r, err
}

// TakeOver claims what old holds, whose holder is dead (who decides that is the caller's business), for next: it
// creates the generation after old's. Owner and Name are old's. A half-written file is taken over by its Owner, Name and
// Generation, once it is older than 60 s; before that the error is *IncompleteError. *ExistsError says that another
// was faster, ErrLost that old is not there any more.
func (s *Store) TakeOver(old, next Record) (*Claim, error) {
	h := hash(old.Owner, old.Name)
	next.Owner, next.Name = old.Owner, old.Name
	next.Generation, next.Token, next.Over = old.Generation+1, newToken(), old.Token
	if next.Created.IsZero() {
		next.Created = s.now().UTC()
	}
	if err := s.stillThere(h, old); err != nil {
		return nil, fmt.Errorf("take over %q: %w", old.Name, err)
	}
	claim, err := s.create(h, next)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("take over %q: %w", old.Name, s.exists(h))
	}
	if err != nil {
		return nil, err
	}
	// Had it been released before we created ours, then ours would hold what nobody gave us.
	if err := s.stillThere(h, old); err != nil {
		return nil, errors.Join(fmt.Errorf("take over %q: %w", old.Name, err), s.dir.drop(fileName(h, next.Generation)))
	}
	// What cannot be removed now does no harm: ours is the highest, and Release removes it.
	_ = s.dropBelow(h, next.Generation)
	return claim, nil
}

// stillThere checks that old's file is what it was.
func (s *Store) stillThere(h string, old Record) error {
	r, err := s.readFile(fileName(h, old.Generation))
	var torn *IncompleteError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrLost
	case errors.As(err, &torn) && old.Token == "" && torn.Dead(s.now()):
		return nil
	case err != nil:
		return err
	case old.Token == "":
		return &ExistsError{Record: r}
	case r.Token != old.Token:
		return ErrLost
	default:
		return nil
	}
}

// dropBelow removes the generations below one, from the lowest up, so that what is left never has a gap.
func (s *Store) dropBelow(h string, generation int) error {
	generations, err := s.generations(h)
	if err != nil {
		return err
	}
	for _, g := range generations {
		if g >= generation {
			break
		}
		if err := s.dir.drop(fileName(h, g)); err != nil {
			return err
		}
	}
	return nil
}

// Listing is what List found.
type Listing struct {
	Records    []Record     // the highest generation of each, ordered by VMID
	Incomplete []Incomplete // being written, or left so by a crash
	Broken     []error      // *FormatError: whole, but no record
}

// List reads all records.
func (s *Store) List() (Listing, error) {
	names, err := s.dir.names()
	if err != nil {
		return Listing{}, fmt.Errorf("list records: %w", err)
	}
	var (
		group errgroup.Group
		mu    sync.Mutex // guards list
		list  Listing
	)
	group.SetLimit(parallel)
	for _, name := range highest(names) {
		group.Go(func() error {
			r, err := s.readFile(name)
			mu.Lock()
			defer mu.Unlock()
			return list.add(r, err)
		})
	}
	if err := group.Wait(); err != nil {
		return Listing{}, fmt.Errorf("list records: %w", err)
	}
	slices.SortFunc(list.Records, func(a, b Record) int {
		if a.VMID != b.VMID {
			return a.VMID - b.VMID
		}
		return strings.Compare(a.Name, b.Name)
	})
	s.remember(list.Records)
	return list, nil
}

func (l *Listing) add(r Record, err error) error {
	var (
		torn   *IncompleteError
		broken *FormatError
	)
	switch {
	case err == nil:
		l.Records = append(l.Records, r)
	case errors.Is(err, fs.ErrNotExist): // removed meanwhile
	case errors.As(err, &torn):
		l.Incomplete = append(l.Incomplete, torn.Incomplete)
	case errors.As(err, &broken):
		l.Broken = append(l.Broken, err)
	default:
		return err
	}
	return nil
}

// highest picks the file of the highest generation of each hash.
func highest(names []string) []string {
	top := make(map[string]int)
	for _, name := range names {
		if h, generation, ok := parseFileName(name); ok {
			top[h] = max(top[h], generation)
		}
	}
	list := make([]string, 0, len(top))
	for h, generation := range top {
		list = append(list, fileName(h, generation))
	}
	return list
}

func (s *Store) remember(records []Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.byVMID)
	for _, r := range records {
		if r.VMID == 0 {
			continue
		}
		s.byVMID[r.VMID] = fileName(hash(r.Owner, r.Name), r.Generation)
	}
}

// ByVMID returns the record of the VM with that number. It is quick for one that was found or listed before; else it
// reads all of them. Whether it is the same VM, the caller tells by its UUID. *IncompleteError if a take-over is being
// written, which may be of that VM. (A first generation that is being written is of a VM that is not made yet.)
func (s *Store) ByVMID(vmid int) (Record, bool, error) {
	s.mu.Lock()
	name, ok := s.byVMID[vmid]
	s.mu.Unlock()
	if ok {
		if r, err := s.readFile(name); err == nil && r.VMID == vmid {
			return r, true, nil
		}
	}
	list, err := s.List()
	if err != nil {
		return Record{}, false, err
	}
	for _, r := range list.Records {
		if r.VMID == vmid {
			return r, true, nil
		}
	}
	for _, torn := range list.Incomplete {
		if torn.Generation > 1 {
			return Record{}, false, fmt.Errorf("find record of vm %d: %w", vmid, &IncompleteError{torn})
		}
	}
	return Record{}, false, nil
}

// Sweep removes what crashes left behind: files that have been half written for more than 60 s, and temporary files as
// old. It returns their paths.
func (s *Store) Sweep(now time.Time) ([]string, error) {
	names, err := s.dir.names()
	if err != nil {
		return nil, fmt.Errorf("sweep records: %w", err)
	}
	var removed []string
	for _, name := range names {
		if !s.dead(name, now) {
			continue
		}
		if err := s.dir.drop(name); err != nil {
			return removed, fmt.Errorf("sweep records: %w", err)
		}
		removed = append(removed, s.dir.file(name))
	}
	return removed, nil
}

func (s *Store) dead(name string, now time.Time) bool {
	if strings.Contains(name, tempMark) {
		modified, err := s.dir.modTime(s.dir.file(name))
		return err == nil && now.Sub(modified) > deadAfter
	}
	if _, _, ok := parseFileName(name); !ok {
		return false
	}
	_, err := s.readFile(name)
	var torn *IncompleteError
	return errors.As(err, &torn) && torn.Dead(now)
}
