package status_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

func itoa(n int) string { return strconv.Itoa(n) }

func writePID(t *testing.T, dir, text string) {
	t.Helper()
	writeFile(t, dir+"/"+itoa(vmid)+".pid", text)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// eager is a gate that does not space background sessions.
func eager() *qmp.Gate {
	patient := qmp.Options{Greeting: 20 * time.Second, Command: 20 * time.Second, Hold: 20 * time.Second}
	return qmp.NewGate(qmp.GateConfig{Interval: time.Nanosecond, User: patient, Background: patient})
}

// openPidfds counts the pidfds of this process; os/exec has some, too.
func openPidfds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == "anon_inode:[pidfd]" {
			n++
		}
	}
	return n
}
