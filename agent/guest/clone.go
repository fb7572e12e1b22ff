package guest

import (
	"context"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// Clone copies the VM with an id under a new name, or joins the copying, or returns the copy that an equal request has
// made. It returns as soon as the copy's id is final. The copy goes to the node target; "": it stays on this one.
func (g *Guests) Clone(ctx context.Context, owner string, source record.ID, wish spec.Clone, target string) (Created, error) {
	if err := cloneable(wish); err != nil {
		return Created{}, err
	}
	r := cloneRequest(owner, source, wish)
	r.target = target
	return g.making(ctx, r)
}

// cloneable refuses what a copy cannot be told: PVE has cloud-init and nothing else. An error ends the manager's VMClone,
// so that it has to name everything that has to be left away.
func cloneable(c spec.Clone) error {
	for _, f := range []struct {
		set          bool
		field, cause string
	}{
		{c.UserDataSecret != "", "userData.cloudInit.secretRef", "the Secret arrives here by its name only: give the text inline"},
		{len(c.Ignition) > 0 || c.IgnitionSecret != "", "userData.ignition", "PVE's cloud-init drive carries no Ignition"},
		{asked(c.Sysprep), "sysprep", "answers to Windows' setup are not passed on: prepare the source with cloudbase-init"},
		{len(c.GuestCommands) > 0, "guestCommands", "nothing is run in a guest from outside: use runcmd in userData.cloudInit.inline"},
		{len(c.Certificates) > 0, "certificates", "use ca_certs or write_files in userData.cloudInit.inline"},
	} {
		if f.set {
			return fault.New(fault.Invalid, "clone %s: customize_json: %s: cannot be carried out: %s", c.Name, f.field, f.cause)
		}
	}
	return nil
}

// asked reports whether answers for Windows' setup hold anything: the manager may send an empty block.
func asked(s *spec.Sysprep) bool {
	return s != nil && (s.Enabled || s.ProductKey != "" || s.Organization != "" || s.Owner != "" ||
		s.AdminPassword != nil || s.JoinDomain != nil || len(s.CustomCommands) > 0)
}
