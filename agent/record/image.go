package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Image ties templates that are the same to a name. What the administrator has made is looked up by Template whenever it
// is needed, so that a template which is rebuilt needs no change here; what we have made of it stands in Replicas.
type Image struct {
	Name   string `json:"name"`
	Source string `json:"source"` // where it came from, in words

	Template string `json:"template"`       // the VMID or the name of the administrator's templates
	Node     string `json:"node,omitempty"` // the only node where they count; "": all

	// Originals are those templates as they were when the image was recorded. They decide where a name has become
	// ambiguous.
	Originals []Original `json:"originals,omitempty"`
	Replicas  []Replica  `json:"replicas,omitempty"`
	Created   time.Time  `json:"created"` // set by Images.Create

	Generation int `json:"-"` // of the file; set when it is read or written

	version int                        // of the file's format
	extra   map[string]json.RawMessage // fields of a later version
}

// Original is a template that an administrator has made.
type Original struct {
	Node string `json:"node"`
	VMID int    `json:"vmid"`
	UUID string `json:"uuid"` // SMBIOS uuid
}

// Replica is a template that we have made as a copy of another one.
type Replica struct {
	Node string `json:"node"`
	VMID int    `json:"vmid"`
	UUID string `json:"uuid"` // SMBIOS uuid, chosen by us
	// Of is the version of the template that it is a copy of, and From that template's number.
	Of   string `json:"of"`
	From int    `json:"from"`
	// Checksums are those of the disks' files as they were copied, "sha256:<hex>", by their keys in the config.
	Checksums map[string]string `json:"checksums,omitempty"`
	Created   time.Time         `json:"created"`
}

func (i Image) clone() Image {
	i.Originals, i.Replicas = slices.Clone(i.Originals), slices.Clone(i.Replicas)
	for n := range i.Replicas {
		i.Replicas[n].Checksums = maps.Clone(i.Replicas[n].Checksums)
	}
	return i
}

// Replica returns the copy with that number.
func (i Image) Replica(vmid int) (Replica, bool) {
	if n := slices.IndexFunc(i.Replicas, func(r Replica) bool { return r.VMID == vmid }); n >= 0 {
		return i.Replicas[n], true
	}
	return Replica{}, false
}

// imageWire is Image without its methods.
type imageWire Image

// knownOfImages are the names of the fields we write.
var knownOfImages = []string{"v", "name", "source", "template", "node", "originals", "replicas", "created"}

// encode is the content of a file: one line, whose newline tells that it is whole.
func (i Image) encode() ([]byte, error) {
	raw, err := json.Marshal(imageWire(i))
	fields := map[string]json.RawMessage{}
	maps.Copy(fields, i.extra)
	if err == nil {
		err = json.Unmarshal(raw, &fields)
	}
	if err != nil {
		return nil, fmt.Errorf("encode record of image %q: %w", i.Name, err)
	}
	fields["v"] = json.RawMessage(strconv.Itoa(max(format, i.version)))
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false) // what we do not know stays as it was
	if err := enc.Encode(fields); err != nil {
		return nil, fmt.Errorf("encode record of image %q: %w", i.Name, err)
	}
	return out.Bytes(), nil
}

// decodeImage reads a whole file; path only names it in errors.
func decodeImage(path string, raw []byte) (Image, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return Image{}, &FormatError{Path: path, Err: err}
	}
	var i imageWire
	if err := json.Unmarshal(fields["v"], &i.version); err != nil || i.version < 1 {
		return Image{}, &FormatError{Path: path, Err: errNoVersion}
	}
	for name, value := range fields {
		if slices.Contains(knownOfImages, name) {
			continue
		}
		if i.extra == nil {
			i.extra = map[string]json.RawMessage{}
		}
		i.extra[name] = value
	}
	if err := json.Unmarshal(raw, &i); err != nil {
		return Image{}, &FormatError{Path: path, Err: err}
	}
	return Image(i), nil
}

// escapeName makes a file name of an image's name, which stays readable: what is not a letter, a digit, or one of -_. is
// written as % and two hex digits.
func escapeName(name string) string {
	var b strings.Builder
	for n, c := range []byte(name) {
		plain := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_' || c == '.' && n > 0
		if plain {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// imageFile is the name of the file of one generation.
func imageFile(name string, generation int) string {
	return escapeName(name) + "." + strconv.Itoa(generation)
}

// parseImageFile returns the escaped name and the generation in a file's name; ok is false for every other name.
func parseImageFile(file string) (escaped string, generation int, ok bool) {
	n := strings.LastIndexByte(file, '.')
	if n < 1 {
		return "", 0, false
	}
	generation, err := strconv.Atoi(file[n+1:])
	if err != nil || generation < 1 || strconv.Itoa(generation) != file[n+1:] {
		return "", 0, false
	}
	return file[:n], generation, true
}
