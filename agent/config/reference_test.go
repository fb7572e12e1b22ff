package config

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

const referenceFile = "../../packaging/config.yaml"

// commented finds a commented-out setting, as the head of the file explains.
var commented = regexp.MustCompile(`(?m)^( *)#([a-z-]+:)`)

// As shipped, the file sets nothing.
func TestReferenceSetsNothing(t *testing.T) {
	f := parseFile(referenceFile, mustRead(t, referenceFile))
	if len(f.errs) > 0 || len(f.settings) > 0 {
		t.Errorf("errors %v, settings %v", f.errs, f.settings)
	}
}

// With every "#" removed it sets every key once, to its default; where there is no default, the text beside it says so.
func TestReferenceHoldsEveryDefault(t *testing.T) {
	text := string(mustRead(t, referenceFile))
	f := parseFile(referenceFile, []byte(commented.ReplaceAllString(text, "$1$2")))
	if len(f.errs) > 0 {
		t.Fatal(f.errs)
	}
	var got, want []string
	for _, s := range f.settings {
		got = append(got, s.key.name)
		var c Config
		if err := s.apply(&c); err != nil {
			t.Error(err)
			continue
		}
		standard := s.key.def
		if derived, ok := map[string]string{
			"pve.ca-bundle": "/etc/pve/pve-root-ca.pem", "gossip.key-file": "/etc/pve/priv/pve-rigaud/gossip.key",
		}[s.key.name]; ok {
			standard = derived
		}
		if value := strings.Join(texts(s.key.field(&c)), ","); standard != "" && value != standard {
			t.Errorf("%s: %s, but the default is %s", s.source, value, standard)
		}
		if standard == "" && len(s.texts) > 0 && !exampleAbove(text, s.source) {
			t.Errorf("%s: %s has no default, but the text above does not say that this is an example", s.source, s.key.name)
		}
	}
	for _, k := range keys {
		want = append(want, k.name)
	}
	if diff := cmp.Diff(want, got, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Error(diff)
	}
}

// exampleAbove looks for "example" in the comment of the block of lines that
// ends where source (file:line) says.
func exampleAbove(text, source string) bool {
	n, err := strconv.Atoi(source[strings.LastIndexByte(source, ':')+1:])
	if err != nil {
		return false
	}
	for _, line := range slices.Backward(strings.Split(text, "\n")[:n]) {
		if strings.TrimSpace(line) == "" {
			return false
		}
		if strings.Contains(strings.ToLower(line), "example") {
			return true
		}
	}
	return false
}

// Every setting the file shows is accepted together with all others, once the
// secrets are where it says.
func TestReferenceExamplesGoTogether(t *testing.T) {
	s := newSite(t)
	text := commented.ReplaceAllString(string(mustRead(t, referenceFile)), "$1$2")
	text = strings.ReplaceAll(text, "/etc/pve/priv/pve-rigaud/token-secret", s.dir+"/secret")
	text = strings.ReplaceAll(text, "/etc/pve-rigaud/password", s.dir+"/secret")
	text = strings.Replace(text, "pmxcfs: /etc/pve\n", "pmxcfs: "+s.dir+"/pve\n", 1)
	if _, err := s.load(text, nil); err != nil {
		t.Error(err)
	}
}
