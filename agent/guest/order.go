package guest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/cloudinit"
	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/placement"
)

// order is what a create operation is asked to do: everything it needs, decided once, so that a resumed operation
// does the same as the first attempt would have.
type order struct {
	Owner, Name string
	Fingerprint string
	Tags        []string          `json:",omitempty"` // in the words of the request
	Made        map[string]string `json:",omitempty"` // see madeOf

	Target string         `json:",omitempty"` // the node that the VM goes to when it is made; "": it stays on this one
	Want   placement.Want // what it takes of that node

	Source int         `json:",omitempty"` // VMID of the template or VM to clone; 0: a new VM
	Image  string      `json:",omitempty"` // set if a replica of Source has to be made here first, of the image of that name
	New    plan.Values `json:",omitempty"` // of a new VM, for the call that creates it
	VM     plan.VM
	SMBIOS string `json:",omitempty"` // the source's smbios1, whose uuid is replaced

	// CloudInit is what the cloud-init drive has to say, nil when nothing is asked of it. Its InstanceID is the VM's uuid.
	CloudInit      *cloudinit.Wish `json:",omitempty"`
	Snippets       string          `json:",omitempty"` // storage for its parts; "": PVE's own keys carry it
	CICustom       string          `json:",omitempty"` // the source's cicustom
	CloudInitKey   string          `json:",omitempty"` // where a cloud-init drive is to be added
	CloudInitStore string          `json:",omitempty"`
}

// node is where the VM is when it is made, on an agent of node here.
func (o order) node(here string) string { return cmp.Or(o.Target, here) }

// order checks a request against the world and plans what is to be done. It changes nothing.
func (g *Guests) order(ctx context.Context, r request) (order, error) {
	if err := g.nameIsFree(ctx, r.name); err != nil {
		return order{}, err
	}
	o := order{Owner: r.owner, Name: r.name, Fingerprint: r.fingerprint, Tags: r.wish.Tags, Made: r.made}
	if r.target != g.cfg.Node {
		o.Target = r.target
	}
	world, err := g.cfg.Watcher.World()
	if err != nil {
		return order{}, fault.New(fault.Precondition, "%s: %w", r, err)
	}
	conf, site, err := g.origin(ctx, r, &o, world)
	if err != nil {
		return order{}, err
	}
	o.SMBIOS, _ = conf.Get("smbios1")
	r.wish.Networks = networksOf(r.wish.Networks, conf)
	if o.VM, err = plan.Create(r.wish, conf, site, plan.MACs(world)); err != nil {
		return order{}, err
	}
	if err := g.poolExists(ctx, o.VM.Pool); err != nil {
		return order{}, err
	}
	o.Want = want(o.VM.Needs(conf))
	o.Want.Name, o.Want.Policy, o.Want.Pool, o.Want.Tags = o.Name, r.policy, o.VM.Pool, o.VM.Tags
	o.VM.Notes = append(o.VM.Notes, imageNotes(r.image)...)
	if len(o.VM.Notes) > 0 {
		g.log.InfoContext(ctx, "a request is carried out in a way of its own", "name", r.name, "notes", o.VM.Notes)
	}
	return o, g.orderCloudInit(ctx, &o, r, conf, world)
}

// origin finds what the VM is to be made from, and returns its config, or the one that a new VM will begin with.
func (g *Guests) origin(ctx context.Context, r request, o *order, world *pmxcfs.World) (*pmxcfs.Conf, plan.Site, error) {
	site := g.site(r.dialect, world)
	site.Node = o.node(site.Node)
	if plan.NeedsVersion(r.wish.Class) {
		if v, err := g.cfg.PVE.Version(ctx); err == nil { // else PVE itself refuses what it cannot do, later
			site.Major = v.Major()
		}
	}
	if volume := plan.BlankVolume(r.image); volume != "" {
		blank, err := plan.MakeBlank(volume, r.image.Format, r.wish, site)
		if err == nil {
			err = g.volumeExists(ctx, volume)
		}
		o.New = blank.Values
		return blank.Conf, site, err
	}
	source, ref, err := g.source(ctx, r)
	if err != nil {
		return nil, site, err
	}
	o.Source, o.Image = source.ID, ref
	site.CPUs = g.leastCPUs(site.Node, source, r.wish.Placement.Datastore)
	return source.Conf, site, nil
}

// site is this node, as plans have to know it.
func (g *Guests) site(dialect spec.Dialect, world *pmxcfs.World) plan.Site {
	return plan.Site{
		Node: g.cfg.Node, World: world, CPUs: g.cfg.CPUs(g.cfg.Node), MHz: g.cfg.MHz(), Dialect: dialect, Policy: g.cfg.Policy,
	}
}

// imageNotes tells what is not done with an image that is in PVE already.
func imageNotes(image spec.Image) []string {
	if image.Checksum == "" {
		return nil
	}
	return []string{fmt.Sprintf("the %s checksum of the image is not checked again: it is in PVE already", cmp.Or(image.ChecksumType, "sha256"))}
}

// volumeExists fails when a volume is not on this node, before anything is made.
func (g *Guests) volumeExists(ctx context.Context, volume string) error {
	storage, _, _ := strings.Cut(volume, ":")
	list, err := g.cfg.PVE.Content(ctx, g.cfg.Node, storage, pve.ContentQuery{})
	if err != nil {
		return explain("look for "+volume, err)
	}
	if !slices.ContainsFunc(list, func(v pve.Volume) bool { return v.VolID == volume }) {
		return fault.New(fault.NotFound, "image_json: volume %q does not exist on node %s", volume, g.cfg.Node)
	}
	return nil
}

// poolExists fails when a pool does not exist, before anything is made.
func (g *Guests) poolExists(ctx context.Context, pool string) error {
	if pool == "" {
		return nil
	}
	known, err := g.cfg.Tree.Pools()
	if err != nil {
		g.log.WarnContext(ctx, "whether a pool exists could not be read; PVE will say", "pool", pool, "err", err)
		return nil
	}
	if !slices.Contains(known, pool) {
		return fault.New(fault.Precondition, "placement_json: Folder: there is no pool %q; create it with: pvesh create /pools --poolid %s", pool, pool)
	}
	return nil
}
