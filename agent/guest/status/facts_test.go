package status

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
)

func TestAddresses(t *testing.T) {
	nic := func(name string, addresses ...string) qga.Interface {
		i := qga.Interface{Name: name}
		for _, a := range addresses {
			i.Addresses = append(i.Addresses, netip.MustParsePrefix(a))
		}
		return i
	}
	lo := nic("lo", "127.0.0.1/8", "::1/128")
	for name, test := range map[string]struct {
		in   []qga.Interface
		want []string
	}{
		"nothing":    {nil, nil},
		"loopback":   {[]qga.Interface{lo}, nil},
		"link-local": {[]qga.Interface{lo, nic("eth0", "fe80::1/64", "169.254.3.4/16")}, nil},
		"usual":      {[]qga.Interface{lo, nic("eth0", "10.0.0.5/24", "fe80::1/64")}, []string{"10.0.0.5"}},
		"IPv4 first": {
			[]qga.Interface{nic("eth0", "2001:db8::5/64", "10.0.0.5/24"), nic("eth1", "fd00::1/64", "192.168.1.5/24")},
			[]string{"10.0.0.5", "192.168.1.5", "2001:db8::5", "fd00::1"},
		},
		"containers last": {
			[]qga.Interface{nic("docker0", "172.17.0.1/16"), nic("br-0a1b2c", "172.18.0.1/16"), nic("wg0", "10.9.0.1/24"), nic("ens18", "2001:db8::5/64")},
			[]string{"2001:db8::5", "172.17.0.1", "172.18.0.1", "10.9.0.1"},
		},
		"twice":    {[]qga.Interface{nic("eth0", "10.0.0.5/24", "10.0.0.5/32"), nic("bond0", "10.0.0.5/24")}, []string{"10.0.0.5"}},
		"mapped":   {[]qga.Interface{nic("eth0", "::ffff:10.0.0.5/120")}, []string{"10.0.0.5"}},
		"no hosts": {[]qga.Interface{nic("eth0", "0.0.0.0/0", "224.0.0.1/4", "ff02::1/16", "::/0", "255.255.255.255/32")}, nil},
		"Windows":  {[]qga.Interface{nic("vEthernet (nat)", "172.20.0.1/16"), nic("Ethernet Instance 0", "10.0.0.7/24")}, []string{"10.0.0.7", "172.20.0.1"}},
	} {
		if got := addresses(test.in); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
	flood := qga.Interface{Name: "eth0"}
	for a := netip.MustParseAddr("10.0.0.1"); len(flood.Addresses) < 5000; a = a.Next() {
		flood.Addresses = append(flood.Addresses, netip.PrefixFrom(a, 8))
	}
	if got := addresses([]qga.Interface{flood}); len(got) != mostIPs || got[0] != "10.0.0.1" {
		t.Errorf("of a flood %d were kept, the first is %s", len(got), got[0])
	}
}

func TestTame(t *testing.T) {
	for in, want := range map[string]string{
		"Debian GNU/Linux 13 (trixie)": "Debian GNU/Linux 13 (trixie)",
		" \x1b[31mred\x00\r\n ":        "[31mred",
		"Grüße":                        "Grüße",
		strings.Repeat("ü", 1000):      strings.Repeat("ü", 200),
	} {
		if got := tame(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestOSName(t *testing.T) {
	for want, info := range map[string]qga.OSInfo{
		"Debian GNU/Linux 13 (trixie)": {PrettyName: "Debian GNU/Linux 13 (trixie)", Name: "Debian"},
		"FreeBSD 14.1":                 {Name: "FreeBSD", Version: "14.1"},
		"":                             {},
	} {
		if got := osName(info); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestStartedWith(t *testing.T) {
	const path = "/var/run/qemu-server/120.pid"
	for cmdline, want := range map[string]bool{
		"/usr/bin/kvm\x00-id\x00120\x00-pidfile\x00" + path + "\x00-daemonize\x00": true,
		"/usr/bin/kvm\x00-pidfile\x00" + path + "\x00":                             true,
		"/usr/bin/kvm\x00-pidfile\x00" + path:                                      true,
		"/usr/bin/kvm\x00-pidfile\x00/var/run/qemu-server/12.pid\x00":              false,
		"/usr/bin/kvm\x00-pidfile\x00/nowhere/120.pid\x00":                         false,
		"/usr/bin/kvm\x00-pidfile\x00120.pid\x00":                                  false,
		"vi\x00" + path + "\x00":                                                   false,
		"kvm\x00-pidfile=" + path + "\x00":                                         false,
		"kvm\x00-pidfile":                                                          false,
		"kvm\x00-pidfile\x00":                                                      false,
		"":                                                                         false,
	} {
		if got := startedWith([]byte(cmdline), path); got != want {
			t.Errorf("%q: %t", cmdline, got)
		}
	}
}

func TestStartTime(t *testing.T) {
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	got, err := startTime(stat)
	if age := time.Since(got); err != nil || age < -time.Second || age > time.Hour {
		t.Errorf("this process started %v ago, %v", age, err)
	}
	// The name may be chosen so as to confuse.
	odd := strings.Replace(string(stat), "(", "(a) S 1 2 3 (", 1)
	if same, err := startTime([]byte(odd)); err != nil || same.Sub(got).Abs() > time.Second {
		t.Errorf("with an odd name %v, %v; want %v", same, err, got)
	}
	for _, bad := range []string{"", "1 kvm S", "1 (kvm) S 1 2", "1 (kvm)" + strings.Repeat(" x", 30)} {
		if _, err := startTime([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}
