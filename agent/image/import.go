package image

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/pve"
	"github.com/pve-rigaud/pve-rigaud/agent/task"
)

// clockSlack covers the difference between our clock and the second in which PVE says a task began.
const clockSlack = 5 * time.Second

func explain(act string, err error) error {
	if _, explained := errors.AsType[*fault.Error](err); explained {
		return err
	}
	return task.Explain(act, err)
}

// importDisks has PVE make a VM of what is staged, with the config of the source.
func (k *making) importDisks(ctx context.Context, s *ops.StepRun) error {
	act := k.act(fmt.Sprintf("make VM %d of its disks", k.memo.VMID))
	err := k.cfg.Watcher.Refresh(ctx)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	params, err := k.params()
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	began := time.Now()
	for _, step := range k.run.Op().Steps {
		if step.Name == stepImport {
			began = step.Began
		}
	}
	err = task.Run(ctx, k.cfg.PVE.Wait, s,
		func(ctx context.Context) (pve.UPID, bool, error) { return k.made(ctx, began) },
		func(ctx context.Context) (pve.UPID, error) {
			return k.cfg.PVE.Create(ctx, k.cfg.Node, pve.CreateParams{VMID: k.memo.VMID, Config: params})
		})
	if err != nil {
		return explain(act, err)
	}
	conf, err := k.confHere(k.memo.VMID)
	if err != nil {
		return fault.New(fault.Precondition, "%s: %w", act, err)
	}
	if conf == nil || conf.SMBIOSUUID() != k.memo.UUID {
		return fault.New(fault.Aborted, "%s: VMID %d was taken by somebody else meanwhile; a repeat gets another", act, k.memo.VMID)
	}
	return nil
}

// made finds what a call whose answer was lost has done: the VM, or the task that makes it.
func (k *making) made(ctx context.Context, began time.Time) (pve.UPID, bool, error) {
	conf, err := k.confHere(k.memo.VMID)
	if err != nil || conf != nil && conf.SMBIOSUUID() == k.memo.UUID && conf.Lock() == "" {
		return "", err == nil, err
	}
	tasks, err := k.cfg.PVE.Tasks(ctx, k.cfg.Node, pve.TaskQuery{
		VMID: k.memo.VMID, Type: "qmcreate", Since: began.Add(-clockSlack), Source: "all", Limit: 1,
	})
	if err != nil || len(tasks) == 0 {
		return "", false, err
	}
	return tasks[0].UPID, true, nil
}

// leftOut are the keys of a config that a replica does not get: what tells VMs apart, what PVE writes by itself, what would
// keep us from removing it, and drives, which are made.
var leftOut = map[string]bool{
	"template": true, "smbios1": true, "vmgenid": true, "meta": true, "digest": true, "lock": true, "parent": true, "protection": true,
	"onboot": true, "startup": true, "vmstate": true, "runningcpu": true, "runningmachine": true, "running-nets-host-mtu": true,
}

// params is the config that the replica is made with: that of the template now, with our own uuid.
func (k *making) params() (url.Values, error) {
	world, err := k.cfg.Watcher.World()
	if err != nil {
		return nil, err
	}
	vm := world.VMs[k.memo.Source.VMID]
	if vm == nil || vm.Conf == nil {
		return nil, fmt.Errorf("its template %d is gone meanwhile", k.memo.Source.VMID)
	}
	params := url.Values{"smbios1": {withUUID(vm.Conf, k.memo.UUID)}}
	drives := map[string]bool{}
	for _, d := range append(vm.Conf.Drives(), vm.Conf.Unused()...) {
		drives[d.Key] = true
	}
	for _, d := range vm.Conf.Drives() {
		if v := k.drive(world, d); v != "" {
			params.Set(d.Key, v)
		}
	}
	for _, key := range vm.Conf.Keys() {
		if value, _ := vm.Conf.Get(key); !leftOut[key] && !drives[key] {
			params.Set(key, withoutMAC(key, value))
		}
	}
	if text := vm.Conf.Description(); text != "" {
		params.Set("description", text)
	}
	return params, nil
}

// drive is the value that makes a drive of the replica: a copied disk from its file, an empty drive for a medium, which
// may not be on this node, and a cloud-init drive anew.
func (k *making) drive(world *pmxcfs.World, d pmxcfs.Drive) string {
	if d.CloudInit {
		return k.memo.Target.Storages[d.Key] + ":cloudinit"
	}
	if d.CDROM || d.Storage == "" {
		return "none,media=cdrom"
	}
	for _, staged := range k.memo.Disks {
		if staged.Key != d.Key {
			continue
		}
		storage := k.memo.Target.Storages[d.Key]
		value := storage + ":0,import-from=" + staged.Staged
		if s, ok := world.Storages.Get(storage); ok && s.Path != "" && d.Disk() {
			value += ",format=" + staged.Format
		}
		return value + options(d)
	}
	return ""
}

