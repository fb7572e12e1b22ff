package pvesim

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
)

// found is a volume that is there.
type found struct {
	vol   volume
	info  disk.Info
	ctime int64
}

var ownerDir = regexp.MustCompile(`^[1-9]\d+$`)

// volumes lists a storage as a node sees it.
func (p *storagePool) volumes(ctx context.Context, node, storage string) ([]found, error) {
	s, err := p.enabled(storage, node)
	if err != nil {
		return nil, err
	}
	var out []found
	dir := s.dirs[node]
	owners, _ := os.ReadDir(filepath.Join(dir, "images")) // absent is empty
	for _, o := range owners {
		if ownerDir.MatchString(o.Name()) {
			out = append(out, p.images(ctx, dir, s, o.Name())...)
		}
	}
	for kind, sub := range map[string]string{
		"iso": "template/iso", "snippets": "snippets", "import": "import", "vztmpl": "template/cache", "backup": "dump",
	} {
		if s.holds(kind) {
			out = append(out, plainFiles(filepath.Join(dir, sub), storage, kind)...)
		}
	}
	return out, nil
}

func (p *storagePool) images(ctx context.Context, dir string, s Storage, owner string) []found {
	var out []found
	entries, _ := os.ReadDir(filepath.Join(dir, "images", owner)) // absent is empty
	for _, e := range entries {
		format := strings.TrimPrefix(filepath.Ext(e.Name()), ".")
		if format != "qcow2" && format != "raw" {
			continue
		}
		info, err := p.c.disks.Info(ctx, filepath.Join(dir, "images", owner, e.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		v := volume{storage: s.Name, kind: "images", name: e.Name(), owner: atoi(owner), format: format}
		if s.block() {
			v.name, v.format, v.block = strings.TrimSuffix(v.name, ".qcow2"), "raw", true
		}
		v.isBase = strings.HasPrefix(v.name, "base-")
		if info.Backing != "" {
			v.base = filepath.Base(filepath.Dir(info.Backing)) + "/" + filepath.Base(info.Backing)
			if s.block() {
				v.base = strings.TrimSuffix(filepath.Base(info.Backing), ".qcow2")
			}
		}
		f := found{vol: v, info: info}
		if fi, err := e.Info(); err == nil {
			f.ctime = fi.ModTime().Unix()
		}
		out = append(out, f)
	}
	return out
}

func plainFiles(dir, storage, kind string) []found {
	var out []found
	entries, _ := os.ReadDir(dir) // absent is empty
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil || fi.IsDir() {
			continue
		}
		v, err := parseVolume(storage + ":" + kind + "/" + e.Name())
		if err != nil {
			continue
		}
		out = append(out, found{vol: v, info: disk.Info{Virtual: fi.Size(), Format: v.format}, ctime: fi.ModTime().Unix()})
	}
	return out
}

func (f found) json() map[string]any {
	out := map[string]any{
		"volid": f.vol.String(), "content": f.vol.kind, "format": f.vol.format, "size": f.info.Virtual, "ctime": f.ctime,
	}
	if f.vol.kind == "images" {
		out["vmid"], out["used"], out["parent"] = f.vol.owner, f.info.Actual, nil
		if f.vol.base != "" {
			out["parent"] = "../" + f.vol.base
			if f.vol.block {
				out["parent"] = f.vol.base
			}
		}
	}
	return out
}

// listContent is GET .../storage/{storage}/content.
func (c *Cluster) listContent(ctx context.Context, rq *request) (any, error) {
	storage := rq.vars["storage"]
	vols, err := c.pool.volumes(ctx, rq.node.Name, storage)
	if err != nil {
		return nil, err
	}
	out := []any{}
	for _, f := range vols {
		if kind := rq.param("content"); kind != "" && kind != f.vol.kind {
			continue
		}
		if rq.has("vmid") && f.vol.owner != 0 && f.vol.owner != rq.number("vmid", 0) {
			continue
		}
		if rq.has("vmid") && f.vol.owner == 0 && f.vol.kind != "import" {
			continue
		}
		if mayAccess(rq.who, f.vol) {
			out = append(out, f.json())
		}
	}
	return out, nil
}

// mayAccess is PVE's rule for seeing a volume in a list.
func mayAccess(who principal, v volume) bool {
	path := "/storage/" + v.storage
	if who.may(path, "Datastore.Allocate") {
		return true
	}
	switch v.kind {
	case "iso", "vztmpl", "import":
		return who.checkAny(path, "Datastore.AllocateSpace", "Datastore.Audit") == nil
	case "images":
		return who.may(path, "Datastore.Audit") && who.may("/vms/"+itoa(v.owner), "VM.Config.Disk")
	}
	return false
}

// deleteContent is DELETE .../storage/{storage}/content/{volume}.
func (c *Cluster) deleteContent(ctx context.Context, rq *request) (any, error) {
	volid := rq.vars["volume"]
	if !strings.Contains(volid, ":") {
		volid = rq.vars["storage"] + ":" + volid
	}
	v, err := parseVolume(volid)
	if err != nil {
		return nil, err
	}
	if v.storage != rq.vars["storage"] {
		return nil, paramError("storage", "storage ID does not match volume ID")
	}
	if err := rq.who.check("/storage/"+v.storage, "Datastore.Allocate"); err != nil {
		return nil, err
	}
	id := v.storage
	if v.owner != 0 {
		id = itoa(v.owner) + "@" + v.storage
	}
	node := rq.node.Name
	upid := c.fork(node, "imgdel", id, rq.who, work{run: func(_ context.Context, t *Task) error {
		if err := c.pool.free(node, volid); err != nil {
			return err
		}
		t.logf("Removed volume '%s'", volid)
		return nil
	}})
	if delay := rq.number("delay", 0); delay > 0 {
		return c.awaitTask(ctx, upid, delay)
	}
	return upid, nil
}
