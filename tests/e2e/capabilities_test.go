package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestCapabilities shows every field, so that one which a later version of the contract adds is thought about.
func TestCapabilities(t *testing.T) {
	t.Parallel()
	s := start(t)
	c, err := s.agent.Provider.GetCapabilities(s.ctx, &providerpb.GetCapabilitiesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	m := c.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		fmt.Fprintf(&b, "%s: %s\n", f.Name(), valueText(m, f))
	}
	golden(t, "capabilities.txt", b.String())
}

func valueText(m protoreflect.Message, f protoreflect.FieldDescriptor) string {
	if !f.IsList() {
		return m.Get(f).String()
	}
	var items []string
	for i := range m.Get(f).List().Len() {
		items = append(items, m.Get(f).List().Get(i).String())
	}
	return "[" + strings.Join(items, " ") + "]"
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}
