package plan

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

var update = flag.Bool("update", false, "rewrite golden files")

// site is a node with a few storages.
func site(t *testing.T) Site {
	t.Helper()
	storages, err := pmxcfs.ParseStorages("storage.cfg", []byte(`
dir: local
	path /var/lib/vz
	content iso,vztmpl,snippets,import

lvmthin: thin
	vgname pve
	thinpool data
	content images,rootdir

lvm: thick
	vgname old
	content images
	nodes pve1

nfs: files
	server nas
	export /vms
	content images

nfs: rawfiles
	server nas
	export /raw
	content images
	format raw
	nodes pve1

dir: elsewhere
	path /srv
	content images
	nodes pve2
`))
	if err != nil {
		t.Fatal(err)
	}
	world := &pmxcfs.World{Storages: storages, Members: pmxcfs.Members{
		Cluster: "lab", Nodes: map[string]pmxcfs.Member{"pve1": {Name: "pve1", Online: true}, "pve2": {Name: "pve2", Online: true}},
	}}
	return Site{Node: "pve1", World: world, CPUs: 16, MHz: 2000, Major: 9, Policy: Policy{
		Bridges: map[string]string{"storage": "vmbr5"},
		StorageClasses: map[string]StorageClass{
			"nvme": {Storage: "thick", Options: Values{"ssd": "1", "iothread": "1"}}, "hdd": {Options: Values{"discard": "ignore"}},
			"fast": {Options: Values{"iothread": "true"}},
		},
	}}
}

// base is the template of the cases that give none.
const base = "name: tpl\ntemplate: 1\nscsihw: virtio-scsi-pci\nboot: order=scsi0\nscsi0: thin:base-9000-disk-0,size=10G\nnet0: virtio=AA:BB:CC:00:00:01,bridge=vmbr0\n"

// A case of testdata/create.txt: a title, the template's config with '|' for line ends (base if there is none), the wish
// as JSON, and what becomes of it. `go test ./agent/plan -update` writes the last.
func TestCreate(t *testing.T) {
	const file = "testdata/create.txt"
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	head, rest, _ := strings.Cut(string(raw), "\n## ")
	fmt.Fprint(&out, head)
	for text := range strings.SplitSeq("## "+rest, "\n## ") {
		text = strings.TrimPrefix(text, "## ")
		question, _, _ := strings.Cut(text, "\n\t")
		question = strings.TrimRight(question, "\n")
		fmt.Fprintf(&out, "\n## %s\n", question)
		for _, line := range answer(t, question) {
			fmt.Fprintf(&out, "\t%s\n", line)
		}
	}
	if *update {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(raw), out.String()); diff != "" {
		t.Errorf("%s (-update rewrites it):\n%s", file, diff)
	}
}

// answer plans the VM of one case.
func answer(t *testing.T, question string) []string {
	t.Helper()
	source, wish := base, Wish{Class: &spec.Class{CPU: 1, MemoryMiB: 1024}}
	s, volume := site(t), ""
	for line := range strings.Lines(question) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "template":
			source = strings.ReplaceAll(value, "|", "\n") + "\n"
		case "volume":
			volume = value
		case "pve":
			_, _ = fmt.Sscan(value, &s.Major)
		case "wish":
			if err := json.Unmarshal([]byte(value), &wish); err != nil {
				t.Fatalf("%s: %v", value, err)
			}
		}
	}
	conf, created := conf(t, source), Values{}
	if volume != "" {
		blank, err := MakeBlank(volume, "", wish, s)
		if err != nil {
			return []string{said(err)}
		}
		conf, created = blank.Conf, blank.Values
	}
	vm, err := Create(wish, conf, s, counted())
	if err != nil {
		return []string{said(err)}
	}
	return append(lines("new ", created), described(vm)...)
}

func said(err error) string { return fmt.Sprintf("%s: %v", fault.Of(err), err) }

func lines(prefix string, v Values) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(v)) {
		out = append(out, fmt.Sprintf("%s%s: %s", prefix, k, v[k]))
	}
	return out
}

// unsurprising is what every VM of one CPU and 1 GiB has.
var unsurprising = Values{"cores": "1", "sockets": "1", "vcpus": "1", "memory": "1024", "hotplug": "disk,network,usb"}

func described(vm VM) []string {
	config := maps.Clone(vm.Config)
	maps.DeleteFunc(config, func(k, v string) bool { return unsurprising[k] == v })
	out := lines("", config)
	for _, d := range vm.Drives {
		out = append(out, fmt.Sprintf("allocate %s: %s", d.Key, d.Value))
	}
	out = append(out, lines("root ", vm.Options)...)
	if vm.Root.Disk != "" {
		out = append(out, fmt.Sprintf("grow %s: %d GiB", vm.Root.Disk, vm.Root.GiB))
	}
	for _, f := range []struct {
		name string
		set  bool
		text string
	}{{"linked", vm.Linked, "yes"}, {"storage", vm.Storage != "", vm.Storage}, {"pool", vm.Pool != "", vm.Pool}} {
		if f.set {
			out = append(out, f.name+": "+f.text)
		}
	}
	for _, n := range vm.Notes {
		out = append(out, "note: "+n)
	}
	return out
}

