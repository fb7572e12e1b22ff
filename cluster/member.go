// Package cluster is what the nodes know of each other.
package cluster

import (
	"errors"
	"fmt"
	"net/netip"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxMetadata is how many bytes the metadata of a node may have: memberlist's
// MetaMaxSize, because the metadata travels in one UDP packet.
const MaxMetadata = 512

// ErrMetadata is wrapped by all errors about metadata that breaks the rules,
// ours or another node's.
var ErrMetadata = errors.New("bad node metadata")

// Member is one agent as it presents itself to the others. Its encoded form is
// the node metadata of the gossip protocol. Nodes of different versions read
// each other's: what a version does not know, it keeps.
type Member struct {
	Name     string         // the node's name in PVE
	Address  netip.AddrPort // where its agent answers other agents (gRPC)
	Version  string         // of pve-rigaud, for people
	Protocol Protocols

	unknown []byte // fields of a newer version, encoded
}

// Protocols are the versions of the protocol between agents that one of them
// speaks, both ends included. The first version is 1.
type Protocols struct{ Min, Max uint32 }

// Common is the newest version that both sides speak, if there is one.
func (p Protocols) Common(other Protocols) (uint32, bool) {
	version := min(p.Max, other.Max)
	return version, version >= max(p.Min, other.Min)
}

// The fields of the encoded form, which is that of a protobuf message. A number
// is never used for anything else.
const (
	fieldName        protowire.Number = 1 // string
	fieldAddress     protowire.Number = 2 // string, "192.0.2.1:9443"
	fieldVersion     protowire.Number = 3 // string
	fieldProtocolMin protowire.Number = 4 // varint
	fieldProtocolMax protowire.Number = 5 // varint
)

// MarshalBinary encodes m as at most MaxMetadata bytes.
func (m Member) MarshalBinary() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("encode member %q: %w", m.Name, err)
	}
	var b []byte
	for _, f := range []struct {
		number protowire.Number
		text   string
	}{{fieldName, m.Name}, {fieldAddress, m.Address.String()}, {fieldVersion, m.Version}} {
		b = protowire.AppendTag(b, f.number, protowire.BytesType)
		b = protowire.AppendString(b, f.text)
	}
	b = protowire.AppendTag(b, fieldProtocolMin, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(m.Protocol.Min))
	b = protowire.AppendTag(b, fieldProtocolMax, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(m.Protocol.Max))
	b = append(b, m.unknown...)
	if len(b) > MaxMetadata {
		return nil, fmt.Errorf("encode member %q: %w: %d bytes, at most %d fit", m.Name, ErrMetadata, len(b), MaxMetadata)
	}
	return b, nil
}

// UnmarshalBinary sets m to what another node has sent. m is unchanged if that
// breaks the rules.
func (m *Member) UnmarshalBinary(data []byte) error {
	if len(data) > MaxMetadata {
		return fmt.Errorf("decode member: %w: %d bytes, at most %d are allowed", ErrMetadata, len(data), MaxMetadata)
	}
	var read Member
	for rest := data; len(rest) > 0; {
		n, err := read.readField(rest)
		if err != nil {
			return fmt.Errorf("decode member: %w: byte %d: %w", ErrMetadata, len(data)-len(rest), err)
		}
		rest = rest[n:]
	}
	if err := read.check(); err != nil {
		return fmt.Errorf("decode member %q: %w", read.Name, err)
	}
	*m = read
	return nil
}

// readField takes the first field from b and returns its length.
func (m *Member) readField(b []byte) (int, error) {
	number, kind, n := protowire.ConsumeField(b)
	if n < 0 {
		return 0, protowire.ParseError(n)
	}
	_, _, tag := protowire.ConsumeTag(b)
	value := b[tag:n]
	switch {
	case kind == protowire.BytesType && number <= fieldVersion:
		text, _ := protowire.ConsumeBytes(value)
		return n, m.setText(number, string(text))
	case kind == protowire.VarintType && (number == fieldProtocolMin || number == fieldProtocolMax):
		version, _ := protowire.ConsumeVarint(value)
		return n, m.setProtocol(number, version)
	case number <= fieldProtocolMax:
		return 0, fmt.Errorf("field %d has wire type %d", number, kind)
	}
	m.unknown = append(m.unknown, b[:n]...)
	return n, nil
}

func (m *Member) setText(number protowire.Number, text string) error {
	var err error
	switch number {
	case fieldName:
		m.Name = text
	case fieldAddress:
		m.Address, err = netip.ParseAddrPort(text)
	case fieldVersion:
		m.Version = text
	}
	return err
}

func (m *Member) setProtocol(number protowire.Number, version uint64) error {
	if version != uint64(uint32(version)) {
		return fmt.Errorf("protocol version %d is out of range", version)
	}
	if number == fieldProtocolMin {
		m.Protocol.Min = uint32(version)
	} else {
		m.Protocol.Max = uint32(version)
	}
	return nil
}

// check holds for every member that is sent or received.
func (m *Member) check() error {
	switch {
	case m.Name == "" || !utf8.ValidString(m.Name):
		return fmt.Errorf("%w: name %q", ErrMetadata, m.Name)
	case !m.Address.IsValid() || m.Address.Port() == 0 || m.Address.Addr().IsUnspecified():
		return fmt.Errorf("%w: address %q is none to connect to", ErrMetadata, m.Address)
	case !utf8.ValidString(m.Version):
		return fmt.Errorf("%w: version %q", ErrMetadata, m.Version)
	case m.Protocol.Min < 1 || m.Protocol.Max < m.Protocol.Min:
		return fmt.Errorf("%w: protocol versions %d to %d", ErrMetadata, m.Protocol.Min, m.Protocol.Max)
	}
	return nil
}
