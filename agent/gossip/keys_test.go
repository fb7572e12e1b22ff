package gossip

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func newKeyFile(t *testing.T) keyFile {
	t.Helper()
	priv := filepath.Join(t.TempDir(), "priv")
	if err := os.Mkdir(priv, 0o700); err != nil {
		t.Fatal(err)
	}
	return keyFile{path: filepath.Join(priv, "pve-rigaud", "gossip.key"), now: time.Now}
}

func write(t *testing.T, f keyFile, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOneKeyIsMadeByManyNodes(t *testing.T) {
	f := newKeyFile(t)
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards keys
		keys = map[string]bool{}
	)
	for range 20 {
		wg.Go(func() {
			k, err := f.read()
			for err != nil && strings.Contains(err.Error(), errNoKeys.Error()) { // as Run does: it is being written
				k, err = f.read()
			}
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			keys[string(k[0])] = true
		})
	}
	wg.Wait()
	if len(keys) != 1 {
		t.Errorf("%d keys", len(keys))
	}
	info, err := os.Stat(f.path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestKeysInTheirOrder(t *testing.T) {
	f := newKeyFile(t)
	first, second := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	text := func(k []byte) string { return base64.StdEncoding.EncodeToString(k) }
	write(t, f, "# new\n"+text(second)+"\n\n  "+text(first)+"  \n")
	keys, err := f.read()
	if err != nil || len(keys) != 2 || !bytes.Equal(keys[0], second) || !bytes.Equal(keys[1], first) {
		t.Errorf("%v, %v", keys, err)
	}
}

func TestBadKeysAreNamedButNotShown(t *testing.T) {
	f := newKeyFile(t)
	write(t, f, base64.StdEncoding.EncodeToString(make([]byte, 32))+"\nc2VjcmV0\n")
	_, err := f.read()
	if err == nil || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), f.path) || strings.Contains(err.Error(), "c2VjcmV0") {
		t.Errorf("%v", err)
	}
}

func TestAKeyFileWithoutAKey(t *testing.T) {
	f := newKeyFile(t)
	write(t, f, "")
	if _, err := f.read(); err == nil {
		t.Fatal("an empty file is no key: it is being written")
	}
	if _, err := os.Stat(f.path); err != nil {
		t.Fatalf("a file that somebody is writing was removed: %v", err)
	}
	f.now = func() time.Time { return time.Now().Add(2 * tornAfter) }
	if _, err := f.read(); err == nil {
		t.Error("what a crash has left is a key")
	}
	if keys, err := f.read(); err != nil || len(keys) != 1 {
		t.Errorf("after it was removed: %v, %v", keys, err)
	}
}

// TestNothingIsWrittenBelowAMountPoint: where /etc/pve is not mounted there is no priv.
func TestNothingIsWrittenBelowAMountPoint(t *testing.T) {
	root := t.TempDir()
	f := keyFile{path: filepath.Join(root, "priv", "pve-rigaud", "gossip.key"), now: time.Now}
	if _, err := f.read(); err == nil {
		t.Error("a key was made")
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
