package guest

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// orderCloudInit plans what the cloud-init drive of a VM says, and decides how PVE gets that: as snippets
// where a storage holds them, else by PVE's own keys as far as they go.
func (g *Guests) orderCloudInit(ctx context.Context, o *order, r request, source *pmxcfs.Conf, world *pmxcfs.World) error {
	key, store, err := plan.CloudInitDrive(source, o.VM.Storage)
	// A copy of a VM would say, with that VM's snippets, that it is that VM.
	needed := !r.data.empty() || plan.Addressed(r.wish.Networks) || len(ownSnippets(source)) > 0
	if !needed && (err != nil || key != "" || len(o.VM.NICs) == 0) {
		return nil // nothing is asked that a drive would have to say
	}
	if err != nil {
		return err
	}
	w := cloudInitWish(r, source, o.VM.NICs)
	w.NewDrive, w.Resolver = key != "", g.resolver()
	rendered, err := g.orderDrive(world, o, w)
	if err != nil {
		return err
	}
	if len(rendered.Parts)+len(rendered.Params) == 0 {
		return nil
	}
	if len(rendered.Hidden) > 0 {
		g.log.WarnContext(ctx, "user data takes the place of settings that the template has in PVE", "name", o.Name, "settings", rendered.Hidden)
	}
	o.CloudInit, o.CloudInitKey, o.CloudInitStore = &w, key, store
	o.CICustom, _ = source.Get("cicustom")
	return nil
}

// staticIP finds an address in PVE's ipconfigN.
var staticIP = regexp.MustCompile(`(^|,)ip6?=[^,]*/`)

// networksOf are the networks of a VM that is made from source. Where nobody asks for any, a copy would have the addresses
// of the VM that it is made from, or a network part that names the MAC addresses of that: each of its NICs is to find an
// address of its own then. What PVE's own settings say of a template is meant for what is made from it.
func networksOf(asked []spec.Network, source *pmxcfs.Conf) []spec.Network {
	if len(asked) > 0 {
		return asked
	}
	custom, _ := source.Get("cicustom")
	network, _ := pmxcfs.Props(custom).Get("network")
	own := slices.Contains(ownSnippets(source), network)
	for _, key := range source.Keys() {
		value, _ := source.Get(key)
		own = own || !source.Template() && strings.HasPrefix(key, "ipconfig") && staticIP.MatchString(value)
	}
	if !own {
		return nil
	}
	return make([]spec.Network, len(source.NICs()))
}

// orderDrive renders a wish as it will be rendered for the VM, and finds the storage for it. Nothing may be lost.
func (g *Guests) orderDrive(world *pmxcfs.World, o *order, w cloudinit.Wish) (cloudinit.Rendered, error) {
	rendered, err := w.Render()
	if err != nil {
		return rendered, invalid(err)
	}
	if len(rendered.Lost) > 0 { // of a format that takes no snippets, or not for all
		return rendered, fault.New(fault.Precondition, "%s: the cloud-init drive of this template (citype %s) cannot carry: %s",
			o.Name, w.Format, strings.Join(rendered.Lost, "; "))
	}
	if len(rendered.Parts) == 0 {
		return rendered, nil
	}
	s, err := g.cfg.Snippets.Storage(world)
	if err != nil {
		return withoutSnippets(w, err)
	}
	o.Snippets = s.ID
	return rendered, nil
}

// withoutSnippets renders a wish in PVE's own keys; why is the reason that it has to, and the failure when something
// would be lost.
func withoutSnippets(w cloudinit.Wish, why error) (cloudinit.Rendered, error) {
	rendered, err := w.Builtin()
	if err != nil {
		return rendered, invalid(err)
	}
	if len(rendered.Lost) > 0 {
		return rendered, fault.New(fault.Precondition, "%w (PVE's own settings cannot carry: %s)", why, strings.Join(rendered.Lost, "; "))
	}
	return rendered, nil
}

// invalid is the failure of a request that says something wrong.
func invalid(err error) error { return fault.New(fault.Invalid, "%w", err) }

// cloudInitWish collects what goes into the drive of a clone of source.
func cloudInitWish(r request, source *pmxcfs.Conf, nics []cloudinit.NIC) cloudinit.Wish {
	w := cloudinit.Wish{
		Dialect: r.dialect, Name: r.name, UserData: r.data.UserData, MetaData: r.data.MetaData,
		Hostname: r.data.Hostname, Domain: r.data.Domain, TimeZone: r.data.TimeZone, NICs: nics, Source: map[string]string{},
	}
	for _, key := range source.Keys() {
		w.Source[key], _ = source.Get(key)
	}
	w.Format = cloudinit.FormatOf(w.Source["citype"], w.Source["ostype"])
	return w
}

// resolver is where this node looks up names, which PVE passes on to guests.
func (g *Guests) resolver() cloudinit.Resolver {
	raw, err := os.ReadFile(g.cfg.ResolvConf)
	if err != nil {
		return cloudinit.Resolver{}
	}
	var r cloudinit.Resolver
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "nameserver":
			if addr, err := netip.ParseAddr(fields[1]); err == nil {
				r.Servers = append(r.Servers, addr)
			}
		case fields[0] == "search" || fields[0] == "domain":
			r.Search = fields[1:]
		}
	}
	return r
}
