package view

import (
	"errors"
	"fmt"
	"math"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrEncoding is wrapped by all errors about bytes that break the rules, ours or
// another node's.
var ErrEncoding = errors.New("bad encoding")

// field is one field of a message.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  []byte // without tag
}

// eachField calls set with the fields of a message in their order.
func eachField(data []byte, set func(field) error) error {
	for rest := data; len(rest) > 0; {
		number, kind, n := protowire.ConsumeField(rest)
		if n < 0 {
			return fmt.Errorf("%w: byte %d: %w", ErrEncoding, len(data)-len(rest), protowire.ParseError(n))
		}
		_, _, tag := protowire.ConsumeTag(rest)
		if err := set(field{number, kind, rest[tag:n]}); err != nil {
			return fmt.Errorf("%w: byte %d: field %d: %w", ErrEncoding, len(data)-len(rest), number, err)
		}
		rest = rest[n:]
	}
	return nil
}

var errRange = errors.New("number is out of range")

func (f field) is(kind protowire.Type) error {
	if f.kind != kind {
		return fmt.Errorf("has wire type %d", f.kind)
	}
	return nil
}

func (f field) uint64(to *uint64) error {
	if err := f.is(protowire.VarintType); err != nil {
		return err
	}
	*to, _ = protowire.ConsumeVarint(f.value)
	return nil
}

func (f field) uint32(to *uint32) error {
	var n uint64
	if err := f.uint64(&n); err != nil {
		return err
	}
	if n > math.MaxUint32 {
		return errRange
	}
	*to = uint32(n)
	return nil
}

func (f field) count(to *int) error {
	var n uint64
	if err := f.uint64(&n); err != nil {
		return err
	}
	if n > math.MaxInt32 {
		return errRange
	}
	*to = int(n)
	return nil
}

func (f field) fixed(to *uint32) error {
	if err := f.is(protowire.Fixed32Type); err != nil {
		return err
	}
	*to, _ = protowire.ConsumeFixed32(f.value)
	return nil
}

func (f field) bytes(to *[]byte) error {
	if err := f.is(protowire.BytesType); err != nil {
		return err
	}
	*to, _ = protowire.ConsumeBytes(f.value)
	return nil
}

func (f field) text(to *string) error {
	var b []byte
	if err := f.bytes(&b); err != nil {
		return err
	}
	if !utf8.Valid(b) {
		return errors.New("text is not UTF-8")
	}
	*to = string(b)
	return nil
}

func (f field) appendText(to *[]string) error {
	var s string
	err := f.text(&s)
	*to = append(*to, s)
	return err
}

func (f field) message(set func(field) error) error {
	var b []byte
	if err := f.bytes(&b); err != nil {
		return err
	}
	return eachField(b, set)
}

func appendNumber(b []byte, number protowire.Number, n uint64) []byte {
	if n == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), n)
}

func appendFixed(b []byte, number protowire.Number, n uint32) []byte {
	return protowire.AppendFixed32(protowire.AppendTag(b, number, protowire.Fixed32Type), n)
}

// appendBytes leaves nothing out: also an empty element of a list is one.
func appendBytes(b []byte, number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, number, protowire.BytesType), value)
}

func appendText(b []byte, number protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	return appendBytes(b, number, []byte(text))
}

// count is a number of things, of which there are neither less than none nor
// more than 2^31.
func count(n int) uint64 { return uint64(min(max(0, n), math.MaxInt32)) }

func (s Stamp) check() error {
	if s.Incarnation == 0 || s.Incarnation > MaxIncarnation || s.Sequence > MaxIncarnation {
		return fmt.Errorf("%w: incarnation %d, sequence %d", ErrEncoding, s.Incarnation, s.Sequence)
	}
	return nil
}

// readStamp reads the stamp of an encoded Digest or Facts, and nothing else.
func readStamp(wire []byte) (Stamp, error) {
	var s Stamp
	err := eachField(wire, func(f field) error {
		switch f.number {
		case fieldIncarnation:
			return f.uint64(&s.Incarnation)
		case fieldSequence:
			return f.uint64(&s.Sequence)
		}
		return nil
	})
	if err != nil {
		return Stamp{}, err
	}
	return s, s.check()
}
