package scenario

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// truth is what there is in a cluster, read from its files and not told by anybody.
type truth struct {
	vms     []vm // without templates
	records []claim
	images  []string // "node/vz 104/vm-104-disk-0.qcow2"
	nodes   []string
	files   map[string]bool // snippets, as "node/file"
	used    map[string]bool
}

// vm is a config in the tree.
type vm struct {
	ID         int
	Node, Name string
	UUID, Lock string
	Snippets   []string // files that its config names
}

// id is the id by which clients know it.
func (v vm) id() string {
	if len(v.UUID) < 8 {
		return strconv.Itoa(v.ID)
	}
	return fmt.Sprintf("%d-%s", v.ID, v.UUID[:8])
}

// claim is a record in the tree.
type claim struct {
	Owner, Name, UUID, Node, State string
	VMID                           int
	file                           string
}

var (
	uuidIn    = regexp.MustCompile(`uuid=([0-9a-fA-F-]{36})`)
	snippetIn = regexp.MustCompile(`local:snippets/(pve-rigaud-[0-9a-f]+\.yaml)`)
	imageIn   = regexp.MustCompile(`(?m)^[a-z]+\d+: [a-z]+:(\d+/[^,\s]+)`)
)

// look reads the files of a simulated cluster.
func look(dir string) (truth, error) {
	t := truth{used: map[string]bool{}, files: map[string]bool{}}
	err := errors.Join(t.readVMs(filepath.Join(dir, "etc/pve/nodes")), t.readRecords(filepath.Join(dir, "etc/pve/priv/pve-rigaud/vms")), t.readImages(dir), t.readSnippets(dir))
	return t, err
}

func (t *truth) readVMs(nodes string) error {
	paths, err := filepath.Glob(filepath.Join(nodes, "*", "qemu-server", "*.conf"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		for _, m := range imageIn.FindAllStringSubmatch(string(b), -1) {
			t.used[m[1]] = true
		}
		v, template := parseConf(string(b))
		v.Node = filepath.Base(filepath.Dir(filepath.Dir(path)))
		for _, m := range snippetIn.FindAllStringSubmatch(string(b), -1) {
			v.Snippets = append(v.Snippets, m[1])
		}
		if v.ID, err = strconv.Atoi(strings.TrimSuffix(filepath.Base(path), ".conf")); err == nil && !template {
			t.vms = append(t.vms, v)
		}
	}
	return nil
}

// parseConf reads what matters here of a VM's config, up to its first snapshot.
func parseConf(text string) (v vm, template bool) {
	text, _, _ = strings.Cut(text, "\n[")
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "name":
			v.Name = value
		case "lock":
			v.Lock = value
		case "template":
			template = value == "1"
		case "smbios1":
			if m := uuidIn.FindStringSubmatch(value); m != nil {
				v.UUID = strings.ToLower(m[1])
			}
		}
	}
	return v, template
}

func (t *truth) readRecords(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		b, rerr := os.ReadFile(filepath.Join(dir, e.Name()))
		if errors.Is(rerr, fs.ErrNotExist) {
			continue
		}
		c := claim{file: e.Name()}
		if jerr := json.Unmarshal(b, &c); jerr != nil {
			c.State = "torn"
		}
		t.records = append(t.records, c)
		err = errors.Join(err, rerr)
	}
	return err
}

// readImages lists the volumes of all storages, each below images/<vmid>.
func (t *truth) readImages(dir string) error {
	for _, pattern := range []string{"*/vz/images/*/*", "st/*/images/*/*", "*/st/*/images/*/*"} {
		paths, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, p := range paths {
			t.images = append(t.images, filepath.Base(filepath.Dir(p))+"/"+filepath.Base(p))
		}
	}
	slices.Sort(t.images)
	return nil
}

// readSnippets lists what cloud-init reads, on all nodes.
func (t *truth) readSnippets(dir string) error {
	dirs, err := filepath.Glob(filepath.Join(dir, "*/vz/snippets"))
	for _, d := range dirs {
		node := filepath.Base(filepath.Dir(filepath.Dir(d)))
		t.nodes = append(t.nodes, node)
		entries, rerr := os.ReadDir(d)
		for _, e := range entries {
			t.files[node+"/"+e.Name()] = true
		}
		err = errors.Join(err, rerr)
	}
	slices.Sort(t.nodes)
	return err
}

// having are the nodes that have all snippets of a VM.
func (t *truth) having(v vm) (nodes []string) {
	for _, node := range t.nodes {
		if !slices.ContainsFunc(v.Snippets, func(file string) bool { return !t.files[node+"/"+file] }) {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// has reports whether a VM with an id is there: its number, with its uuid.
func (t *truth) has(id string) bool {
	return slices.ContainsFunc(t.vms, func(v vm) bool { return v.id() == id })
}

// named returns the VMs of a name.
func (t *truth) named(name string) (found []vm) {
	for _, v := range t.vms {
		if v.Name == name {
			found = append(found, v)
		}
	}
	return found
}

// record returns the record of a number.
func (t *truth) record(vmid int) (claim, bool) {
	for _, c := range t.records {
		if c.VMID == vmid {
			return c, true
		}
	}
	return claim{}, false
}
