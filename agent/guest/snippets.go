package guest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// PVE hands user-data to a guest byte for byte only from a file: `cicustom` names volumes of content type snippets,
// which no API call can write. The agent sits on the node and writes them itself. A file's name is a hash of its
// content, so that writing it twice is no change, and a file never changes under a VM.

// snippetPrefix begins the names of our files.
const snippetPrefix = "pve-rigaud-"

// snippetFile returns the volume name of content on a storage, "<storage>:snippets/<file>".
func snippetFile(storage string, content []byte) string {
	sum := sha256.Sum256(content)
	return fmt.Sprintf("%s:snippets/%s%s.yaml", storage, snippetPrefix, hex.EncodeToString(sum[:16]))
}

// ownSnippets returns the snippets of ours that a config names.
func ownSnippets(conf *pmxcfs.Conf) []string {
	custom, _ := conf.Get("cicustom")
	var vols []string
	for f := range strings.SplitSeq(custom, ",") {
		if _, volume, _ := strings.Cut(f, "="); strings.Contains(volume, ":snippets/"+snippetPrefix) {
			vols = append(vols, volume)
		}
	}
	return vols
}

func (g *Guests) snippetStorage(world *pmxcfs.World) (pmxcfs.Storage, error) {
	for _, s := range world.Storages {
		if (g.cfg.SnippetsStorage == "" || s.ID == g.cfg.SnippetsStorage) && s.OnNode(g.cfg.Node) && s.Has("snippets") {
			return s, nil
		}
	}
	if g.cfg.SnippetsStorage != "" {
		return pmxcfs.Storage{}, fault.New(fault.Precondition, "user_data: storage %q (snippets-storage) does not exist on node %s or lacks content type snippets", g.cfg.SnippetsStorage, g.cfg.Node)
	}
	return pmxcfs.Storage{}, fault.New(fault.Precondition, "user_data: no storage of node %s holds snippets, and PVE takes user-data from nowhere else; "+
		"add the content type to one: pvesm set local --content <its present types>,snippets", g.cfg.Node)
}

// rendered is what makes PVE write the drive, for the VM that this is.
func (m *making) rendered() (cloudinit.Rendered, error) {
	if m.order.CloudInit == nil {
		return cloudinit.Rendered{}, nil
	}
	w := *m.order.CloudInit
	w.InstanceID = m.memo.Record.UUID
	if m.order.Snippets == "" {
		return w.Builtin()
	}
	return w.Render()
}

// parts returns the snippets of the VM by their key in cicustom. That they can be rendered was found out before.
func (m *making) parts() map[string][]byte {
	r, err := m.rendered()
	if err != nil {
		return nil
	}
	return r.Parts
}

func (m *making) snippetVolumes() []string {
	var vols []string
	for _, content := range m.parts() {
		vols = append(vols, snippetFile(m.order.Snippets, content))
	}
	slices.Sort(vols)
	return vols
}

func (m *making) writeSnippets(_ context.Context, _ *ops.StepRun) error {
	r, err := m.rendered()
	if err != nil {
		return fault.New(fault.Internal, "%s: %w", m.act("render cloud-init data"), err)
	}
	parts := r.Parts
	if len(parts) == 0 {
		return nil
	}
	world, err := m.cfg.Watcher.World()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("write cloud-init snippets"), err)
	}
	named := map[string]string{}
	for part, content := range parts {
		named[part] = snippetFile(m.order.Snippets, content)
	}
	m.snippets.Lock()
	defer m.snippets.Unlock()
	// Noted first: from here on nobody removes these files as unneeded.
	m.memo.CICustom = plan.CICustom(m.order.CICustom, named)
	if err := m.note(); err != nil {
		return err
	}
	for part, volume := range named {
		if err := m.writeSnippet(world, volume, parts[part]); err != nil {
			return fault.New(fault.Precondition, "%s: %w", m.act("write cloud-init snippet "+volume), err)
		}
	}
	return nil
}

// writeSnippet puts content where volume names it: complete or not at all, readable by root alone.
func (g *Guests) writeSnippet(world *pmxcfs.World, volume string, content []byte) error {
	path, err := snippetPath(world, volume)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp, err := os.OpenFile(g.draft(path), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(content)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// draft is where this node writes a snippet before it has its name. What a crash leaves there is written again by
// the operation that is resumed, or removed with the snippet.
func (g *Guests) draft(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+g.cfg.Node)
}

func snippetPath(world *pmxcfs.World, volume string) (string, error) {
	storage, file, ok := strings.Cut(volume, ":snippets/")
	if !ok {
		return "", fmt.Errorf("%q is no snippet volume", volume)
	}
	s, ok := world.Storages.Get(storage)
	if !ok {
		return "", fmt.Errorf("storage %q does not exist", storage)
	}
	return s.SnippetPath(file)
}

// removeSnippets deletes snippets of a VM that is gone, unless some VM's config still names them (a clone made in
// PVE's GUI keeps its source's) or another VM of ours is about to. A file that stays is harmless, so troubles are only logged.
func (g *Guests) removeSnippets(ctx context.Context, vols []string) {
	if len(vols) == 0 {
		return
	}
	g.snippets.Lock()
	defer g.snippets.Unlock()
	err := g.cfg.Watcher.Refresh(ctx) // what is known may still have the VM that is gone
	world, werr := g.cfg.Watcher.World()
	if err = errors.Join(err, werr); err != nil {
		g.log.WarnContext(ctx, "cloud-init snippets kept: /etc/pve cannot be read", "volumes", vols, "err", err)
		return
	}
	for _, volume := range vols {
		if g.snippetNeeded(world, volume) {
			continue
		}
		path, err := snippetPath(world, volume)
		if err == nil {
			err = errors.Join(drop(path), drop(g.draft(path)))
		}
		if err != nil {
			g.log.WarnContext(ctx, "cloud-init snippet kept", "volume", volume, "err", err)
		}
	}
}

// drop removes a file that may be gone already.
func drop(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// snippetNeeded reports whether a VM's config names the snippet, or a VM that is being made anywhere will. Where the
// records cannot be read it is taken to be.
func (g *Guests) snippetNeeded(world *pmxcfs.World, volume string) bool {
	for _, vm := range world.VMs {
		if vm.Conf != nil && strings.Contains(string(vm.Conf.Bytes()), volume) {
			return true
		}
	}
	records, err := g.cfg.Records.List()
	if err != nil {
		return true
	}
	return slices.ContainsFunc(records.Records, func(r record.Record) bool {
		return r.State == record.Creating && slices.Contains(r.Snippets, volume)
	})
}
