package pmxcfs

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func storages(t *testing.T, raw string) Storages {
	t.Helper()
	s, err := ParseStorages("storage.cfg", []byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoragesRecorded(t *testing.T) {
	t.Parallel()
	all := storages(t, string(testdata(t, "storage.cfg")))
	if len(all) != 2 || all[0].ID != "local" || all[1].ID != "shared" {
		t.Fatalf("got %+v", all)
	}
	local, shared := all[0], all[1]
	if local.Path != "/var/lib/vz" || local.Shared || !shared.Shared || !local.Has("import") || local.Has("none") ||
		local.Options["prune-backups"] != "keep-all=1" || !shared.OnNode("pve9") {
		t.Errorf("got %+v", all)
	}
	if _, ok := all.Get("nothing"); ok {
		t.Error("there is no storage of that name")
	}
}

func TestStorages(t *testing.T) {
	t.Parallel()
	all := storages(t, `# a comment
dir: local
	path /var/lib/vz
	nodes pve1

NFS: nas
        server 10.0.0.1
	export /x
	nodes pve1,pve2
	content-dirs snippets=my/snippets,iso=isos

lvmthin: fast
	vgname pve
	disable

zfspool: tank
	pool tank
	sparse
	content images
	shared 0
rbd: ceph
	disable 0
btrfs: b
	path /b
`)
	get := func(id string) Storage {
		s, ok := all.Get(id)
		if !ok {
			t.Fatalf("no storage %s in %+v", id, all)
		}
		return s
	}
	if s := get("local"); s.Nodes != nil || !s.OnNode("pve2") || !slices.Equal(s.Content, []string{"images", "rootdir"}) {
		t.Errorf("local is never limited to nodes, and has a type's default content: %+v", s)
	}
	if s := get("nas"); s.Type != "nfs" || !s.Shared || s.Path != "/mnt/pve/nas" || !s.OnNode("pve2") || s.OnNode("pve3") || !s.Has("images") {
		t.Errorf("nas: %+v", s)
	}
	if s := get("fast"); !s.Disable || s.OnNode("pve1") || s.Options["disable"] != "1" || s.Path != "" {
		t.Errorf("fast: %+v", s)
	}
	if s := get("tank"); s.Options["sparse"] != "1" || s.Has("rootdir") || s.Shared {
		t.Errorf("tank: %+v", s)
	}
	if s := get("ceph"); !s.Shared || !s.OnNode("pve1") {
		t.Errorf("ceph: %+v", s)
	}
	path, err := get("nas").SnippetPath("a.yaml")
	if err != nil || path != "/mnt/pve/nas/my/snippets/a.yaml" {
		t.Errorf("snippet: got %q, %v", path, err)
	}
}

// Without the file, or without a storage "local" of type dir in it, there is PVE's own.
func TestStoragesLocal(t *testing.T) {
	t.Parallel()
	for _, raw := range []string{"", "nfs: nas\n\tserver x\n", "lvm: local\n\tvgname x\n"} {
		local, ok := storages(t, raw).Get("local")
		if !ok || local.Type != "dir" || local.Path != "/var/lib/vz" || !local.Has("snippets") {
			t.Errorf("%q: got %+v, %v", raw, local, ok)
		}
	}
	c := newCluster(t)
	c.check(os.Remove(c.path("storage.cfg")))
	if all, err := Open(c.root).Storages(); err != nil || len(all) != 1 {
		t.Errorf("no file: got %v, %v", all, err)
	}
}

func TestStoragesGarbage(t *testing.T) {
	t.Parallel()
	for raw, want := range map[string]string{
		"\tpath /x\n":               "line 1: an option outside of a storage",
		"dir: a\n\tpath /x\nrest\n": "line 3: no `type: id`",
		"dir: a b\n":                "line 1: no `type: id`",
		"dir:\n":                    "line 1: no `type: id`",
		"\x00\x00":                  "zero byte",
	} {
		_, err := ParseStorages("/etc/pve/storage.cfg", []byte(raw))
		var format *FormatError
		if !errors.As(err, &format) || !strings.Contains(err.Error(), "/etc/pve/storage.cfg") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", raw, err, want)
		}
	}
}

func TestStorageFormat(t *testing.T) {
	t.Parallel()
	all := storages(t, "nfs: nas\nlvm: lvm\nlvmthin: thin\nzfspool: z\nrbd: r\nbtrfs: b\n\tpath /b\n")
	for _, tt := range [][3]string{
		{"local", "100/vm-100-disk-0.qcow2", "qcow2"},
		{"nas", "100/vm-100-disk-0.vmdk", "vmdk"},
		{"nas", "100/vm-100-disk-0.raw", "raw"},
		{"nas", "iso/x.iso", "raw"},
		{"lvm", "vm-100-disk-0", "raw"},
		{"lvm", "vm-100-disk-0.qcow2", "qcow2"},
		{"thin", "vm-100-disk-0", "raw"},
		{"z", "base-1-disk-0/vm-100-disk-0", "raw"},
		{"r", "vm-1-cloudinit.qcow2", "raw"},
		{"b", "1/vm-1-disk-0.raw", "raw"},
	} {
		s, _ := all.Get(tt[0])
		if got := s.Format(tt[1]); got != tt[2] {
			t.Errorf("%s:%s: got %q, want %q", tt[0], tt[1], got, tt[2])
		}
	}
}

func TestVolumePath(t *testing.T) {
	t.Parallel()
	all := storages(t, "lvm: lvm\nbtrfs: b\n\tpath /b\n")
	tests := map[string]string{
		"local:120/vm-120-disk-0.qcow2":                           "/var/lib/vz/images/120/vm-120-disk-0.qcow2",
		"local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2": "/var/lib/vz/images/120/vm-120-disk-0.qcow2",
		"local:iso/debian.iso":                                    "/var/lib/vz/template/iso/debian.iso",
		"local:vztmpl/x.tar.zst":                                  "/var/lib/vz/template/cache/x.tar.zst",
		"local:snippets/a.yaml":                                   "/var/lib/vz/snippets/a.yaml",
		"local:backup/vzdump-qemu-1.vma.zst":                      "/var/lib/vz/dump/vzdump-qemu-1.vma.zst",
		"local:import/x.ova/disk.vmdk":                            "/var/lib/vz/import/x.ova/disk.vmdk",
		"b:1/vm-1-disk-0.raw":                                     "/b/images/1/vm-1-disk-0/disk.raw",
		"b:1/vm-1-disk-0.qcow2":                                   "/b/images/1/vm-1-disk-0.qcow2",
		"local:../etc/passwd":                                     "",
		"local:120/../../x":                                       "",
		"local:iso/../../../x":                                    "",
		"local:120/a/b":                                           "",
		"local:120":                                               "",
		"local:other/x":                                           "",
		"local:":                                                  "",
		"local:other:1/x":                                         "",
		"lvm:1/vm-1-disk-0":                                       "",
		"local:iso//x":                                            "",
		"local:900/base-900-disk-0.qcow2/x/vm-120-disk-0.qcow2": "",
	}
	for volid, want := range tests {
		id, _, _ := strings.Cut(volid, ":")
		s, _ := all.Get(id)
		got, err := s.VolumePath(volid)
		if want == "" && err == nil || want != "" && (err != nil || got != want) {
			t.Errorf("%s: got %q, %v, want %q", volid, got, err, want)
		}
		if want != "" {
			if bare, err := s.VolumePath(strings.TrimPrefix(volid, id+":")); err != nil || bare != want {
				t.Errorf("%s without its storage: got %q, %v", volid, bare, err)
			}
		}
	}
}

func TestSnippetPathRefuses(t *testing.T) {
	t.Parallel()
	local, _ := storages(t, "").Get("local")
	for _, file := range []string{"", ".", "..", "a/b", "/etc/passwd", "../x"} {
		if path, err := local.SnippetPath(file); err == nil {
			t.Errorf("%q: got %q, want an error", file, path)
		}
	}
	thin := Storage{ID: "thin", Type: "lvmthin"}
	if path, err := thin.SnippetPath("x"); err == nil || path != "" {
		t.Errorf("no files there: got %q, %v", path, err)
	}
}

func FuzzStorages(f *testing.F) {
	f.Add(testdata(f, "storage.cfg"), "local:1/x")
	f.Add([]byte("dir: a\n x\n\t\n\ty  z \nnfs: a"), "a:iso/../x")
	f.Fuzz(func(t *testing.T, raw []byte, volid string) {
		all, err := ParseStorages("x", raw)
		if err != nil {
			return
		}
		for _, s := range all {
			if s.Path != "/var/lib/vz" {
				continue
			}
			if p, err := s.VolumePath(volid); err == nil && s.Options["content-dirs"] == "" && !strings.HasPrefix(p, "/var/lib/vz/") {
				t.Fatalf("%q leaves its storage: %q", volid, p)
			}
		}
	})
}
