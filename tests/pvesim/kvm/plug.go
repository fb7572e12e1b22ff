package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// This file changes devices of a running machine the way Proxmox VE does: with
// the names that the command line gives them.

// PlugDisk plugs a disk, and before it the controller that its bus hangs on.
func PlugDisk(ctx context.Context, p Process, d Disk) error {
	bus, device, err := place(d)
	if err != nil {
		return err
	}
	if c := controller(bus); c != "" {
		if err := plugOnce(ctx, p, c); err != nil {
			return err
		}
	}
	var group map[string]any
	if err := json.Unmarshal([]byte(throttleGroup(d.Key)), &group); err != nil {
		return fmt.Errorf("disk %s: %w", d.Key, err)
	}
	if _, err := p.Execute(ctx, "object-add", group); err != nil {
		return err
	}
	_, err = p.Execute(ctx, "blockdev-add", json.RawMessage(blockdev(d)))
	if err == nil {
		args := properties(device + ",drive=drive-" + d.Key + ",id=" + d.Key)
		if d.Serial != "" && !d.CDROM {
			args["serial"] = d.Serial
		}
		_, err = p.Execute(ctx, "device_add", args)
	}
	if err != nil {
		dropBlock(ctx, p, d.Key)
	}
	return err
}

// plugOnce plugs a device ("driver,id=x,...") unless it is there.
func plugOnce(ctx context.Context, p Process, device string) error {
	args := properties(device)
	there, err := devices(ctx, p)
	if err != nil || slices.Contains(there, fmt.Sprint(args["id"])) {
		return err
	}
	_, err = p.Execute(ctx, "device_add", args)
	return err
}

// properties turns the text of "-device" into arguments of device_add.
func properties(device string) map[string]any {
	parts := strings.Split(device, ",")
	args := map[string]any{"driver": parts[0]}
	for _, part := range parts[1:] {
		key, v, _ := strings.Cut(part, "=")
		args[key] = v
	}
	for _, number := range []string{"unit", "channel", "scsi-id", "lun"} {
		if v, ok := args[number]; ok {
			args[number] = json.Number(fmt.Sprint(v))
		}
	}
	if v, ok := args["multifunction"]; ok {
		args["multifunction"] = v == "on"
	}
	return args
}

// UnplugDisk takes a disk out, once the guest let it go.
func UnplugDisk(ctx context.Context, p Process, key string) error {
	if err := unplug(ctx, p, key); err != nil {
		return err
	}
	return await(ctx, "error on removing the volume of '"+key+"'", func(ctx context.Context) (bool, error) {
		_, err := p.Execute(ctx, "blockdev-del", map[string]string{"node-name": "drive-" + key})
		if err == nil {
			_, err = p.Execute(ctx, "object-del", map[string]string{"id": "throttle-drive-" + key})
			return true, err
		}
		return false, nil // the device is not quite gone
	})
}

// dropBlock removes what is behind a disk. What is not there does not matter.
func dropBlock(ctx context.Context, p Process, key string) {
	_, _ = p.Execute(ctx, "blockdev-del", map[string]string{"node-name": "drive-" + key})
	_, _ = p.Execute(ctx, "object-del", map[string]string{"id": "throttle-drive-" + key})
}

// ChangeMedium puts a CD into a drive that is there; one without path takes
// the CD out.
func ChangeMedium(ctx context.Context, p Process, d Disk) error {
	id := map[string]any{"id": d.Key, "force": true}
	if _, err := p.Execute(ctx, "blockdev-open-tray", id); err != nil {
		return err
	}
	// An empty drive has no medium to remove, and then nothing behind it.
	_, _ = p.Execute(ctx, "blockdev-remove-medium", map[string]any{"id": d.Key})
	dropBlock(ctx, p, d.Key)
	if d.Path == "" {
		return nil
	}
	var group map[string]any
	if err := json.Unmarshal([]byte(throttleGroup(d.Key)), &group); err != nil {
		return fmt.Errorf("drive %s: %w", d.Key, err)
	}
	for _, step := range []struct {
		command string
		args    any
	}{
		{"object-add", group},
		{"blockdev-add", json.RawMessage(blockdev(d))},
		{"blockdev-insert-medium", map[string]any{"id": d.Key, "node-name": "drive-" + d.Key}},
		{"blockdev-close-tray", map[string]any{"id": d.Key}},
	} {
		if _, err := p.Execute(ctx, step.command, step.args); err != nil {
			return err
		}
	}
	return nil
}

