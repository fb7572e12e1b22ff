package pmxcfs

import (
	"fmt"
	"strconv"
)

// VMList is .vmlist: the owner of every guest of the cluster.
type VMList struct {
	Version uint64
	Guests  map[int]Guest
}

// Guest is one entry of .vmlist.
type Guest struct {
	Node    string `json:"node"`
	Type    string `json:"type"`    // TypeQEMU or TypeLXC
	Version uint64 `json:"version"` // changes with the guest's config
}

// ParseVMList decodes .vmlist; path only names the file in errors. A cluster without guests has no "ids" at all.
func ParseVMList(path string, raw []byte) (VMList, error) {
	if list, ok := scanVMList(raw); ok {
		return list, nil
	}
	var file struct {
		Version *uint64          `json:"version"`
		IDs     map[string]Guest `json:"ids"`
	}
	if err := decode(path, raw, &file); err != nil {
		return VMList{}, err
	}
	if file.Version == nil {
		return VMList{}, &FormatError{Path: path, Reason: "no version"}
	}
	list := VMList{Version: *file.Version, Guests: make(map[int]Guest, len(file.IDs))}
	for id, g := range file.IDs {
		vmid, err := strconv.Atoi(id)
		if err != nil || vmid <= 0 || g.Node == "" || g.Type == "" {
			return VMList{}, &FormatError{Path: path, Reason: fmt.Sprintf("bad entry for guest %q", id)}
		}
		list.Guests[vmid] = g
	}
	return list, nil
}

// guestBytes is about what one guest takes in .vmlist.
const guestBytes = 60

// scanVMList reads .vmlist the way pmxcfs writes it. This file is read anew after every change of any guest, and is long
// in a large cluster; encoding/json takes eight times as long and forty times the allocations. Whatever looks unusual is left to that.
func scanVMList(raw []byte) (VMList, bool) {
	s := scanner{text: raw, ok: true, names: make(map[string]string)}
	list := VMList{Guests: make(map[int]Guest, len(raw)/guestBytes)}
	s.expect('{')
	s.key("version")
	list.Version = s.number()
	if s.next(',') {
		s.key("ids")
		s.expect('{')
		for more := s.ok; more; more = s.next(',') {
			s.guest(list.Guests)
		}
		s.expect('}')
	}
	s.expect('}')
	s.space()
	return list, s.ok && s.at == len(raw)
}

// scanner reads plain JSON: no escapes, and no doubts. After the first thing that it does not expect, ok is false.
type scanner struct {
	text  []byte
	at    int
	ok    bool
	names map[string]string // one copy of each name of a node or type
}

func (s *scanner) space() {
	for s.at < len(s.text) && (s.text[s.at] == ' ' || s.text[s.at] == '\n' || s.text[s.at] == '\t' || s.text[s.at] == '\r') {
		s.at++
	}
}

// next reads c if it comes next.
func (s *scanner) next(c byte) bool {
	s.space()
	if !s.ok || s.at >= len(s.text) || s.text[s.at] != c {
		return false
	}
	s.at++
	return true
}

func (s *scanner) expect(c byte) { s.ok = s.next(c) }

// word reads a string.
func (s *scanner) word() []byte {
	s.expect('"')
	begin := s.at
	for s.at < len(s.text) && s.text[s.at] != '"' {
		if c := s.text[s.at]; c < ' ' || c > '~' || c == '\\' {
			s.ok = false
			return nil
		}
		s.at++
	}
	end := s.at
	s.expect('"')
	return s.text[begin:end]
}

func (s *scanner) key(name string) {
	if string(s.word()) != name {
		s.ok = false
	}
	s.expect(':')
}

// name reads a string of which there are few.
func (s *scanner) name() string {
	word := s.word()
	name, known := s.names[string(word)]
	if !known {
		name = string(word)
		s.names[name] = name
	}
	if name == "" {
		s.ok = false
	}
	return name
}

func (s *scanner) number() uint64 {
	s.space()
	begin := s.at
	for s.at < len(s.text) && digit(s.text[s.at]) {
		s.at++
	}
	return s.decimal(s.text[begin:s.at])
}

// decimal reads digits as JSON and strconv.Itoa write them; more than 18 are somebody else's business.
func (s *scanner) decimal(digits []byte) uint64 {
	if len(digits) == 0 || len(digits) > 18 || digits[0] == '0' && len(digits) > 1 {
		s.ok = false
		return 0
	}
	var n uint64
	for _, c := range digits {
		if !digit(c) {
			s.ok = false
			return 0
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// guest reads one entry.
func (s *scanner) guest(into map[int]Guest) {
	id := int(s.decimal(s.word()))
	s.expect(':')
	s.expect('{')
	var g Guest
	s.key("node")
	g.Node = s.name()
	s.expect(',')
	s.key("type")
	g.Type = s.name()
	s.expect(',')
	s.key("version")
	g.Version = s.number()
	s.expect('}')
	if _, twice := into[id]; twice || id == 0 {
		s.ok = false
	}
	into[id] = g
}
