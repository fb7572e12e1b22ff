// Package view is what one agent knows of all agents: what each said of itself
// last, and how long ago. It computes only: time comes in as an argument, and
// nothing goes out but return values.
//
// What two agents know can be merged in any order, any number of times, and
// comes to the same; what is newer is never replaced by what is older.
package view

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Stale is the age at which a digest is no longer believed: three heartbeats.
const Stale = 45 * time.Second

// Node is what is known of one node.
type Node struct {
	Digest   Digest
	DigestAt time.Time // when Digest was true, by our clock; zero: there is none
	Facts    Facts
	FactsAt  time.Time // when Facts were true, by our clock; zero: there are none
}

// DigestAge is how old Digest is. It is false if there is none.
func (n Node) DigestAge(now time.Time) (time.Duration, bool) { return age(n.DigestAt, now) }

// FactsAge is how old Facts are. It is false if there are none.
func (n Node) FactsAge(now time.Time) (time.Duration, bool) { return age(n.FactsAt, now) }

// Usable says whether new VMs may be placed on the node as far as it has told:
// lately, with quorum, neither cordoned nor draining. Whether it is alive is not
// known here.
func (n Node) Usable(now time.Time) bool {
	age, known := n.DigestAge(now)
	return known && age < Stale && n.Digest.Quorate && !n.Digest.Cordoned && !n.Digest.Draining
}

func age(at, now time.Time) (time.Duration, bool) {
	return max(0, now.Sub(at)), !at.IsZero()
}

// Origin is who speaks. The address belongs to it because two agents may claim
// one name: what the wrong one says must not replace what the right one says.
type Origin struct {
	Name    string         // of the node
	Address netip.AddrPort // where its agent gossips
}

func (o Origin) compare(other Origin) int {
	return cmp.Or(strings.Compare(o.Name, other.Name), o.Address.Compare(other.Address))
}

// View is what is known of all nodes. Its zero value knows of none. It is not
// safe for concurrent use.
type View struct {
	entries map[Origin]entry
}

// entry holds both values twice: encoded as they came, so that they are passed
// on with what this version does not know, and decoded.
type entry struct {
	digest, facts value
	node          Node
}

// value is something a node said of itself. The order of compare is total, and
// merging is taking the greater one: that makes it commutative, associative and
// idempotent.
type value struct {
	stamp Stamp
	wire  []byte
	at    time.Time
}

// compare puts the newer value last. Of one value that came in two ways, the
// greater is the older one: ages leave out the time on the way, so the greatest
// age is nearest to the truth. Different values with one stamp should not be; if
// there are, everybody chooses the same.
func (v value) compare(other value) int {
	return cmp.Or(v.stamp.Compare(other.stamp), bytes.Compare(v.wire, other.wire), other.at.Compare(v.at))
}

// News is what of a report was new: more than a better known age.
type News struct{ Digest, Facts bool }

// Merge takes what a report has that is newer. A value that cannot be read is
// left out, with an error that wraps ErrEncoding. Nothing of the report is kept
// but copies.
func (v *View) Merge(now time.Time, r Report) (News, error) {
	e := v.entries[r.Origin]
	var news News
	var badDigest, badFacts error
	news.Digest, badDigest = e.mergeDigest(r.Digest, now.Add(-r.DigestAge))
	news.Facts, badFacts = e.mergeFacts(r.Facts, now.Add(-r.FactsAge))
	if e.digest.wire != nil || e.facts.wire != nil {
		if v.entries == nil {
			v.entries = map[Origin]entry{}
		}
		v.entries[r.Origin] = e
	}
	if err := errors.Join(badDigest, badFacts); err != nil {
		return news, fmt.Errorf("%s at %s: %w", r.Name, r.Address, err)
	}
	return news, nil
}

func (e *entry) mergeDigest(wire []byte, at time.Time) (news bool, err error) {
	got, newer, err := e.digest.newer(wire, at)
	if !newer || err != nil {
		return false, err
	}
	if news = !bytes.Equal(wire, e.digest.wire); news {
		if err := e.node.Digest.UnmarshalBinary(wire); err != nil {
			return false, err
		}
		e.digest.wire = bytes.Clone(wire)
	}
	e.digest.stamp, e.digest.at, e.node.DigestAt = got.stamp, at, at
	return news, nil
}

func (e *entry) mergeFacts(wire []byte, at time.Time) (news bool, err error) {
	got, newer, err := e.facts.newer(wire, at)
	if !newer || err != nil {
		return false, err
	}
	if news = !bytes.Equal(wire, e.facts.wire); news {
		if err := e.node.Facts.UnmarshalBinary(wire); err != nil {
			return false, err
		}
		e.facts.wire = bytes.Clone(wire)
	}
	e.facts.stamp, e.facts.at, e.node.FactsAt = got.stamp, at, at
	return news, nil
}

// newer is what has come as a value, and whether it replaces v.
func (v value) newer(wire []byte, at time.Time) (value, bool, error) {
	if wire == nil {
		return value{}, false, nil
	}
	stamp, err := readStamp(wire)
	got := value{stamp, wire, at}
	return got, err == nil && (v.wire == nil || got.compare(v) > 0), err
}

// Node is what is known of one node. It is false if nothing is. Its slices and
// maps are shared and must not be changed.
func (v *View) Node(o Origin) (Node, bool) {
	e, known := v.entries[o]
	return e.node, known
}

// Reports are all values that are at most oldest old, in the order of their
// origins, to be passed on.
func (v *View) Reports(now time.Time, oldest time.Duration) []Report {
	var out []Report
	for _, o := range slices.SortedFunc(maps.Keys(v.entries), Origin.compare) {
		e, r := v.entries[o], Report{Origin: o}
		if age, known := e.node.DigestAge(now); known && age <= oldest {
			r.Digest, r.DigestAge = e.digest.wire, age
		}
		if age, known := e.node.FactsAge(now); known && age <= oldest {
			r.Facts, r.FactsAge = e.facts.wire, age
		}
		if r.Digest != nil || r.Facts != nil {
			out = append(out, r)
		}
	}
	return out
}

// Forget drops the origins that are not kept and of which nothing is known that
// is at most oldest old.
func (v *View) Forget(now time.Time, oldest time.Duration, keep func(Origin) bool) {
	maps.DeleteFunc(v.entries, func(o Origin, e entry) bool {
		digest, hasDigest := e.node.DigestAge(now)
		facts, hasFacts := e.node.FactsAge(now)
		return !keep(o) && (!hasDigest || digest > oldest) && (!hasFacts || facts > oldest)
	})
}
