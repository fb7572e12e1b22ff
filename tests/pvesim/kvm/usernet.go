package kvm

import (
	"fmt"
	"net/netip"
)

// userNetwork returns the options of QEMU's user network that decide which
// address its DHCP server gives to interface i of a machine: GuestIP to the
// first, if it is set, else one made of the VMID and i.
// Gateway and name server exist in name only.
func userNetwork(s Spec, i int) (string, error) {
	guest := netip.AddrFrom4([4]byte{10, byte(s.VMID >> 8), byte(s.VMID), byte(10 + i)})
	if i == 0 && s.GuestIP != "" {
		var err error
		if guest, err = netip.ParseAddr(s.GuestIP); err != nil || !guest.Is4() {
			return "", fmt.Errorf("machine %d: guest address %q is no IPv4 address", s.VMID, s.GuestIP)
		}
	}
	network, err := guest.Prefix(24)
	if err != nil {
		return "", fmt.Errorf("machine %d: %w", s.VMID, err)
	}
	host, dns := other(network, guest, 2), other(network, guest, 250)
	return fmt.Sprintf("net=%s,host=%s,dns=%s,dhcpstart=%s", network, host, dns, guest), nil
}

// other is the n-th address of the network, or the next if it is the guest's.
func other(network netip.Prefix, guest netip.Addr, n byte) netip.Addr {
	bytes := network.Masked().Addr().As4()
	bytes[3] = n
	if addr := netip.AddrFrom4(bytes); addr != guest {
		return addr
	}
	return guest.Next()
}