// PlugNIC plugs a network interface that nothing is connected to.
func PlugNIC(ctx context.Context, p Process, n NIC) error {
	if n.Model == "virtio" || n.Model == "" {
		n.Model = "virtio-net-pci"
	}
	if _, err := p.Execute(ctx, "netdev_add", map[string]any{"type": "user", "id": n.Key, "restrict": true, "ipv6": false}); err != nil {
		return err
	}
	_, err := p.Execute(ctx, "device_add", map[string]any{"driver": n.Model, "netdev": n.Key, "id": n.Key, "mac": n.MAC, "bus": "pci.0"})
	if err != nil {
		_, _ = p.Execute(ctx, "netdev_del", map[string]string{"id": n.Key}) // of no use now
	}
	return err
}

// UnplugNIC takes a network interface out, once the guest let it go.
func UnplugNIC(ctx context.Context, p Process, key string) error {
	if err := unplug(ctx, p, key); err != nil {
		return err
	}
	_, err := p.Execute(ctx, "netdev_del", map[string]string{"id": key})
	return err
}

// DIMM is a memory module.
type DIMM struct {
	Name string // "dimm0"
	MiB  int
	Node int // of NUMA
}

// PlugDIMM plugs memory.
func PlugDIMM(ctx context.Context, p Process, d DIMM) error {
	memory := map[string]any{"qom-type": "memory-backend-ram", "id": "mem-" + d.Name, "size": d.MiB << 20}
	if _, err := p.Execute(ctx, "object-add", memory); err != nil {
		return err
	}
	_, err := p.Execute(ctx, "device_add", map[string]any{"driver": "pc-dimm", "id": d.Name, "memdev": "mem-" + d.Name, "node": d.Node})
	if err != nil {
		_, _ = p.Execute(ctx, "object-del", map[string]string{"id": "mem-" + d.Name}) // of no use now
	}
	return err
}

// UnplugDIMM takes memory out, once the guest let it go.
func UnplugDIMM(ctx context.Context, p Process, name string) error {
	if err := unplug(ctx, p, name); err != nil {
		return err
	}
	_, err := p.Execute(ctx, "object-del", map[string]string{"id": "mem-" + name})
	return err
}

// unplugPatience is how long Proxmox VE waits for a guest to let a device go.
const unplugPatience = 5 * time.Second

// unplug asks for a device and waits until it is gone.
func unplug(ctx context.Context, p Process, id string) error {
	if _, err := p.Execute(ctx, "device_del", map[string]string{"id": id}); err != nil {
		return err
	}
	return await(ctx, "error on hot-unplugging device '"+id+"'", func(ctx context.Context) (bool, error) {
		there, err := devices(ctx, p)
		return err == nil && !slices.Contains(there, id), nil
	})
}

// await waits until something is done, for as long as Proxmox VE would.
func await(ctx context.Context, what string, done func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, unplugPatience)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(ctx); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New(what)
		}
	}
}

// devices lists the ids of a machine's devices.
func devices(ctx context.Context, p Process) ([]string, error) {
	raw, err := p.Execute(ctx, "qom-list", map[string]string{"path": "/machine/peripheral"})
	if err != nil {
		return nil, err
	}
	var list []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("qom-list: %w", err)
	}
	ids := make([]string, len(list))
	for i, e := range list {
		ids[i] = e.Name
	}
	return ids, nil
}
