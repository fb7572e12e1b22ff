package ops

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
)

// Decided is the event of a decision: on which node a VM is to be.
const Decided What = "decided"

// bucketDecisions holds decisions as JSON by the sequence of their events: those are too many to be searched.
var bucketDecisions = []byte("decisions")

// Decision is where a VM is to be, and why, as this node's agent found.
type Decision struct {
	At      time.Time       `json:"at"`
	Subject Subject         `json:"subject"`
	Act     string          `json:"act"`     // what it was for: create, clone, drain, ...
	Message string          `json:"message"` // in one line
	Data    json.RawMessage `json:"data"`    // the whole of it, in the form of who decided
}

// Decide journals decisions, each with an event that says the same in one line.
func (j *Journal) Decide(decisions ...Decision) error {
	err := j.db.Update(func(tx *bolt.Tx) error {
		for _, d := range decisions {
			if err := decide(tx, d); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("journal %s: write decisions: %w", j.path, err)
	}
	return nil
}

func decide(tx *bolt.Tx, d Decision) error {
	whole, err := json.Marshal(d)
	if err != nil {
		return err
	}
	event, err := json.Marshal(Event{At: d.At, Kind: Kind(d.Act), Subject: d.Subject, What: Decided, Message: d.Message})
	if err != nil {
		return err
	}
	events := tx.Bucket(bucketEvents)
	seq, err := events.NextSequence()
	if err != nil {
		return err
	}
	if err := events.Put(sequenceKey(seq), event); err != nil {
		return err
	}
	return tx.Bucket(bucketDecisions).Put(sequenceKey(seq), whole)
}

// Decisions calls f for every decision, newest first, until f returns false.
func (j *Journal) Decisions(f func(Decision) bool) error {
	return j.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucketDecisions).Cursor()
		for k, v := c.Last(); k != nil; k, v = c.Prev() {
			var d Decision
			if err := json.Unmarshal(v, &d); err != nil {
				return fmt.Errorf("journal: read decision %d: %w", binary.BigEndian.Uint64(k), err)
			}
			if !f(d) {
				return nil
			}
		}
		return nil
	})
}
