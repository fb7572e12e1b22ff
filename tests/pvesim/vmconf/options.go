package vmconf

import (
	"regexp"
	"slices"
	"strings"
)

// options are the keys of a config that are no devices with a number, of all
// versions of PVE.
var options = strings.Fields(`acpi affinity agent allow-ksm amd-sev arch args audio0 autostart balloon bios boot bootdisk
 cicustom cipassword citype ciupgrade ciuser cores cpu cpulimit cpuunits description efidisk0 freeze hookscript hotplug
 hugepages intel-tdx ivshmem keephugepages keyboard kvm localtime lock machine memory meta migrate_downtime
 migrate_speed name nameserver numa onboot ostype protection reboot rng0 runningcpu runningmachine scsihw searchdomain
 shares smbios1 smp sockets spice_enhancements sshkeys startdate startup tablet tags tdf template tpmstate0 vcpus vga
 vmgenid vmstate vmstatestorage watchdog`)

var numbered = regexp.MustCompile(`^(net|ipconfig|serial|parallel|usb|hostpci|numa|unused|virtiofs)\d+$`)

// IsOption says whether a config can have such a key.
func IsOption(key string) bool {
	return IsDrive(key) || numbered.MatchString(key) || slices.Contains(options, key)
}
