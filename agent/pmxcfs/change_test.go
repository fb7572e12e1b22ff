package pmxcfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestConfDropPending(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ in, want string }{
		"a value":              {"a: 1\n\n[PENDING]\nb: 3\nc: 4\n", "a: 1\n\n[PENDING]\nc: 4\n"},
		"the only value":       {"a: 1\n\n[PENDING]\nb: 3\n", "a: 1\n"},
		"before a snapshot":    {"a: 1\n\n[PENDING]\nb: 3\n\n[x1]\nb: 4\n", "a: 1\n\n[x1]\nb: 4\n"},
		"a removal":            {"b: 1\n\n[PENDING]\ndelete: a,!b c\n", "b: 1\n\n[PENDING]\ndelete: a,c\n"},
		"the only removal":     {"b: 1\n\n[PENDING]\ndelete: b\n", "b: 1\n"},
		"value and removal":    {"b: 1\n\n[PENDING]\nb: 2\ndelete: b\nx: 1\n", "b: 1\n\n[PENDING]\nx: 1\n"},
		"others keep spelling": {"b: 1\n\n[pending]\n#d\ndelete:  x; y \nb: 2\n", "b: 1\n\n[pending]\n#d\ndelete:  x; y \n"},
		"a description stays":  {"b: 1\n\n[PENDING]\n#d\nb: 2\n", "b: 1\n\n[PENDING]\n#d\n"},
		"not in a snapshot":    {"b: 1\n\n[x1]\nb: 2\n", "b: 1\n\n[x1]\nb: 2\n"},
		"nothing of it":        {"b: 1\n\n[PENDING]\nbb: 2\n", "b: 1\n\n[PENDING]\nbb: 2\n"},
		"no newline":           {"b: 1\n\n[PENDING]\nb: 2", "b: 1\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := conf(t, tt.in)
			if got := string(c.DropPending("b").Bytes()); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if string(c.Bytes()) != tt.in {
				t.Error("the config itself has changed")
			}
		})
	}
}

func TestHotplugs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":                                  "network disk usb",
		"hotplug: 1\n":                      "network disk usb",
		"hotplug: 0\n":                      "",
		"hotplug: cpu,disk;memory\n":        "disk cpu memory",
		"a: 1\n\n[PENDING]\nhotplug: cpu\n": "network disk usb",
	} {
		got := ""
		for _, feature := range []string{"network", "disk", "cpu", "memory", "usb", "cloudinit"} {
			if conf(t, in).Hotplugs(feature) {
				got += " " + feature
			}
		}
		if got != "" {
			got = got[1:]
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestLockConf(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := LockConf(t.Context(), dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "lock-100.conf")); err != nil {
		t.Error(err)
	}
	// Another file descriptor is another owner, also in one process.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = LockConf(ctx, dir, 100)
	if !errors.Is(err, unix.EWOULDBLOCK) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a lock that is held: %v", err)
	}
	other, err := LockConf(t.Context(), dir, 101)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		again, err := LockConf(t.Context(), dir, 100)
		if err == nil {
			err = again()
		}
		got <- err
	}()
	if err := errors.Join(other(), unlock(), <-got); err != nil {
		t.Error(err)
	}
}

func TestStage(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.put("pve1", 100, "cores: 4\n")
	tree := Open(c.root)
	says := func(want string) {
		t.Helper()
		now, err := tree.Conf("pve1", 100)
		if err != nil || string(now.Bytes()) != want {
			t.Errorf("config %q, %v, want %q", now.Bytes(), err, want)
		}
		files, err := os.ReadDir(c.path("nodes/pve1/qemu-server"))
		if err != nil || want != "cores: 4\n" && len(files) != 1 {
			t.Errorf("files %v, %v", files, err)
		}
	}
	for _, discard := range []bool{true, false} {
		staged, err := tree.Stage("pve1", 100, conf(t, "cores: 8\n"))
		if err != nil {
			t.Fatal(err)
		}
		says("cores: 4\n")
		if discard {
			err = errors.Join(staged.Discard(), staged.Discard())
		} else {
			err = staged.Commit()
		}
		if err != nil {
			t.Error(err)
		}
	}
	says("cores: 8\n")
	if _, err := tree.Stage("pve9", 100, conf(t, "")); err == nil {
		t.Error("staged on a node that there is not")
	}
}
