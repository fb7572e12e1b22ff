package plan

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// lasting notes what a class says of what is decided when a VM is made, and is otherwise: firmware, EFI and TPM stores,
// the storage and options of the root disk, and options of NICs. It stays.
func (r *reconfiguring) lasting() {
	boot, bootable := r.next.BootDisk()
	values, stores, err := firmware(r.wish.Class, r.next, boot.Storage, r.site)
	r.otherwise(err)
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if !slices.Contains(r.out.Ignored, key) { // ExtraConfig may have said it
			r.out.Ignored = append(r.out.Ignored, key)
		}
	}
	for _, d := range stores {
		r.out.Ignored = append(r.out.Ignored, d.Key)
	}
	if !bootable {
		return
	}
	root, err := r.site.rootDisk(r.wish.Class, spec.Placement{}, r.next)
	r.otherwise(err)
	if root.storage != "" && root.storage != boot.Storage {
		r.out.Ignored = append(r.out.Ignored, fmt.Sprintf("%s on storage %s", boot.Key, root.storage))
	}
	value, _ := r.next.Get(boot.Key)
	for _, option := range slices.Sorted(maps.Keys(root.options)) {
		if !has(value, option, root.options[option]) {
			r.out.Ignored = append(r.out.Ignored, boot.Key+" with "+option+"="+root.options[option])
		}
	}
	r.lastingNICs()
}

// lastingNICs is lasting for the options of NICs.
func (r *reconfiguring) lastingNICs() {
	have := r.next.NICs()
	options, err := nicOptions(r.wish.Class.ExtraConfig, len(have), r.site)
	r.otherwise(err)
	for i, nic := range have {
		for _, option := range slices.Sorted(maps.Keys(options[i])) {
			if !has(string(nic.Options), option, options[i][option]) {
				r.out.Ignored = append(r.out.Ignored, nic.Key+" with "+option+"="+options[i][option])
			}
		}
	}
}

// otherwise notes what cannot be, and would not be done here in any case.
func (r *reconfiguring) otherwise(err error) {
	if wrong, ok := errors.AsType[*spec.Error](err); ok {
		r.out.Ignored = append(r.out.Ignored, wrong.Field+" ("+wrong.Problem+")")
	}
}
