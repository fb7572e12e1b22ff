package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever a file holds: no panic, every error names the file and is short
// enough to read, and what is accepted survives Dump.
func FuzzFile(f *testing.F) {
	f.Add([]byte(working))
	f.Add([]byte(placing))
	for _, text := range []string{
		"", "---\n", "a: &a [*a]\n", "listen: {grpc: ':1'}\nlisten: 2\n", "pve:\n  token-secret: x\n", "? [a]\n: b\n",
		"node-selector: [a, b]\nvmid-range: 100-200\nwatch: 1s\n", "!!str watch: !!binary aGk=\n", "\xff", "log: {<<: {level: info}}\n",
		"placement: {memory-reserve: 1.5Gi, memory-overcommit: 2, image-replicas: all, zones: {a: []}, node-selector: required}\n",
		"tasks: {poll-min: 1ms, poll-max: 2ms, timeout: 1m}\nsync-waits-per-client: 0\ndelete-foreign: false\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		parsed := parseFile("F", data)
		for _, err := range parsed.errs {
			if text := err.Error(); !strings.HasPrefix(text, "F:") || len(text) > 400 || strings.ContainsAny(text, "\n\x00") {
				t.Errorf("bad error text %q", text)
			}
		}
		c := Config{Sources: map[string]string{}}
		for _, s := range append(defaults(), parsed.settings...) {
			if s.apply(&c) != nil {
				return
			}
		}
		again := parseFile("D", []byte(dump(t, c)))
		if len(again.errs) > 0 {
			t.Fatalf("dump is not accepted: %v\n%s", again.errs, dump(t, c))
		}
		var c2 Config
		for _, s := range again.settings {
			if err := s.apply(&c2); err != nil {
				t.Fatalf("%v\n%s", err, dump(t, c))
			}
		}
		if diff := cmp.Diff(c, c2, compare); diff != "" {
			t.Error(diff)
		}
	})
}
