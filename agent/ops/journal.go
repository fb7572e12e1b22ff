package ops

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// journalVersion is the layout of the file. A newer one is refused: a downgrade must not misread operations.
const journalVersion = 1

var (
	bucketMeta   = []byte("meta")   // "version" -> big-endian uint64
	bucketOps    = []byte("ops")    // operation id -> Op as JSON
	bucketActive = []byte("active") // operation id of every running operation -> empty
	bucketEvents = []byte("events") // big-endian sequence -> Event as JSON
)

// Event is one entry of the node's event log.
type Event struct {
	Seq     uint64    `json:"-"`
	At      time.Time `json:"at"`
	Op      string    `json:"op"`
	Kind    Kind      `json:"kind"`
	Subject Subject   `json:"subject"`
	What    What      `json:"what"`
	Step    string    `json:"step,omitempty"`
	UPID    string    `json:"upid,omitempty"`
	Message string    `json:"message,omitempty"`
}

// What says what an event is about.
type What string

// The events of an operation's life.
const (
	Asked     What = "asked"     // the operation was accepted
	StepBegan What = "begin"     // a step was begun
	StepTask  What = "task"      // a step's PVE task became known
	StepEnded What = "end"       // a step has ended well
	Noted     What = "note"      // the handler changed what it remembers
	Succeeded What = "succeeded" // the operation ended well
	Broke     What = "failed"    // the operation ended with an error
)

// Journal is the operation journal of one node: one file, one process.
type Journal struct {
	db   *bolt.DB
	path string
}

// OpenJournal opens or creates the journal at path, making its directory (0700) if need be. It fails when another
// process has it open, and when a newer version of pve-rigaud wrote it.
func OpenJournal(path string) (*Journal, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open journal %s: another process has it open (is the agent running already?)", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	j := &Journal{db: db, path: path}
	if err := j.prepare(); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return j, nil
}

func (j *Journal) prepare() error {
	return j.db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{bucketMeta, bucketOps, bucketActive, bucketEvents, bucketDecisions} {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return fmt.Errorf("prepare journal %s: %w", j.path, err)
			}
		}
		meta := tx.Bucket(bucketMeta)
		v := meta.Get([]byte("version"))
		if len(v) == 8 && binary.BigEndian.Uint64(v) > journalVersion {
			return fmt.Errorf("journal %s has version %d, this pve-rigaud reads up to %d: upgrade it again, or move the file away",
				j.path, binary.BigEndian.Uint64(v), journalVersion)
		}
		return meta.Put([]byte("version"), binary.BigEndian.AppendUint64(nil, journalVersion))
	})
}

// Close closes the file.
func (j *Journal) Close() error { return j.db.Close() }

// Size returns the size of the file in bytes.
func (j *Journal) Size() int64 {
	st, err := os.Stat(j.path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// Op returns an operation by id; ok is false when the journal does not know it.
func (j *Journal) Op(id string) (op Op, ok bool, err error) {
	err = j.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketOps).Get([]byte(id))
		if b == nil {
			return nil
		}
		ok = true
		return json.Unmarshal(b, &op)
	})
	if err != nil {
		err = fmt.Errorf("journal: read operation %s: %w", id, err)
	}
	return op, ok, err
}

// Active returns the operations that are not at their end, oldest first.
func (j *Journal) Active() ([]Op, error) {
	var active []Op
	err := j.db.View(func(tx *bolt.Tx) error {
		ops := tx.Bucket(bucketOps)
		return tx.Bucket(bucketActive).ForEach(func(id, _ []byte) error {
			var op Op
			if err := json.Unmarshal(ops.Get(id), &op); err != nil {
				return fmt.Errorf("journal: read operation %s: %w", id, err)
			}
			active = append(active, op)
			return nil
		})
	})
	return active, err
}

