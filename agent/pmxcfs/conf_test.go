package pmxcfs

import (
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func conf(t testing.TB, raw string) *Conf {
	t.Helper()
	c, err := ParseConf("x.conf", []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfRecorded(t *testing.T) {
	t.Parallel()
	raw := string(testdata(t, "120.conf"))
	c := conf(t, raw)
	if string(c.Bytes()) != raw {
		t.Error("Bytes is not what was parsed")
	}
	if got, want := c.Description(), "Web server\n<!-- marker: {\"a\":1} -->\n100% ok"; got != want {
		t.Errorf("description: got %q, want %q", got, want)
	}
	for key, want := range map[string]string{
		"cores": "1", "memory": "768", "sshkeys": "ssh-ed25519%20AAAAC3NzaC1lZDI1NTE5AAAAIJ1f3v3p7Gm5xQmTn2vZ8b1pQh5sQG2n7m4Y0m4t0abc%20lab%40test",
		"net0": "virtio=BC:24:11:78:31:57,bridge=vmbr0",
	} {
		if got, ok := c.Get(key); got != want || !ok {
			t.Errorf("Get(%q): got %q, %v", key, got, ok)
		}
	}
	for _, key := range []string{"searchdomain", "snaptime", "delete", "PENDING", "core", "coress", ""} {
		if got, ok := c.Get(key); ok {
			t.Errorf("Get(%q): got %q, want nothing", key, got)
		}
	}
	if got, want := c.Keys()[:4], []string{"agent", "boot", "cipassword", "ciuser"}; !slices.Equal(got, want) || len(c.Keys()) != 23 {
		t.Errorf("keys: got %d: %v", len(c.Keys()), c.Keys())
	}
	if got := c.CloudInit().Keys(); !slices.Equal(got, []string{"searchdomain"}) {
		t.Errorf("cloud-init: got %v", got)
	}
	for key, want := range map[string]string{"cores": "2", "memory": "1024", "sockets": "2"} {
		if got, ok := c.Next(key); got != want || !ok {
			t.Errorf("Next(%q): got %q, %v", key, got, ok)
		}
	}
	checkRecordedSnapshot(t, c)
}

func checkRecordedSnapshot(t *testing.T, c *Conf) {
	t.Helper()
	if all := c.Snapshots(); len(all) != 1 || all[0].Name != "alpha" {
		t.Fatalf("snapshots: got %v", all)
	}
	s, ok := c.Snapshot("alpha")
	if !ok || s.Description() != "first snapshot\ntwo lines" || s.Time() != 1795332991 || s.MemoryMiB() != 1024 || s.Parent() != "" {
		t.Errorf("snapshot alpha: got %v, %q, %d", ok, s.Description(), s.Time())
	}
	if _, ok := c.Snapshot("beta"); ok {
		t.Error("there is no snapshot beta")
	}
}

// What PVE's parser makes of odd files, line by line.
func TestConfParse(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in   string
		keys map[string]string // of the first part
		desc string
	}{
		"empty":                            {"", nil, ""},
		"no newline at the end":            {"name: a", map[string]string{"name": "a"}, ""},
		"no space, many spaces, CR":        {"name:a\ncores:   2  \r\n", map[string]string{"name": "a", "cores": "2"}, ""},
		"value with colons":                {"net0: virtio=AA:BB,bridge=b\n", map[string]string{"net0": "virtio=AA:BB,bridge=b"}, ""},
		"no value is no key":               {"name:\ncores: \n", nil, ""},
		"not a key":                        {"Name: a\n1x: b\n-x: c\nx y: d\nx1y: e\n: f\n", nil, ""},
		"the later of two counts":          {"name: a\nname: b\n", map[string]string{"name": "b"}, ""},
		"cdrom is ide2":                    {"cdrom: none\n", map[string]string{"ide2": "none"}, ""},
		"blank lines and leading space":    {"\n \nname: a\n name: b\n", map[string]string{"name": "a"}, ""},
		"description among keys":           {"#one\nname: a\n#two \n", map[string]string{"name": "a"}, "one\ntwo"},
		"description, empty lines":         {"#\n#a\n#\n#b\n#\n", nil, "\na\n\nb"},
		"old description":                  {"description: a%0Ab%3Ac\n", map[string]string{"description": "a%0Ab%3Ac"}, "a\nb:c"},
		"escapes":                          {"#%C3%A4 %zz 5% %4\n", nil, "ä %zz 5% %4"},
		"a plus is a plus":                 {"#a+b%2Bc\n", nil, "a+b+c"},
		"section in any case, with spaces": {"name: a\n[pending]  \nname: b\n", map[string]string{"name": "a"}, ""},
		"an unknown section ends the part": {"name: a\n[x y]\nname: b\n", map[string]string{"name": "a"}, ""},
		"one letter is no snapshot":        {"name: a\n[x]\nname: b\n", map[string]string{"name": "a"}, ""},
		"not a section":                    {"[a]b\nname: a\n [c]\n[d\n", map[string]string{"name": "a"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := conf(t, tt.in)
			got := map[string]string{}
			for _, k := range c.Keys() {
				got[k], _ = c.Get(k)
			}
			if tt.keys == nil {
				tt.keys = map[string]string{}
			}
			if diff := cmp.Diff(tt.keys, got); diff != "" {
				t.Errorf("keys (-want +got):\n%s", diff)
			}
			if c.Description() != tt.desc {
				t.Errorf("description: got %q, want %q", c.Description(), tt.desc)
			}
		})
	}
}

func TestConfSections(t *testing.T) {
	t.Parallel()
	c := conf(t, "name: a\ncores: 1\nscsi1: s:1\nballoon: 0\n[PENDING]\n#wish\ncores: 2\ndelete: balloon,!scsi1;net0 name\n\n"+
		"[special:fleecing]\nfleecing-images: x\n[s1]\nsnapstate: delete\n[ab]\nparent: s1\nvmstate: s:2\n[s1]\ncores: 7\n")
	p := c.Pending()
	if p.Empty() || p.Description() != "wish" || !slices.Equal(p.Deleted(), []string{"balloon", "scsi1", "net0", "name"}) {
		t.Errorf("pending: got %q, %v", p.Description(), p.Deleted())
	}
	for key, want := range map[string]string{"cores": "2", "name": "", "scsi1": "", "balloon": "", "delete": ""} {
		if got, ok := c.Next(key); got != want || ok != (want != "") {
			t.Errorf("Next(%q): got %q, %v", key, got, ok)
		}
	}
	names := []string{}
	for _, s := range c.Snapshots() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"s1", "ab", "s1"}) {
		t.Errorf("snapshots: got %v", names)
	}
	if s, _ := c.Snapshot("s1"); s.MemoryMiB() != 512 || s.value("cores") != "7" || s.State() != "" {
		t.Errorf("the later of two sections counts: got %q", s.Section)
	}
	if s, _ := c.Snapshot("ab"); s.Parent() != "s1" || !s.Memory() || s.Time() != 0 {
		t.Errorf("ab: got %q", s.Section)
	}
	if p := conf(t, "name: a\n").Pending(); !p.Empty() || len(p.Deleted()) != 0 || p.Deletes("") {
		t.Error("no pending section: not empty")
	}
}

