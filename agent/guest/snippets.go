package guest

import (
	"context"
	"maps"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/snippet"
)

// ownSnippets returns the snippets of ours that a config names.
func ownSnippets(conf *pmxcfs.Conf) []string {
	custom, _ := conf.Get("cicustom")
	return snippet.In(custom)
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
		vols = append(vols, snippet.Volume(m.order.Snippets, content))
	}
	slices.Sort(vols)
	return vols
}

// writeSnippets puts what the drive has to say on all nodes. The record, which was written before, names the files: a
// node that comes back meanwhile fetches them, and none is removed as unneeded.
func (m *making) writeSnippets(ctx context.Context, _ *ops.StepRun) error {
	r, err := m.rendered()
	if err != nil {
		return fault.New(fault.Internal, "%s: %w", m.act("render cloud-init data"), err)
	}
	if len(r.Parts) == 0 {
		return nil
	}
	named := map[string]string{}
	for part, content := range r.Parts {
		named[part] = snippet.Volume(m.order.Snippets, content)
	}
	m.memo.CICustom = plan.CICustom(m.order.CICustom, named)
	if err := m.note(); err != nil {
		return err
	}
	if err := m.cfg.Snippets.Write(ctx, m.order.Snippets, slices.Collect(maps.Values(r.Parts))...); err != nil {
		return fault.New(fault.Precondition, "%s: %w", m.act("give cloud-init its data"), err)
	}
	return nil
}