// Events calls f for every event from sequence number from on, in order, until f returns false.
func (j *Journal) Events(from uint64, f func(Event) bool) error {
	return j.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketEvents).Cursor()
		for k, v := c.Seek(sequenceKey(from)); k != nil; k, v = c.Next() {
			ev := Event{Seq: binary.BigEndian.Uint64(k)}
			if err := json.Unmarshal(v, &ev); err != nil {
				return fmt.Errorf("journal: read event %d: %w", ev.Seq, err)
			}
			if !f(ev) {
				return nil
			}
		}
		return nil
	})
}

// write stores op and the event that says why, in one transaction that is on the disk when write returns.
func (j *Journal) write(op Op, ev Event) error {
	ob, err := json.Marshal(op)
	if err != nil {
		return fmt.Errorf("journal: encode operation %s: %w", op.ID, err)
	}
	eb, err := json.Marshal(ev)
	if err != nil {
		return fmt.Errorf("journal: encode event of %s: %w", op.ID, err)
	}
	err = j.db.Update(func(tx *bolt.Tx) error {
		active := tx.Bucket(bucketActive)
		mark := active.Delete
		if op.State == Running {
			mark = func(k []byte) error { return active.Put(k, nil) }
		}
		if err := mark([]byte(op.ID)); err != nil {
			return err
		}
		if err := tx.Bucket(bucketOps).Put([]byte(op.ID), ob); err != nil {
			return err
		}
		events := tx.Bucket(bucketEvents)
		seq, err := events.NextSequence()
		if err != nil {
			return err
		}
		return events.Put(sequenceKey(seq), eb)
	})
	if err != nil {
		return fmt.Errorf("journal %s: write operation %s: %w", j.path, op.ID, err)
	}
	return nil
}

// amend changes a finished operation without an event; it is a no-op for an unknown id.
func (j *Journal) amend(id string, change func(*Op)) error {
	return j.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bucketOps)
		var op Op
		v := b.Get([]byte(id))
		if v == nil {
			return nil
		}
		if err := json.Unmarshal(v, &op); err != nil {
			return fmt.Errorf("journal: read operation %s: %w", id, err)
		}
		change(&op)
		v, err := json.Marshal(op)
		if err != nil {
			return fmt.Errorf("journal: encode operation %s: %w", id, err)
		}
		return b.Put([]byte(id), v)
	})
}

// Prune removes operations that ended before the given time, and events older than it. A reference to a pruned
// operation stays answerable, because it carries its kind and subject itself.
func (j *Journal) Prune(ctx context.Context, before time.Time) (removed int, err error) {
	err = j.db.Update(func(tx *bolt.Tx) error {
		n, err := pruneBucket(ctx, tx.Bucket(bucketOps), func(v []byte) (bool, bool) {
			var op Op
			if json.Unmarshal(v, &op) != nil {
				return false, true
			}
			return op.State != Running && op.Updated.Before(before), true
		})
		removed = n
		if err != nil {
			return err
		}
		for _, name := range [][]byte{bucketEvents, bucketDecisions} {
			_, err = pruneBucket(ctx, tx.Bucket(name), func(v []byte) (bool, bool) {
				var dated struct{ At time.Time }
				old := json.Unmarshal(v, &dated) == nil && dated.At.Before(before)
				return old, old // they stand in order of time: stop at the first that stays
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("journal %s: prune: %w", j.path, err)
	}
	return removed, nil
}

// pruneBucket deletes what judge says to drop, until judge says not to go on.
func pruneBucket(ctx context.Context, b *bolt.Bucket, judge func(v []byte) (drop, goOn bool)) (int, error) {
	var keys [][]byte
	c := b.Cursor()
	for k, v := c.First(); k != nil; k, v = c.Next() {
		drop, goOn := judge(v)
		if drop {
			keys = append(keys, k)
		}
		if !goOn || ctx.Err() != nil {
			break
		}
	}
	for _, k := range keys {
		if err := b.Delete(k); err != nil {
			return 0, err
		}
	}
	return len(keys), ctx.Err()
}

func sequenceKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
