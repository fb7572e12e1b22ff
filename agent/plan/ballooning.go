package plan

import (
	"fmt"
	"strconv"

	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
)

// GuestMemoryMiB is the memory that a config gives to the guest: with `shares: 0` PVE leaves the balloon where the config
// has it, and all of `memory` else.
func GuestMemoryMiB(conf *pmxcfs.Conf) int64 {
	memory := conf.MemoryMiB()
	if balloon, ok := fixedBalloon(conf); ok && int64(balloon) < memory {
		return int64(balloon)
	}
	return memory
}

// fixedBalloon is the size (MiB) at which the balloon is held.
func fixedBalloon(conf *pmxcfs.Conf) (mib int, ok bool) {
	shares, _ := conf.Get("shares")
	mib = mibOf(conf, "balloon")
	return mib, shares == "0" && mib > 0
}

// mibOf is the value of a config key, 0 if it has none.
func mibOf(conf *pmxcfs.Conf, key string) int {
	v, _ := conf.Get(key)
	n, err := strconv.Atoi(v)
	if err != nil {
		return 0
	}
	return n
}

// pinned reports whether an earlier Reconfigure has taken memory from the guest by its balloon.
func (r *reconfiguring) pinned() bool {
	_, fixed := fixedBalloon(r.next)
	return fixed && r.now.Ours
}

// unpinned is what the config says of the balloon when the guest is to have all of the VM's memory: what the class says,
// and else what is there, unless an earlier Reconfigure has put it there.
func (r *reconfiguring) unpinned(memory int) (values Values, gone []string) {
	values = Values{}
	for _, k := range []string{"balloon", "shares"} {
		switch v, said := r.want[k]; {
		case said:
			values[k] = v
		case !r.pinned():
		case k == "balloon" && mibOf(r.next, k) > memory:
			values[k] = strconv.Itoa(memory) // PVE refuses less memory than the balloon that it is about to forget
		default:
			gone = append(gone, k)
		}
	}
	return values, gone
}

// memory plans the guest's memory. What QEMU was started with it keeps: less is the balloon's affair, more that of DIMMs.
func (r *reconfiguring) memory() {
	asked, most := r.askedMiB(), int(r.now.Conf.MemoryMiB())
	switch {
	case !r.now.Running:
		values, gone := r.unpinned(asked)
		values["memory"] = strconv.Itoa(asked)
		r.change(Step{Part: "memory", Way: Set, Why: "the VM is stopped"}, values, gone...)
	case asked >= most:
		r.moreMemory(asked, most)
	case r.now.Ours && r.balloonDevice():
		r.lessMemory(asked, most)
	default:
		r.laterMemory(asked)
	}
}

func (r *reconfiguring) askedMiB() int {
	n, _ := strconv.Atoi(r.want["memory"]) // Hardware writes a number
	return n
}

func (r *reconfiguring) balloonDevice() bool {
	v, _ := r.now.Conf.Get("balloon")
	return v != "0"
}

// guestMiB is what the guest has of most. Where PVE moves the balloon by itself that changes, and is PVE's affair.
func (r *reconfiguring) guestMiB(most int) int {
	fixed, ok := fixedBalloon(r.now.Conf)
	switch {
	case !ok && mibOf(r.now.Conf, "balloon") > 0:
		return most
	case r.now.MemoryMiB > 0:
		return r.now.MemoryMiB
	case ok:
		return min(fixed, most)
	}
	return most
}

// moreMemory gives the guest at least all that QEMU has. The new memory is written first: PVE refuses a balloon that is
// larger than what waits for the next start.
func (r *reconfiguring) moreMemory(asked, most int) {
	dimms := asked > most && r.now.Conf.Hotplugs("memory")
	memory := Values{"memory": strconv.Itoa(asked)}
	switch {
	case dimms:
	case asked > most:
		r.change(Step{Part: "memory", Way: Set, Waits: true, Why: "the VM was not started for plugging memory"}, memory)
	default:
		r.change(Step{Part: "memory", Way: Set, Why: "what waited for the next start is taken back"}, memory)
	}
	values, gone := r.unpinned(asked)
	if guest := r.guestMiB(most); guest < most {
		r.release(Step{Part: "memory", Way: Balloon, MiB: most, Why: fmt.Sprintf("the balloon gives back what it took, %d MiB", most-guest)}, values, gone)
	} else {
		r.change(Step{Part: "memory", Way: Set, Why: "the guest has all of it already"}, values, gone...)
	}
	if dimms {
		r.change(Step{Part: "memory", Way: SetTask, Why: "DIMMs are plugged in"}, memory)
	}
}

// release is change for a step that has something to do even if the config needs none.
func (r *reconfiguring) release(s Step, values Values, gone []string) {
	before := len(r.out.Steps)
	if r.change(s, values, gone...); len(r.out.Steps) == before {
		r.add(s)
	}
}

// lessMemory takes memory from the guest. The config holds the balloon there, so that neither pvestatd nor a restart
// gives it back; and the next start needs none, because it begins with less.
func (r *reconfiguring) lessMemory(asked, most int) {
	size := strconv.Itoa(asked)
	values := Values{"balloon": size, "shares": "0"}
	s := Step{Part: "memory", Way: Balloon, MiB: asked, Why: fmt.Sprintf("the balloon takes it from the %d MiB the VM was started with", most)}
	later := func() {
		if !r.now.Conf.Hotplugs("memory") { // else PVE would take DIMMs out at once
			r.change(Step{Part: "memory", Way: Set, Waits: true, Why: "then it starts with that much"}, Values{"memory": size})
		}
	}
	up := int(r.next.MemoryMiB()) < asked // PVE refuses a balloon larger than the memory that waits
	if up {
		later()
	}
	if r.guestMiB(most) != asked {
		r.release(s, values, nil)
	} else {
		s.Way, s.Why = Set, "the guest has given it already"
		r.change(s, values)
	}
	if !up {
		later()
	}
}

// laterMemory is for less memory where the balloon is not ours, or there is none.
func (r *reconfiguring) laterMemory(asked int) {
	values := Values{"memory": strconv.Itoa(asked)}
	for _, k := range []string{"balloon", "shares"} {
		if v, said := r.want[k]; said {
			values[k] = v
		}
	}
	s := Step{Part: "memory", Way: Set, Waits: true, Why: "this VM has no balloon"}
	if r.balloonDevice() {
		s.Why = "the VM was not made by pve-rigaud: its balloon is left alone"
	}
	if r.now.Conf.Hotplugs("memory") {
		s.Way, s.Why = SetTask, "PVE takes out what DIMMs the guest gives back"
	}
	r.change(s, values)
}
