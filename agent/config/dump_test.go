package config

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func dump(t *testing.T, c Config) string {
	t.Helper()
	var b bytes.Buffer
	if err := c.Dump(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestDumpGolden(t *testing.T) {
	s := newSite(t)
	s.write("pve/pve-rigaud.yaml", "node-selector: [pve1, \"42\"]\n", 0o640)
	c, err := s.load(working, map[string]string{
		"LOG_LEVEL": "warn", "PVE_USERNAME": "root@pam", "PVE_PASSWORD": "hunter2",
		"PVE_CA_BUNDLE": string(mustRead(t, "testdata/ca.pem")),
	}, "--metrics=:9444")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.ReplaceAll(dump(t, c), s.dir, "DIR")
	if strings.Contains(got, "hunter2") || strings.Contains(got, "s3cr3t") || strings.Contains(got, "BEGIN") {
		t.Error("a secret is printed")
	}
	const golden = "testdata/dump.yaml"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(mustRead(t, golden)), got); diff != "" {
		t.Error(diff)
	}
}

// What Dump prints is a local file that means the same.
func TestDumpLoadsAgain(t *testing.T) {
	s := newSite(t)
	local := working + "bridges: {storage: vmbr3}\nstorage-classes: {nvme: {storage: fast, ssd: 1, discard: on}}\n" + placing
	for _, k := range keys {
		if _, is := k.field(new(Config)).(table); is {
			continue
		}
		if text := otherTexts[k.name]; k.flagName() == k.name && k.name != "node" {
			values := strings.Split(text, ",")
			if len(values) > 1 {
				text = "[" + text + "]"
			}
			local += k.name + ": " + text + "\n"
		}
	}
	first, err := s.load(local, nil)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.load(dump(t, first), nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second, compare); diff != "" {
		t.Error(diff)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestDumpReportsWriteErrors(t *testing.T) {
	if err := (Config{}).Dump(brokenWriter{}); err == nil {
		t.Error("no error")
	}
}