// Digest is the SHA-1 of the file, as `sha1sum` says.
func TestConfDigest(t *testing.T) {
	t.Parallel()
	if got := conf(t, "").Digest(); got != "da39a3ee5e6b4b0d3255bfef95601890afd80709" {
		t.Errorf("digest of an empty file: got %s", got)
	}
	if got := conf(t, "name: a\n").Digest(); got != "52727e27895c147e0e1a1e961e63f59d3cc7fdb5" {
		t.Errorf("digest: got %s", got)
	}
}

func TestConfSet(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		in, key, value, want string
	}{
		"change":             {"#d\na: 1\nb: 2\n\n[PENDING]\nb: 3\n", "b", "9", "#d\na: 1\nb: 9\n\n[PENDING]\nb: 3\n"},
		"keeps odd spacing":  {"b:  2 \r\nc: 3", "b", "99", "b:  99 \r\nc: 3"},
		"value in the key":   {"b: b\n", "b", "cc", "b: cc\n"},
		"last of two":        {"b: 1\nb: 1\n", "b", "2", "b: 1\nb: 2\n"},
		"no newline":         {"b: 2", "b", "3", "b: 3"},
		"insert in order":    {"#d\na: 1\nc: 3\n\n[x1]\nb: 4\n", "b", "2", "#d\na: 1\nb: 2\nc: 3\n\n[x1]\nb: 4\n"},
		"insert at the end":  {"#d\na: 1\n\n[x1]\nb: 4\n", "vcpus", "2", "#d\na: 1\nvcpus: 2\n\n[x1]\nb: 4\n"},
		"insert, no newline": {"a: 1", "b", "2", "a: 1\nb: 2\n"},
		"insert in nothing":  {"", "b", "2", "b: 2\n"},
		"insert before a section": {
			"[PENDING]\nb: 3\n", "b", "2", "b: 2\n[PENDING]\nb: 3\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := conf(t, tt.in)
			changed, err := c.Set(tt.key, tt.value)
			if err != nil || string(changed.Bytes()) != tt.want {
				t.Errorf("got %q, %v, want %q", changed.Bytes(), err, tt.want)
			}
			if string(c.Bytes()) != tt.in {
				t.Error("the config itself has changed")
			}
		})
	}
}

