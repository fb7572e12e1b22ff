package record

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
)

// tempMark is in the name of a file that is written before it replaces another.
const tempMark = ".tmp-"

// Claim is a record that we hold. It is safe for concurrent use.
type Claim struct {
	store *Store
	mu    sync.Mutex // guards rec, and is held while the file changes
	rec   Record
}

// Hold is the claim of a record of ours, as after a restart. Check tells whether it still is.
func (s *Store) Hold(r Record) *Claim { return &Claim{store: s, rec: r} }

// Record is what the claim's file says, as we last wrote or read it.
func (c *Claim) Record() Record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.clone()
}

func (r Record) clone() Record {
	r.Tags, r.Volumes, r.Snippets, r.Made = slices.Clone(r.Tags), slices.Clone(r.Volumes), slices.Clone(r.Snippets), maps.Clone(r.Made)
	return r
}

// Check looks whether we still hold the claim: ErrLost if not. Call it before each PVE call. It costs two opens.
func (c *Claim) Check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.lockedCheck()
	return err
}

// lockedCheck returns the record as it is on file. That our file is there and the next generation is not means that ours
// is the highest: generations have no gaps.
func (c *Claim) lockedCheck() (Record, error) {
	h := hash(c.rec.Owner, c.rec.Name)
	r, err := c.store.readFile(fileName(h, c.rec.Generation))
	if errors.Is(err, fs.ErrNotExist) {
		if err := c.store.dir.mounted(); err != nil {
			return Record{}, fmt.Errorf("check claim of %q: %w", c.rec.Name, err)
		}
		return Record{}, c.lost()
	}
	if err == nil && r.Token != c.rec.Token {
		return Record{}, c.lost()
	}
	if err != nil {
		return Record{}, fmt.Errorf("check claim of %q: %w", c.rec.Name, err)
	}
	next, err := c.store.readFile(fileName(h, c.rec.Generation+1))
	var torn *IncompleteError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil && !errors.As(err, &torn):
		return Record{}, fmt.Errorf("check claim of %q: %w", c.rec.Name, err)
	case err == nil && next.Over != "" && next.Over != r.Token:
		return r, nil // it takes over a claim of the same name that was released before ours, and will find that out
	default:
		return Record{}, c.lost()
	}
}

func (c *Claim) lost() error {
	return fmt.Errorf("vm %q, generation %d: %w", c.rec.Name, c.rec.Generation, ErrLost)
}

// Update checks the claim and rewrites its file: f gets the record as it is on file. What belongs to the claim itself
// (Owner, Name, Token, Over, Generation) does not change, nor VMID and UUID once the state is Ready.
func (c *Claim) Update(f func(*Record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old, err := c.lockedCheck()
	if err != nil {
		return err
	}
	r := old.clone()
	f(&r)
	r.Owner, r.Name, r.Token, r.Over, r.Generation = old.Owner, old.Name, old.Token, old.Over, old.Generation
	if old.State == Ready && (r.VMID != old.VMID || r.UUID != old.UUID) {
		return fmt.Errorf("update record of %q: vmid and uuid of a vm that is ready never change", r.Name)
	}
	if err := c.store.replace(r); err != nil {
		return fmt.Errorf("update record of %q: %w", r.Name, err)
	}
	c.rec = r
	// A take-over between the check and the rename removed our file, and the rename brought it back.
	_, err = c.lockedCheck()
	return err
}

// replace writes a record over its file: a reader sees the old one or the new one.
func (s *Store) replace(r Record) error {
	name := fileName(hash(r.Owner, r.Name), r.Generation)
	temp := name + tempMark + newToken()
	if err := s.write(temp, r); err != nil {
		return err
	}
	if err := s.dir.rename(s.dir.file(temp), s.dir.file(name)); err != nil {
		return errors.Join(err, s.dir.drop(temp))
	}
	return nil
}

// Release removes the record, if it is still ours: the VM is gone, or was never made. A record that is gone already, with
// no other generation in its place, is no error.
func (c *Claim) Release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := hash(c.rec.Owner, c.rec.Name)
	if _, err := c.lockedCheck(); err != nil {
		generations, lerr := c.store.generations(h)
		if errors.Is(err, ErrLost) && lerr == nil && len(generations) == 0 {
			return nil
		}
		return errors.Join(err, lerr)
	}
	if err := c.store.dropBelow(h, c.rec.Generation+1); err != nil {
		return fmt.Errorf("release record of %q: %w", c.rec.Name, err)
	}
	return nil
}
