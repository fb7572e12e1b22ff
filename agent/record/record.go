package record

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"
)

// format is the version of the files we write. Later versions only add fields; a file of a later version is read, and
// keeps its number and fields when it is updated.
const format = 1

// State is how far a VM has come.
type State string

// The states of a record.
const (
	Creating State = "creating" // the claim is taken; the VM may be there or not, and is not usable yet
	Ready    State = "ready"    // the VM is made; VMID and UUID never change again
)

// Record is what one file says about the VM we made.
type Record struct {
	Owner       string    `json:"owner"`       // the client it was made for
	Name        string    `json:"name"`        // as the client named it
	VMID        int       `json:"vmid"`        // 0 while not allocated
	UUID        string    `json:"uuid"`        // SMBIOS uuid, chosen by us
	Node        string    `json:"node"`        // that made it, or makes it
	Op          string    `json:"op"`          // the operation that makes it
	Fingerprint string    `json:"fingerprint"` // of the request
	Tags        []string  `json:"tags,omitempty"`
	State       State     `json:"state"`
	Created     time.Time `json:"created"` // set by Take
	Volumes     []string  `json:"volumes,omitempty"`
	Snippets    []string  `json:"snippets,omitempty"`

	// Made are hashes of what the request said about what is decided when a VM is made, by their names. Set with Take.
	Made map[string]string `json:"made,omitempty"`

	Token string `json:"token"`          // of this claim; set by Take and TakeOver
	Over  string `json:"over,omitempty"` // the token this claim was taken over from; set by TakeOver

	Generation int `json:"-"` // of the file; set by Take and TakeOver

	version int                        // of the file's format
	extra   map[string]json.RawMessage // fields of a later version
}

// ID is the VM's id.
func (r Record) ID() ID { return NewID(r.VMID, r.UUID) }

// wire is Record without its methods.
type wire Record

// known are the names of the fields we write.
var known = func() map[string]bool {
	raw, err := json.Marshal(wire{Tags: []string{""}, Volumes: []string{""}, Snippets: []string{""}, Made: map[string]string{"": ""}, Over: "x"})
	if err != nil {
		panic(err) // strings and numbers
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		panic(err)
	}
	names := map[string]bool{"v": true}
	for name := range fields {
		names[name] = true
	}
	return names
}()

// encode is the content of a file: one line, whose newline tells that it is whole.
func (r Record) encode() ([]byte, error) {
	raw, err := json.Marshal(wire(r))
	if err != nil {
		return nil, fmt.Errorf("encode record of %q: %w", r.Name, err)
	}
	fields := maps.Clone(r.extra)
	if fields == nil {
		fields = make(map[string]json.RawMessage)
	}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("encode record of %q: %w", r.Name, err)
	}
	fields["v"] = json.RawMessage(strconv.Itoa(max(format, r.version)))
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // what we do not know stays as it was
	if err := enc.Encode(fields); err != nil {
		return nil, fmt.Errorf("encode record of %q: %w", r.Name, err)
	}
	return out.Bytes(), nil
}

// wholeFile reports whether a file has been written to its end.
func wholeFile(raw []byte) bool { return bytes.HasSuffix(raw, []byte("}\n")) }

// decode reads a whole file; path only names it in errors.
func decode(path string, raw []byte) (Record, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return Record{}, &FormatError{Path: path, Err: err}
	}
	var r wire
	if err := json.Unmarshal(fields["v"], &r.version); err != nil || r.version < 1 {
		return Record{}, &FormatError{Path: path, Err: errNoVersion}
	}
	for name, value := range fields {
		if known[name] {
			continue
		}
		if r.extra == nil {
			r.extra = make(map[string]json.RawMessage)
		}
		r.extra[name] = value
		delete(fields, name)
	}
	exact, err := json.Marshal(fields) // without names that differ from ours in case only
	if err == nil {
		err = json.Unmarshal(exact, &r)
	}
	if err != nil {
		return Record{}, &FormatError{Path: path, Err: err}
	}
	return Record(r), nil
}

// hash is the part of a file's name that stands for owner and name.
func hash(owner, name string) string {
	sum := sha256.Sum256([]byte(owner + "\x00" + name))
	return hex.EncodeToString(sum[:])[:hashLen]
}

const hashLen = 32

func fileName(hash string, generation int) string {
	return hash + "." + strconv.Itoa(generation)
}

// parseFileName is the inverse of fileName; ok is false for every other name.
func parseFileName(name string) (hash string, generation int, ok bool) {
	hash, number, _ := strings.Cut(name, ".")
	generation, err := strconv.Atoi(number)
	if err != nil || generation < 1 || len(hash) != hashLen || fileName(hash, generation) != name {
		return "", 0, false
	}
	return hash, generation, true
}

// newToken is a random token: 128 bits in hex.
func newToken() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