func TestConfSetRefuses(t *testing.T) {
	t.Parallel()
	for _, kv := range [][2]string{
		{"", "1"},
		{"A", "1"},
		{"a b", "1"},
		{"a", ""},
		{"a", " 1"},
		{"a", "1 "},
		{"a", "1\nb: 2"},
		{"a", "\x00"},
		{"[x]", "1"},
		{"description", "x"},
		{"delete", "x"},
		{"snapstate", "x"},
		{"cdrom", "none"},
		{"a:", "1"},
	} {
		if c, err := conf(t, "a: 1\n").Set(kv[0], kv[1]); err == nil {
			t.Errorf("Set(%q, %q): got %q, want an error", kv[0], kv[1], c.Bytes())
		}
	}
}

func TestConfDelete(t *testing.T) {
	t.Parallel()
	in := "#b: d\nb: 1\na: 1\nb: 2\nbb: 3\n\n[PENDING]\nb: 3\n"
	if got, want := string(conf(t, in).Delete("b").Bytes()), "#b: d\na: 1\nbb: 3\n\n[PENDING]\nb: 3\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(conf(t, in).Delete("x").Bytes()); got != in {
		t.Errorf("deleting nothing: got %q", got)
	}
}

func FuzzConf(f *testing.F) {
	f.Add(testdata(f, "120.conf"), "cores", "8")
	f.Add(testdata(f, "900.conf"), "vcpus", "2")
	f.Add([]byte("[a]\n[PENDING]\r\n#%\n#%C3\nb:1\nb"), "b", "x")
	f.Add([]byte("scsi0: a:b,size=9999999999999T\nnet0: =,,=\nboot: order=;;\nmemory: current=\n"), "net0", "virtio")
	f.Fuzz(func(t *testing.T, raw []byte, key, value string) {
		c, err := ParseConf("x", raw)
		if err != nil {
			if !strings.ContainsRune(string(raw), 0) {
				t.Fatalf("refused without a zero byte: %v", err)
			}
			return
		}
		if string(c.Bytes()) != string(raw) {
			t.Fatal("round trip")
		}
		touch(c)
		changed, err := c.Set(key, value)
		if err != nil {
			return
		}
		if p := c.DropPending(key).Pending(); p.Deletes(key) || slices.Contains(p.Keys(), key) {
			t.Fatalf("after DropPending(%q) it waits", key)
		}
		checkEdit(t, c, changed, key, value)
	})
}

// touch calls every reader.
func touch(c *Conf) {
	c.Description()
	c.Digest()
	c.Drives()
	c.Unused()
	c.NICs()
	c.BootDisk()
	c.CPUs()
	c.MemoryMiB()
	c.Tags()
	c.AgentEnabled()
	c.SMBIOSUUID()
	c.CloudInit().Keys()
	c.Pending().Deleted()
	for _, s := range c.Snapshots() {
		s.Drives()
		s.Time()
	}
}

// checkEdit checks that a change of one key changes nothing else, and can be taken back.
func checkEdit(t *testing.T, c, changed *Conf, key, value string) {
	t.Helper()
	if got, ok := changed.Get(key); !ok || got != value {
		t.Fatalf("after Set(%q, %q) it is %q, %v", key, value, got, ok)
	}
	before, had := c.Get(key)
	var keys []string
	for _, k := range c.Keys() {
		v, _ := c.Get(k)
		if w, _ := changed.Get(k); k != key && v != w {
			t.Fatalf("Set(%q) changed %q from %q to %q", key, k, v, w)
		}
		if k != key {
			keys = append(keys, k)
		}
	}
	if got := changed.Delete(key).Keys(); !slices.Equal(got, keys) {
		t.Fatalf("Delete(%q): got keys %v, want %v", key, got, keys)
	}
	if len(c.sections) != len(changed.sections) || changed.Description() != c.Description() && key != "description" {
		t.Fatalf("Set(%q, %q) changed sections or description", key, value)
	}
	if had {
		back, err := changed.Set(key, before)
		if err != nil || string(back.Bytes()) != string(c.Bytes()) {
			t.Fatalf("taking Set(%q, %q) back: %q, %v", key, value, back.Bytes(), err)
		}
	}
}

func BenchmarkConfGet(b *testing.B) {
	c := conf(b, string(testdata(b, "120.conf")))
	b.ReportAllocs()
	for b.Loop() {
		c.Get("vmgenid")
	}
}

func BenchmarkConfParse(b *testing.B) {
	raw := testdata(b, "120.conf")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseConf("x", raw); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkConfMemory reports what a thousand cached configs cost beyond their own bytes.
func BenchmarkConfMemory(b *testing.B) {
	raw := testdata(b, "120.conf")
	for b.Loop() {
		const n = 1000
		confs := make([]*Conf, n)
		before := heap()
		for i := range confs {
			confs[i], _ = ParseConf("x", raw)
		}
		after := heap()
		b.ReportMetric(float64(after-before)/n, "B/conf")
		b.ReportMetric(float64(after-before)/n-float64(len(raw)), "overhead-B/conf")
		runtime.KeepAlive(confs)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