func TestTag(t *testing.T) {
	for word, want := range map[string]string{
		"web": "web", "Team A": "team-a", "env=prod": "env-prod", "k8s.io/app:x": "k8s.io-app-x", "-x": "_x", "+": "_", "ü": "", "": "", "a_b-c+d.e": "a_b-c+d.e", " Mixed ": "mixed",
	} {
		if got := Tag(word); got != want {
			t.Errorf("%q becomes %q, want %q", word, got, want)
		}
	}
	if got, want := Tags([]string{"New", "web"}, []string{"old", "web", "theirs"}, []string{"OLD"}), []string{"new", "theirs", "web"}; !slices.Equal(got, want) {
		t.Errorf("tags %v, want %v", got, want)
	}
}

func TestSerial(t *testing.T) {
	long := "a-name-that-is-longer-than-twenty"
	for _, tc := range []struct {
		name  string
		index int
		want  string
	}{{"data", 3, "data"}, {"", 0, "disk-1"}, {strings.Repeat("x", 20), 0, strings.Repeat("x", 20)}} {
		if got := Serial(tc.name, tc.index); got != tc.want {
			t.Errorf("%q: %q, want %q", tc.name, got, tc.want)
		}
	}
	a, b := Serial(long+"a", 0), Serial(long+"b", 0)
	if len(a) != 20 || a == b {
		t.Errorf("%q and %q: want two of 20 characters", a, b)
	}
}

// planned are the disks to be made and to be grown for a wish.
func planned(t *testing.T, conf *pmxcfs.Conf, wish ...spec.Disk) (drives []Drive, grow []Growth, err error) {
	t.Helper()
	data := newDataDisks(conf, "thin", "", nil, site(t))
	for i, d := range wish {
		fresh, g, err := data.next(i, d)
		if err != nil {
			return nil, nil, err
		}
		if fresh.Key != "" {
			drives = append(drives, fresh)
		}
		if g.Disk != "" {
			grow = append(grow, g)
		}
	}
	return drives, grow, nil
}

func TestDataDisksAreFoundAgain(t *testing.T) {
	have := conf(t, base+"scsi1: thin:vm-100-disk-1,size=8G,serial=data\nscsi3: thin:vm-100-disk-2,size=4G,serial=logs\n[PENDING]\nscsi2: thin:vm-100-disk-3,size=1G\n")
	drives, grow, err := planned(t, have, spec.Disk{Name: "logs", SizeGiB: 6}, spec.Disk{Name: "data", SizeGiB: 8}, spec.Disk{Name: "new", SizeGiB: 2})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Drive{{Key: "scsi4", Value: "thin:2,serial=new", Serial: "new"}}, drives); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Growth{{Disk: "scsi3", GiB: 6}}, grow); diff != "" {
		t.Error(diff)
	}
	if drives, grow, err := planned(t, have, spec.Disk{Name: "data", SizeGiB: 8}); err != nil || len(drives)+len(grow) > 0 {
		t.Errorf("what is there: %+v, %+v, %v", drives, grow, err)
	}
	odd := conf(t, base+"scsi1: thin:vm-100-disk-1,serial=data\nide0: none,media=cdrom,serial=logs\n") // a size that nobody knows, and a CD
	drives, grow, err = planned(t, odd, spec.Disk{Name: "data", SizeGiB: 8}, spec.Disk{Name: "logs", SizeGiB: 1})
	if diff := cmp.Diff([]Drive{{Key: "scsi2", Value: "thin:1,serial=logs", Serial: "logs"}}, drives); diff != "" || len(grow) > 0 || err != nil {
		t.Errorf("%v, %v\n%s", grow, err, diff)
	}
	_, _, err = planned(t, have, spec.Disk{Name: "data", SizeGiB: 7})
	if !fault.Is(err, fault.Precondition) || !strings.Contains(err.Error(), "scsi1") {
		t.Errorf("shrinking: %v", err)
	}
}

func TestSetOptions(t *testing.T) {
	got := SetOptions("thin:vm-1-disk-0,cache=none,size=4G,ssd=0", Values{"ssd": "1", "discard": "on"})
	if want := "thin:vm-1-disk-0,cache=none,size=4G,discard=on,ssd=1"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestPolicyCheck(t *testing.T) {
	for option, value := range map[string]string{"cache": "fast", "ssd": "maybe", "path": "/dev/sda", "serial": "x"} {
		p := Policy{StorageClasses: map[string]StorageClass{"nvme": {Options: Values{option: value}}}}
		if err := p.Check(); err == nil || !strings.Contains(err.Error(), option) {
			t.Errorf("%s=%s: %v", option, value, err)
		}
	}
	if err := site(t).Policy.Check(); err != nil {
		t.Error(err)
	}
}
