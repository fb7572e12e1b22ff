package view

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// maxName is how many bytes the name of a node may have.
const maxName = 255

// Report is what travels about one node, also through others: what it said of
// itself, encoded by itself, and how old that was when the report was sent.
type Report struct {
	Origin
	Digest    []byte // an encoded Digest, or nil
	DigestAge time.Duration
	Facts     []byte // encoded Facts, or nil
	FactsAge  time.Duration
}

// Stamp is the newer one of those of its values, the zero Stamp if it has none
// that can be read.
func (r Report) Stamp() Stamp {
	var newest Stamp
	for _, wire := range [][]byte{r.Digest, r.Facts} {
		if s, err := readStamp(wire); err == nil && s.Compare(newest) > 0 {
			newest = s
		}
	}
	return newest
}

// version is the first byte of a message. A change of it means that nothing else
// can be read; additions are new fields.
const version = 1

// The fields of a message and of a report in it, which are protobuf messages. A
// number is never used for anything else. Ages are in ms and do not change their
// length, so that they can be renewed.
const (
	fieldReport protowire.Number = 1 // message, repeated

	fieldName      protowire.Number = 1 // string
	fieldAddress   protowire.Number = 2 // bytes, as of netip.AddrPort.MarshalBinary
	fieldFacts     protowire.Number = 3 // message
	fieldFactsAge  protowire.Number = 4 // fixed32, ms
	fieldDigest    protowire.Number = 5 // message
	fieldDigestAge protowire.Number = 6 // fixed32, ms; last
)

// Encode makes a message of reports.
func Encode(reports ...Report) ([]byte, error) {
	b := []byte{version}
	for _, r := range reports {
		one, err := r.encode()
		if err != nil {
			return nil, fmt.Errorf("encode report: %w", err)
		}
		b = appendBytes(b, fieldReport, one)
	}
	return b, nil
}

func (r Report) encode() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	address, err := r.Address.MarshalBinary()
	if err != nil {
		return nil, err
	}
	b := appendBytes(appendText(nil, fieldName, r.Name), fieldAddress, address)
	if r.Facts != nil {
		b = appendFixed(appendBytes(b, fieldFacts, r.Facts), fieldFactsAge, encodeAge(r.FactsAge))
	}
	if r.Digest != nil {
		b = appendFixed(appendBytes(b, fieldDigest, r.Digest), fieldDigestAge, encodeAge(r.DigestAge))
	}
	return b, nil
}

// Renew returns the message of one report that has only a digest as it is to be
// sent later: with another age, and of the same length.
func Renew(message []byte, digestAge time.Duration) []byte {
	out := slices.Clone(message)
	binary.LittleEndian.PutUint32(out[len(out)-4:], encodeAge(digestAge))
	return out
}

func encodeAge(d time.Duration) uint32 {
	return uint32(min(max(0, d.Milliseconds()), math.MaxUint32))
}

// Decode reads a message. What is wrong with one report does not hinder the
// others: both reports and an error may be returned. Reports share the memory of
// the message.
func Decode(message []byte) ([]Report, error) {
	if len(message) == 0 || message[0] != version {
		return nil, fmt.Errorf("decode message: %w: version %.1x, known is %d", ErrEncoding, message, version)
	}
	var out []Report
	var bad []error
	err := eachField(message[1:], func(f field) error {
		if f.number != fieldReport {
			return nil
		}
		var r Report
		if err := r.decode(f); err != nil {
			bad = append(bad, fmt.Errorf("decode report: %w", err))
			return nil
		}
		out = append(out, r)
		return nil
	})
	if err != nil {
		bad = append(bad, fmt.Errorf("decode message: %w", err))
	}
	return out, errors.Join(bad...)
}

func (r *Report) decode(f field) error {
	var factsAge, digestAge uint32
	err := f.message(func(f field) error {
		switch f.number {
		case fieldName:
			return f.text(&r.Name)
		case fieldAddress:
			var b []byte
			return errors.Join(f.bytes(&b), r.Address.UnmarshalBinary(b))
		case fieldFacts:
			return f.bytes(&r.Facts)
		case fieldFactsAge:
			return f.fixed(&factsAge)
		case fieldDigest:
			return f.bytes(&r.Digest)
		case fieldDigestAge:
			return f.fixed(&digestAge)
		}
		return nil
	})
	r.FactsAge = time.Duration(factsAge) * time.Millisecond
	r.DigestAge = time.Duration(digestAge) * time.Millisecond
	return errors.Join(err, r.check())
}

// check holds for every report that is sent or received.
func (r Report) check() error {
	if r.Name == "" || len(r.Name) > maxName || !r.Address.IsValid() {
		return fmt.Errorf("%w: origin %q at %s", ErrEncoding, r.Name, r.Address)
	}
	return nil
}
