package qga

import (
	"context"
	"net/netip"
)

// OSInfo is guest-get-osinfo. Any field may be empty.
type OSInfo struct {
	Name          string `json:"name"`        // "Debian GNU/Linux"
	PrettyName    string `json:"pretty-name"` // "Debian GNU/Linux 13 (trixie)"
	ID            string `json:"id"`          // "debian", "mswindows"
	Version       string `json:"version"`
	VersionID     string `json:"version-id"`
	KernelRelease string `json:"kernel-release"`
	KernelVersion string `json:"kernel-version"`
	Machine       string `json:"machine"` // "x86_64"
}

// Interface is one network interface as the guest sees it.
type Interface struct {
	Name      string         // "eth0"
	MAC       string         // aa:bb:cc:dd:ee:ff, "" if the guest says none
	Addresses []netip.Prefix // in the guest's order, loopback and link-local included
}

// Ping asks whether the agent answers.
func (s *Session) Ping(ctx context.Context) error {
	return s.Execute(ctx, "guest-ping", nil, nil)
}

// HostName is the guest's.
func (s *Session) HostName(ctx context.Context) (string, error) {
	var reply struct {
		HostName string `json:"host-name"`
	}
	err := s.Execute(ctx, "guest-get-host-name", nil, &reply)
	return reply.HostName, err
}

// OSInfo asks for the guest's operating system.
func (s *Session) OSInfo(ctx context.Context) (OSInfo, error) {
	var info OSInfo
	err := s.Execute(ctx, "guest-get-osinfo", nil, &info)
	return info, err
}

// NetworkInterfaces asks for the guest's interfaces, in the guest's order.
// Addresses that are none are left out.
func (s *Session) NetworkInterfaces(ctx context.Context) ([]Interface, error) {
	var reply []struct {
		Name      string `json:"name"`
		MAC       string `json:"hardware-address"`
		Addresses []struct {
			Address string `json:"ip-address"`
			Prefix  int    `json:"prefix"`
		} `json:"ip-addresses"`
	}
	if err := s.Execute(ctx, "guest-network-get-interfaces", nil, &reply); err != nil {
		return nil, err
	}
	interfaces := make([]Interface, 0, len(reply))
	for _, r := range reply {
		i := Interface{Name: r.Name, MAC: r.MAC}
		for _, a := range r.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if err != nil {
				continue
			}
			i.Addresses = append(i.Addresses, netip.PrefixFrom(addr.WithZone(""), a.Prefix))
		}
		interfaces = append(interfaces, i)
	}
	return interfaces, nil
}
