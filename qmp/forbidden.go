package qmp

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// forbidden lists what would change a VM behind Proxmox VE's back, or run for
// long while the monitor is held. A trailing * stands for any ending.
var forbidden = []string{
	"quit", "stop", "cont", "system_*",
	"migrate*", "x-colo*", "calc-dirty-rate",
	"savevm*", "loadvm*", "snapshot-*", "delete-drive-snapshot", "delvm*",
	"blockdev-*", "blockdev_*", "block-*", "block_*", "drive-*", "drive_*", "transaction", "eject", "change*",
	"backup*", "dump-*", "screendump", "pmemsave", "memsave",
	"chardev-*", "object-*", "object_*", "netdev_*", "set_link", "nbd-server-*",
	"human-monitor-command", "add-fd", "getfd", "add_client", "qom-set", "x-exit-preconfig",
	"set_password", "expire_password", "change-vnc-password", "display-*", "send-key", "input-send-event", "inject-nmi",
	"watchdog-set-action", "set-action", "rtc-reset-reinjection", "yank", "replay-*",
}

// cpuDriver is how QEMU names the devices that are vCPUs (qemu-server, print_cpu_device).
const cpuDriver = "-cpu"

// cpuID is the only kind of device that may come and go through QMP: the name
// that Proxmox VE gives a hot-plugged vCPU (qemu-server, qemu_cpu_hotplug).
var cpuID = regexp.MustCompile(`^cpu[1-9][0-9]{0,3}$`)

// permit refuses what only Proxmox VE may send.
func permit(command string, arguments []byte) error {
	for _, pattern := range forbidden {
		prefix, open := strings.CutSuffix(pattern, "*")
		if command == pattern || open && strings.HasPrefix(command, prefix) {
			return ErrForbidden
		}
	}
	if command != "device_add" && command != "device_del" {
		return nil
	}
	var device struct {
		Driver string `json:"driver"`
		ID     string `json:"id"`
	}
	if err := json.Unmarshal(arguments, &device); err != nil || !cpuID.MatchString(device.ID) {
		return fmt.Errorf("%w for anything but a cpu (id %q)", ErrForbidden, device.ID)
	}
	if command == "device_add" && device.Driver != "" && !strings.HasSuffix(device.Driver, cpuDriver) {
		return fmt.Errorf("%w for anything but a cpu (driver %q)", ErrForbidden, device.Driver)
	}
	return nil
}
