package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// crashRefusal is what PVE says in the rows in which it refuses to configure a VM.
const crashRefusal = "the moon is in the wrong place"

// unasked says that the agent died before it had written down what it was asked, and that nobody repeats it.
func (r *crashRow) unasked() bool {
	return r.alone && len(r.kills) > 0 && r.kills[0] == crashPoint{Write: 1}
}

// wanted is what there has to be at the end: no VM, or one that is on or off.
func (r *crashRow) wanted() (exists, on bool) {
	switch r.op {
	case crashCreate:
		return !r.broken && !r.withdraw && !r.unasked(), false
	case crashDelete:
		return r.unasked(), true
	case crashOn:
		return true, !r.unasked()
	default:
		return true, r.unasked()
	}
}

// check looks at everything there is.
func (r *crashRow) check() error {
	exists, on := r.wanted()
	vms := r.named(r.vm)
	if r.aged { // nobody asked again: what was complete is kept, what was not is removed
		exists = len(vms) > 0
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	want := 0
	if exists {
		want = 1
	}
	if len(vms) != want {
		fail("%d VMs of the name, want %d: %v", len(vms), want, vms)
	}
	for vmid, conf := range vms {
		errs = append(errs, r.checkVM(vmid, conf, on))
	}
	records, err := r.records(r.vm)
	if err != nil {
		errs = append(errs, err)
	}
	if len(records) != want {
		fail("%d records, want %d: %+v", len(records), want, records)
	}
	for _, rec := range records {
		conf, there := vms[rec.VMID]
		if !there || rec.State != record.Ready || !strings.Contains(conf["smbios1"], rec.UUID) {
			fail("the record is not that of the VM: %+v", rec)
		}
	}
	errs = append(errs, r.checkClones(vms), r.checkSnippets(vms), r.checkTasks())
	return errors.Join(errs...)
}

// checkVM looks at the one VM there should be.
func (r *crashRow) checkVM(vmid int, conf map[string]string, on bool) error {
	var errs []error
	_, uuid, _ := strings.Cut(conf["smbios1"], "uuid=")
	if len(uuid) < 8 {
		return fmt.Errorf("VM %d has no uuid: %v", vmid, conf)
	}
	id := fmt.Sprintf("%d-%s", vmid, uuid[:8])
	if r.firstID != "" && id != r.firstID {
		errs = append(errs, fmt.Errorf("the VM is %s, the client was told %s", id, r.firstID))
	}
	r.firstID = id
	if conf["lock"] != "" {
		errs = append(errs, fmt.Errorf("VM %d is locked (%s)", vmid, conf["lock"]))
	}
	disks, err := r.disks(r.node, vmid)
	if diff := crashDiff(crashVolumes(conf), disks); err != nil || diff != "" {
		errs = append(errs, err, fmt.Errorf("VM %d: disks other than in its config (-config +storage):\n%s", vmid, diff))
	}
	if !strings.Contains(conf["scsi0"], "size=1G") || conf["memory"] != "512" || !strings.Contains(conf["cicustom"], "user=") || conf["ide2"] == "" {
		errs = append(errs, fmt.Errorf("VM %d is not as it was ordered: %v", vmid, conf))
	}
	if got := r.Sim.Running(vmid); got != on {
		errs = append(errs, fmt.Errorf("VM %d runs: %v, want %v", vmid, got, on))
	}
	d, err := r.life.provider.Describe(r.ctx, &providerpb.DescribeRequest{Id: id})
	if err != nil || !d.GetExists() || (d.GetPowerState() == "On") != on {
		errs = append(errs, fmt.Errorf("describe %s: %v, want it to be on: %v: %w", id, d, on, err))
	}
	return errors.Join(errs...)
}

// checkClones sees that PVE was asked for each VM once, and that nothing is left of those that are not there.
func (r *crashRow) checkClones(vms map[int]map[string]string) error {
	var errs []error
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.clones) > 1 && !r.lost && !r.broken { // a repeat of what has failed is another attempt
		errs = append(errs, fmt.Errorf("more than one VM was made: %v", r.clones))
	}
	for newid, times := range r.clones {
		if times != 1 && !r.late { // then the second is refused
			errs = append(errs, fmt.Errorf("PVE was asked %d times to clone VM %s", times, newid))
		}
		vmid, err := strconv.Atoi(newid)
		if err != nil {
			return err
		}
		if _, there := vms[vmid]; there {
			continue
		}
		if owner, there := r.Sim.Owner(vmid); there {
			errs = append(errs, fmt.Errorf("VM %d is left on %s", vmid, owner))
		}
		if disks, err := r.disks(r.node, vmid); err != nil || len(disks) > 0 {
			errs = append(errs, err, fmt.Errorf("left of VM %d: %v", vmid, disks))
		}
	}
	return errors.Join(errs...)
}

// checkSnippets sees that the node has the user and the meta data that the VM's config names. Those of attempts that have
// failed are there too, for a while.
func (r *crashRow) checkSnippets(vms map[int]map[string]string) error {
	dir, err := r.Sim.StorageDir(r.node, pvesim.StorageLocal)
	if err != nil {
		return err
	}
	for vmid, conf := range vms {
		parts := map[string]string{}
		for part := range strings.SplitSeq(conf["cicustom"], ",") {
			key, volume, _ := strings.Cut(part, "=")
			b, err := os.ReadFile(filepath.Join(dir, strings.TrimPrefix(volume, "local:")))
			if err != nil {
				return fmt.Errorf("VM %d: %w", vmid, err)
			}
			parts[key] = string(b)
		}
		_, uuid, _ := strings.Cut(conf["smbios1"], "uuid=")
		meta := fmt.Sprintf("instance-id: \"%s\"\nlocal-hostname: \"%s\"\n", uuid, r.vm)
		if parts["user"] != r.userData() || parts["meta"] != meta {
			return fmt.Errorf("VM %d: snippets %q, want also %q", vmid, parts, meta)
		}
	}
	return nil
}

// checkTasks sees that nothing goes on in PVE.
func (r *crashRow) checkTasks() error {
	for _, task := range r.Sim.Tasks() {
		if task.Node() == r.node && task.Exit() == "" {
			return fmt.Errorf("still under way: %s", task.UPID)
		}
	}
	return nil
}

// tidyUp deletes the VM, after making one where that has failed before, and sees that the node is as it was.
func (r *crashRow) tidyUp() error {
	if r.refuse.Swap(false) {
		id, err := r.settleCreate(r.life)
		if err != nil {
			return err
		}
		r.firstID = id
	}
	if len(r.named(r.vm)) > 0 {
		if err := r.settleDelete(r.life); err != nil {
			return err
		}
	}
	diff := ""
	err := r.until("a tidy node", func() (bool, error) {
		now, err := r.inventory(r.node)
		maps.DeleteFunc(r.before, func(path string, _ bool) bool { return !now[path] }) // a failed row's, and tidied up now
		diff = crashDiff(r.before, now)
		return diff == "", err
	})
	if err != nil {
		return fmt.Errorf("%w: (-before +after)\n%s", err, diff)
	}
	records, err := r.records(r.vm)
	if err == nil && len(records) > 0 {
		err = fmt.Errorf("left: %+v", records)
	}
	return err
}
