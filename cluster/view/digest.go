package view

import (
	"cmp"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxDigest is how many bytes an encoded Digest may have: it is broadcast, and
// many of them have to fit into one UDP packet.
const MaxDigest = 120

// MaxIncarnation is the greatest Incarnation and Sequence there may be: there is
// always room to go on after one that was seen.
const MaxIncarnation = math.MaxUint64 / 2

// Stamp says which of two values of one origin is newer.
type Stamp struct {
	Incarnation uint64 // grows with each start of the agent; never 0
	Sequence    uint64 // grows with each value of one incarnation
}

// Compare is less than 0 if s is older than other.
func (s Stamp) Compare(other Stamp) int {
	return cmp.Or(cmp.Compare(s.Incarnation, other.Incarnation), cmp.Compare(s.Sequence, other.Sequence))
}

// Digest is what everybody has to know of a node at once: whether there is room
// on it. It is broadcast when it changes noticeably. It is a hint: the node
// checks again before it acts.
type Digest struct {
	Incarnation uint64 // start of the agent, in ms since 1970 or more; set by who sends it
	Sequence    uint64 // grows within an incarnation; set by who sends it

	MemoryFree     uint64 // bytes
	MemoryTotal    uint64 // bytes
	MemoryPromised uint64 // bytes that its VMs may use, running or starting, and its running containers
	MemoryReserved uint64 // bytes that no VM gets: the least that ZFS keeps for its cache
	VCPUs          uint32 // CPUs of the host
	VCPUsPromised  uint32 // of its VMs, running or starting
	Load           uint32 // load average of 1 min, in 1/100
	PSICPU         uint32 // pressure, some avg10, in 1/100 %
	PSIMemory      uint32 // pressure, some avg10, in 1/100 %
	PSIIO          uint32 // pressure, some avg10, in 1/100 %

	Cordoned bool // no new VMs here, please
	Quorate  bool // the node has quorum
	Draining bool // its agent is stopping, or its VMs are being moved away
}

// Noticeable says whether d is so far from what the others have been told that
// they should be told at once: a flag or the size of the host has changed, or
// one of the amounts by at least 5 % of the whole.
func (d Digest) Noticeable(told Digest) bool {
	if d.Cordoned != told.Cordoned || d.Quorate != told.Quorate || d.Draining != told.Draining ||
		d.MemoryTotal != told.MemoryTotal || d.VCPUs != told.VCPUs {
		return true
	}
	const wholePSI = 100 * 100
	for _, amount := range []struct{ now, then, whole uint64 }{
		{d.MemoryFree, told.MemoryFree, d.MemoryTotal},
		{d.MemoryPromised, told.MemoryPromised, d.MemoryTotal},
		{d.MemoryReserved, told.MemoryReserved, d.MemoryTotal},
		{uint64(d.VCPUsPromised), uint64(told.VCPUsPromised), uint64(d.VCPUs)},
		{uint64(d.Load), uint64(told.Load), 100 * uint64(d.VCPUs)},
		{uint64(d.PSICPU), uint64(told.PSICPU), wholePSI},
		{uint64(d.PSIMemory), uint64(told.PSIMemory), wholePSI},
		{uint64(d.PSIIO), uint64(told.PSIIO), wholePSI},
	} {
		change := max(amount.now, amount.then) - min(amount.now, amount.then)
		if change > 0 && change >= amount.whole/20 {
			return true
		}
	}
	return false
}

// The fields of an encoded Digest, which is a protobuf message. Zeros are left
// out. A number is never used for anything else. Those of Stamp are the same in
// Facts.
const (
	fieldIncarnation    protowire.Number = 1  // varint
	fieldSequence       protowire.Number = 2  // varint
	fieldMemoryFree     protowire.Number = 3  // varint
	fieldMemoryTotal    protowire.Number = 4  // varint
	fieldMemoryPromised protowire.Number = 5  // varint
	fieldVCPUs          protowire.Number = 6  // varint
	fieldVCPUsPromised  protowire.Number = 7  // varint
	fieldLoad           protowire.Number = 8  // varint
	fieldPSICPU         protowire.Number = 9  // varint
	fieldPSIMemory      protowire.Number = 10 // varint
	fieldPSIIO          protowire.Number = 11 // varint
	fieldFlags          protowire.Number = 12 // varint, bits
	fieldMemoryReserved protowire.Number = 13 // varint
)

// The bits of fieldFlags.
const (
	flagCordoned = 1 << iota
	flagQuorate
	flagDraining
)

// MarshalBinary encodes d as at most MaxDigest bytes.
func (d Digest) MarshalBinary() ([]byte, error) {
	if err := (Stamp{d.Incarnation, d.Sequence}).check(); err != nil {
		return nil, fmt.Errorf("encode digest: %w", err)
	}
	var b []byte
	b = appendNumber(b, fieldIncarnation, d.Incarnation)
	b = appendNumber(b, fieldSequence, d.Sequence)
	b = appendNumber(b, fieldMemoryFree, d.MemoryFree)
	b = appendNumber(b, fieldMemoryTotal, d.MemoryTotal)
	b = appendNumber(b, fieldMemoryPromised, d.MemoryPromised)
	b = appendNumber(b, fieldVCPUs, uint64(d.VCPUs))
	b = appendNumber(b, fieldVCPUsPromised, uint64(d.VCPUsPromised))
	b = appendNumber(b, fieldLoad, uint64(d.Load))
	b = appendNumber(b, fieldPSICPU, uint64(d.PSICPU))
	b = appendNumber(b, fieldPSIMemory, uint64(d.PSIMemory))
	b = appendNumber(b, fieldPSIIO, uint64(d.PSIIO))
	b = appendNumber(b, fieldFlags, d.flags())
	b = appendNumber(b, fieldMemoryReserved, d.MemoryReserved)
	return b, nil
}

func (d Digest) flags() uint64 {
	var flags uint64
	for bit, set := range map[uint64]bool{flagCordoned: d.Cordoned, flagQuorate: d.Quorate, flagDraining: d.Draining} {
		if set {
			flags |= bit
		}
	}
	return flags
}

// UnmarshalBinary sets d to what a node has sent. Fields that this version does
// not know are passed over. d is unchanged if the bytes break the rules.
func (d *Digest) UnmarshalBinary(data []byte) error {
	if len(data) > MaxDigest {
		return fmt.Errorf("decode digest: %w: %d bytes, at most %d are allowed", ErrEncoding, len(data), MaxDigest)
	}
	var read Digest
	if err := eachField(data, read.set); err != nil {
		return fmt.Errorf("decode digest: %w", err)
	}
	if err := (Stamp{read.Incarnation, read.Sequence}).check(); err != nil {
		return fmt.Errorf("decode digest: %w", err)
	}
	*d = read
	return nil
}

func (d *Digest) set(f field) error {
	switch f.number {
	case fieldIncarnation:
		return f.uint64(&d.Incarnation)
	case fieldSequence:
		return f.uint64(&d.Sequence)
	case fieldMemoryFree:
		return f.uint64(&d.MemoryFree)
	case fieldMemoryTotal:
		return f.uint64(&d.MemoryTotal)
	case fieldMemoryPromised:
		return f.uint64(&d.MemoryPromised)
	case fieldMemoryReserved:
		return f.uint64(&d.MemoryReserved)
	case fieldFlags:
		var flags uint64
		err := f.uint64(&flags)
		d.Cordoned, d.Quorate, d.Draining = flags&flagCordoned != 0, flags&flagQuorate != 0, flags&flagDraining != 0
		return err
	}
	if small := d.small(f.number); small != nil {
		return f.uint32(small)
	}
	return nil
}

func (d *Digest) small(number protowire.Number) *uint32 {
	switch number {
	case fieldVCPUs:
		return &d.VCPUs
	case fieldVCPUsPromised:
		return &d.VCPUsPromised
	case fieldLoad:
		return &d.Load
	case fieldPSICPU:
		return &d.PSICPU
	case fieldPSIMemory:
		return &d.PSIMemory
	case fieldPSIIO:
		return &d.PSIIO
	}
	return nil
}