// options are those of a drive that do not tell where it is. PVE wants to be told the kind of an EFI or TPM store that it
// imports, which a config may leave to the default.
func options(d pmxcfs.Drive) string {
	var b strings.Builder
	seen := map[string]bool{"file": true, "volume": true, "size": true, "format": true, "import-from": true}
	for key, value := range d.Options.All() {
		if key != "" && !seen[key] && value != d.Volume {
			fmt.Fprintf(&b, ",%s=%s", key, value)
			seen[key] = true
		}
	}
	for _, def := range []struct{ drive, key, value string }{
		{"efidisk0", "efitype", "2m"}, {"efidisk0", "pre-enrolled-keys", "0"}, {"tpmstate0", "version", "v1.2"},
	} {
		if d.Key == def.drive && !seen[def.key] {
			fmt.Fprintf(&b, ",%s=%s", def.key, def.value)
		}
	}
	return b.String()
}

// withUUID is the smbios1 of a config with another uuid.
func withUUID(conf *pmxcfs.Conf, uuid string) string {
	old, _ := conf.Get("smbios1")
	fields := []string{"uuid=" + uuid}
	for f := range strings.SplitSeq(old, ",") {
		if f != "" && !strings.HasPrefix(f, "uuid=") {
			fields = append(fields, f)
		}
	}
	return strings.Join(fields, ",")
}

// withoutMAC removes the address of a network card: PVE gives the replica's its own.
func withoutMAC(key, value string) string {
	if !strings.HasPrefix(key, "net") || strings.Trim(key[3:], "0123456789") != "" {
		return value
	}
	var fields []string
	for f := range strings.SplitSeq(value, ",") {
		name, mac, ok := strings.Cut(f, "=")
		switch {
		case name == "macaddr":
		case ok && strings.Count(mac, ":") == 5:
			fields = append(fields, name)
		default:
			fields = append(fields, f)
		}
	}
	return strings.Join(fields, ",")
}

// template has PVE make a template of the VM.
func (k *making) template(ctx context.Context, s *ops.StepRun) error {
	act := k.act(fmt.Sprintf("make VM %d a template", k.memo.VMID))
	done := func(context.Context) (pve.UPID, bool, error) {
		conf, err := k.confHere(k.memo.VMID)
		return "", err == nil && conf != nil && conf.Template(), err
	}
	err := task.Run(ctx, k.cfg.PVE.Wait, s, done, func(ctx context.Context) (pve.UPID, error) {
		if _, is, err := done(ctx); is || err != nil {
			return "", err
		}
		return k.cfg.PVE.Template(ctx, k.cfg.Node, k.memo.VMID)
	})
	if err != nil {
		return explain(act, err)
	}
	conf, err := k.confHere(k.memo.VMID)
	if err != nil || conf == nil || !conf.Template() || conf.SMBIOSUUID() != k.memo.UUID {
		return fault.New(fault.Aborted, "%s: read back: it is none (%w)", act, errors.Join(err, errNotThere))
	}
	return nil
}

var errNotThere = errors.New("not as it was made")

// undo removes what was made: the files, and the VM if it is there and ours.
func (k *making) undo(ctx context.Context, _ *ops.StepRun) error {
	if k.memo.VMID == 0 {
		return nil
	}
	for _, step := range k.run.Op().Steps {
		if step.Name != stepImport {
			continue
		}
		upid, _, err := k.made(ctx, step.Began)
		if err == nil && upid != "" { // PVE removes what a failed one has made
			_ = k.cfg.PVE.Wait(ctx, upid)
		}
	}
	if err := k.destroy(ctx, k.memo.VMID, k.memo.UUID); err != nil {
		return err
	}
	return k.unstage()
}

// destroy removes a template of ours on this node, if it is there. It reads the config anew: the number may be somebody
// else's by now.
func (m *Images) destroy(ctx context.Context, vmid int, uuid string) error {
	conf, err := m.confHere(vmid)
	if err != nil || conf == nil || conf.SMBIOSUUID() != uuid {
		return err
	}
	u, err := m.cfg.PVE.Destroy(ctx, m.cfg.Node, vmid, pve.DestroyParams{Purge: true})
	if err == nil {
		err = m.cfg.PVE.Wait(ctx, u)
	}
	if err != nil && pve.KindOf(err) != pve.KindNoSuchVM {
		return explain(fmt.Sprintf("remove template %d", vmid), err)
	}
	return nil
}
