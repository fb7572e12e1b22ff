package record

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// racerEnv makes the test binary one of several processes that race for a name: its value is the directory.
const racerEnv = "RECORD_TEST_RACER"

func TestMain(m *testing.M) {
	if dir := os.Getenv(racerEnv); dir != "" {
		fmt.Println(race(dir))
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// newDir is a Config.Dir whose parent, PVE's priv/, exists.
func newDir(t testing.TB) string {
	t.Helper()
	priv := filepath.Join(t.TempDir(), "priv")
	if err := os.Mkdir(priv, 0o700); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(priv, "pve-rigaud")
}

func newTestStore(t testing.TB) *Store {
	t.Helper()
	return New(Config{Dir: newDir(t)})
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func take(t testing.TB, s *Store, r Record) *Claim {
	t.Helper()
	c, err := s.Take(r)
	check(t, err)
	return c
}

// web1 is a claim of "web-1".
func web1() Record {
	return Record{
		Owner: "spiffe://cluster/manager", Name: "web-1", VMID: 10000, UUID: "880d09f7-f1fc-44c7-a077-eb1c4edb01da", Node: "pve1",
		Op: "op-1", Fingerprint: "f", Tags: []string{"a b", "c"}, State: Creating,
	}
}

// fileOf is the path of a record's file.
func fileOf(s *Store, r Record) string {
	return s.dir.file(fileName(hash(r.Owner, r.Name), r.Generation))
}

func files1(t testing.TB, s *Store) []string {
	t.Helper()
	names, err := s.dir.names()
	check(t, err)
	return names
}

// age sets a file's time back.
func age(t testing.TB, path string, by time.Duration) {
	t.Helper()
	then := time.Now().Add(-by)
	check(t, os.Chtimes(path, then, then))
}

// torn leaves a claim's first generation as a crash between creating and writing it does.
func torn(t testing.TB, s *Store, r Record, content string) Record {
	t.Helper()
	check(t, s.dir.make())
	r.Generation = max(1, r.Generation)
	check(t, os.WriteFile(fileOf(s, r), []byte(content), 0o600))
	return r
}

func wantErr[E error](t testing.TB, err error) E {
	t.Helper()
	var e E
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want a %T", err, e)
	}
	return e
}
