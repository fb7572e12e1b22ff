package view

import (
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/encoding/protowire"
)

// MaxFacts is how many bytes encoded Facts may have: those of all nodes travel
// in one stream.
const MaxFacts = 64 << 10

// Facts are what is needed of a node less often than its Digest. They travel
// when two agents compare what they know, every 10 s or so.
type Facts struct {
	Incarnation uint64 // as in Digest; set by who sends it
	Sequence    uint64 // as in Digest; set by who sends it

	PVEVersion string // "9.1.2"
	Storages   []Storage
	Templates  []Template
	Bridges    []string       // names of the bridges VMs can be attached to
	Tags       map[string]int // tags of its VMs, and how many have each
	VMs        int            // VMs there are, without templates
	Running    int            // of which are running
}

// Storage is a storage as one node sees it.
type Storage struct {
	Name    string
	Type    string   // "lvmthin", "rbd", ...
	Total   uint64   // bytes
	Free    uint64   // bytes
	Content []string // "images", "iso", ...
	Shared  bool     // the other nodes see the same
}

// Template is a template that lives on a node.
type Template struct {
	VMID int
	Name string
}

// The fields of encoded Facts, which are a protobuf message. Zeros are left out.
// A number is never used for anything else. 1 and 2 are those of Digest.
const (
	fieldPVEVersion protowire.Number = 3 // string
	fieldStorage    protowire.Number = 4 // message, repeated
	fieldTemplate   protowire.Number = 5 // message, repeated
	fieldBridge     protowire.Number = 6 // string, repeated
	fieldTag        protowire.Number = 7 // message, repeated, sorted
	fieldVMs        protowire.Number = 8 // varint
	fieldRunning    protowire.Number = 9 // varint

	fieldStorageName    protowire.Number = 1 // string
	fieldStorageType    protowire.Number = 2 // string
	fieldStorageTotal   protowire.Number = 3 // varint
	fieldStorageFree    protowire.Number = 4 // varint
	fieldStorageContent protowire.Number = 5 // string, repeated
	fieldStorageShared  protowire.Number = 6 // varint, 0 or 1

	fieldTemplateVMID protowire.Number = 1 // varint
	fieldTemplateName protowire.Number = 2 // string

	fieldTagName  protowire.Number = 1 // string
	fieldTagCount protowire.Number = 2 // varint
)

// MarshalBinary encodes f as at most MaxFacts bytes.
func (f Facts) MarshalBinary() ([]byte, error) {
	if err := (Stamp{f.Incarnation, f.Sequence}).check(); err != nil {
		return nil, fmt.Errorf("encode facts: %w", err)
	}
	var b []byte
	b = appendNumber(b, fieldIncarnation, f.Incarnation)
	b = appendNumber(b, fieldSequence, f.Sequence)
	b = appendText(b, fieldPVEVersion, f.PVEVersion)
	for _, s := range f.Storages {
		b = appendBytes(b, fieldStorage, s.encode())
	}
	for _, t := range f.Templates {
		b = appendBytes(b, fieldTemplate, appendText(appendNumber(nil, fieldTemplateVMID, count(t.VMID)), fieldTemplateName, t.Name))
	}
	for _, name := range f.Bridges {
		b = appendBytes(b, fieldBridge, []byte(name))
	}
	for _, name := range slices.Sorted(maps.Keys(f.Tags)) {
		b = appendBytes(b, fieldTag, appendNumber(appendText(nil, fieldTagName, name), fieldTagCount, count(f.Tags[name])))
	}
	b = appendNumber(b, fieldVMs, count(f.VMs))
	b = appendNumber(b, fieldRunning, count(f.Running))
	if len(b) > MaxFacts {
		return nil, fmt.Errorf("encode facts: %w: %d bytes, at most %d fit", ErrEncoding, len(b), MaxFacts)
	}
	return b, nil
}

func (s Storage) encode() []byte {
	var b []byte
	b = appendText(b, fieldStorageName, s.Name)
	b = appendText(b, fieldStorageType, s.Type)
	b = appendNumber(b, fieldStorageTotal, s.Total)
	b = appendNumber(b, fieldStorageFree, s.Free)
	for _, c := range s.Content {
		b = appendBytes(b, fieldStorageContent, []byte(c))
	}
	if s.Shared {
		b = appendNumber(b, fieldStorageShared, 1)
	}
	return b
}

// UnmarshalBinary sets f to what a node has sent. Fields that this version does
// not know are passed over. f is unchanged if the bytes break the rules.
func (f *Facts) UnmarshalBinary(data []byte) error {
	if len(data) > MaxFacts {
		return fmt.Errorf("decode facts: %w: %d bytes, at most %d are allowed", ErrEncoding, len(data), MaxFacts)
	}
	var read Facts
	if err := eachField(data, read.set); err != nil {
		return fmt.Errorf("decode facts: %w", err)
	}
	if err := (Stamp{read.Incarnation, read.Sequence}).check(); err != nil {
		return fmt.Errorf("decode facts: %w", err)
	}
	*f = read
	return nil
}

func (f *Facts) set(in field) error {
	switch in.number {
	case fieldIncarnation:
		return in.uint64(&f.Incarnation)
	case fieldSequence:
		return in.uint64(&f.Sequence)
	case fieldPVEVersion:
		return in.text(&f.PVEVersion)
	case fieldStorage:
		var s Storage
		err := in.message(s.set)
		f.Storages = append(f.Storages, s)
		return err
	case fieldTemplate:
		var t Template
		err := in.message(t.set)
		f.Templates = append(f.Templates, t)
		return err
	case fieldBridge:
		return in.appendText(&f.Bridges)
	case fieldTag:
		return f.setTag(in)
	case fieldVMs:
		return in.count(&f.VMs)
	case fieldRunning:
		return in.count(&f.Running)
	}
	return nil
}

func (f *Facts) setTag(in field) error {
	var name string
	var n int
	err := in.message(func(in field) error {
		switch in.number {
		case fieldTagName:
			return in.text(&name)
		case fieldTagCount:
			return in.count(&n)
		}
		return nil
	})
	if f.Tags == nil {
		f.Tags = map[string]int{}
	}
	f.Tags[name] = n
	return err
}

func (s *Storage) set(in field) error {
	switch in.number {
	case fieldStorageName:
		return in.text(&s.Name)
	case fieldStorageType:
		return in.text(&s.Type)
	case fieldStorageTotal:
		return in.uint64(&s.Total)
	case fieldStorageFree:
		return in.uint64(&s.Free)
	case fieldStorageContent:
		return in.appendText(&s.Content)
	case fieldStorageShared:
		var shared uint64
		err := in.uint64(&shared)
		s.Shared = shared != 0
		return err
	}
	return nil
}

func (t *Template) set(in field) error {
	switch in.number {
	case fieldTemplateVMID:
		return in.count(&t.VMID)
	case fieldTemplateName:
		return in.text(&t.Name)
	}
	return nil
}
