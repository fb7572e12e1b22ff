package guest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/plan"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// request is what Create and Clone have in common: a VM that is to be made under a name.
type request struct {
	kind        ops.Kind
	owner, name string
	dialect     spec.Dialect
	fingerprint string
	image       spec.Image // what a Create is made from
	source      record.ID  // what a Clone is made from
	wish        plan.Wish
	policy      string // name of a placement policy; "": none was named
	target      string // the node that the VM is to be on; "": this one
	data        guestData
	made        map[string]string // see madeOf; nil of a Clone
}

// guestData is what the guest is to be told by its cloud-init drive, beside its networks.
type guestData struct {
	UserData, MetaData         []byte
	Hostname, Domain, TimeZone string
}

func (d guestData) empty() bool {
	return len(d.UserData)+len(d.MetaData)+len(d.Hostname)+len(d.Domain)+len(d.TimeZone) == 0
}

// String names the request in messages.
func (r request) String() string { return fmt.Sprintf("%s %s", r.kind, r.name) }

// patient reports whether the request waits, as an operation, for a lock of its source to pass: a backup ends. The manager
// repeats a Create that is refused, but takes any error of a Clone for its end.
func (r request) patient(lock string) bool {
	return r.kind == ops.Clone && !lasting[lock] && !madeUnder(lock)
}

// key is the same for all requests of an owner for a name: whichever comes first makes it.
func (r request) key() string { return fmt.Sprintf("%s/%s/%s", ops.Create, r.owner, r.name) }

func createRequest(owner string, wish spec.Create) request {
	return request{
		kind: ops.Create, owner: owner, name: wish.Name, dialect: spec.CreateDialect, fingerprint: fingerprint(wish.Canonical()),
		image:  wish.Image,
		wish:   plan.Wish{Class: &wish.Class, Networks: wish.Networks, Disks: wish.Disks, Placement: wish.Placement, Tags: wish.Tags},
		policy: plan.PlacementPolicy(&wish.Class),
		data:   guestData{UserData: wish.UserData, MetaData: wish.MetaData},
		made:   madeOf(wish.Image, wish.Networks, wish.Placement, wish.UserData, wish.MetaData),
	}
}

func cloneRequest(owner string, source record.ID, wish spec.Clone) request {
	return request{
		kind: ops.Clone, owner: owner, name: wish.Name, dialect: spec.CloneDialect,
		fingerprint: fingerprint(append([]byte(source.String()+"\n"), wish.Canonical()...)),
		source:      source,
		policy:      cmp.Or(wish.Placement, plan.PlacementPolicy(wish.Class)),
		wish:        plan.Wish{Class: wish.Class, Networks: wish.Networks, Tags: wish.Tags, Linked: wish.Linked},
		data:        guestData{UserData: wish.UserData, Hostname: wish.Hostname, Domain: wish.Domain, TimeZone: wish.TimeZone},
	}
}

// fingerprint is that of a wish in its canonical form.
func fingerprint(canonical []byte) string {
	sum := sha256.Sum256(canonical)
	return hex.EncodeToString(sum[:])
}
