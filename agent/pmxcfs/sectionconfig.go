package pmxcfs

import (
	"fmt"
	"regexp"
	"strings"
)

// section is one part of a file in the form that PVE uses for lists of things (PVE::SectionConfig): a line "type: id",
// indented lines "key value", and an empty line.
type section struct {
	kind, id string
	line     int
	options  map[string]string // one without a value is "1"
}

// maxProblems is how many lines of one file are complained of: it may be no such file at all.
const maxProblems = 20

var headerPattern = regexp.MustCompile(`^(\S+):\s*(\S+)\s*$`)

// parseSections reads all sections of a file, whatever their type. Lines that are none are told and passed over, as PVE
// does; path only names the file.
func parseSections(path string, raw []byte) (out []section, problems []error) {
	bad := func(n int, format string, args ...any) {
		if len(problems) == maxProblems {
			return
		}
		problems = append(problems, &FormatError{Path: path, Reason: fmt.Sprintf("line %d: ", n) + fmt.Sprintf(format, args...)})
	}
	open := false
	n := 0
	for line := range strings.Lines(string(raw)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		text := strings.Trim(line, whitespace)
		switch {
		case strings.HasPrefix(text, "#"):
		case line == "":
			open = false
		case !open:
			m := headerPattern.FindStringSubmatch(line)
			if m == nil {
				bad(n, "no `type: id`: %.60q", text)
				continue
			}
			open = true
			out = append(out, section{kind: strings.ToLower(m[1]), id: m[2], line: n, options: map[string]string{}})
		case text == "" || strings.Trim(line[:1], whitespace) != "":
			bad(n, "an option has to be indented: %.60q", text)
		default:
			key, value := option(text)
			s := &out[len(out)-1]
			if _, again := s.options[key]; again {
				bad(n, "%.60s is given twice", key)
				continue
			}
			s.options[key] = value
		}
	}
	return out, problems
}

// option splits a line "key value".
func option(text string) (key, value string) {
	if i := strings.IndexAny(text, whitespace); i >= 0 {
		return text[:i], strings.Trim(text[i:], whitespace)
	}
	return text, "1"
}
