package cloudinit

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// cloudInit runs the guest's own program, as Debian ships it.
func cloudInit(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("cloud-init")
	if err != nil {
		t.Skip("skipped: needs cloud-init; enable with: apt-get install --no-install-recommends cloud-init")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// write puts content into a file of the test.
func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.yaml")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestCloudInitTakesTheUserData: the guest's own schema knows every key that we write.
func TestCloudInitTakesTheUserData(t *testing.T) {
	for _, name := range []string{"manager", "hostname", "meta-hostname"} {
		r, err := scenarios(t)[name].Render()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := cloudInit(t, "schema", "--config-file", write(t, r.Parts["user"])); err != nil || !strings.Contains(out, "Valid") {
			t.Errorf("%s: %v\n%s\n%s", name, err, out, r.Parts["user"])
		}
	}
	if out, err := cloudInit(t, "schema", "--config-file", write(t, []byte("#cloud-config\nhostname: [1]\n"))); err == nil {
		t.Errorf("cloud-init takes anything:\n%s", out)
	}
}

// TestCloudInitTakesTheNetwork: newer versions have a schema for it.
func TestCloudInitTakesTheNetwork(t *testing.T) {
	if help, err := cloudInit(t, "schema", "--help"); err != nil || !strings.Contains(help, "--schema-type") {
		t.Logf("this cloud-init has no schema for network-config (%v); TestGuestsConfigureTheNetwork has it read all the same", err)
		return
	}
	for name, w := range scenarios(t) {
		network, err := w.NetworkPart()
		if err != nil {
			t.Fatal(err)
		}
		if network == nil {
			continue
		}
		if out, err := cloudInit(t, "schema", "--schema-type", "network-config", "--config-file", write(t, network)); err != nil {
			t.Errorf("%s: %v\n%s\n%s", name, err, out, network)
		}
	}
}

// TestGuestsConfigureTheNetwork has cloud-init write what the guest's network is configured from, for three kinds of
// guests, and looks for what was wished.
func TestGuestsConfigureTheNetwork(t *testing.T) {
	for _, c := range []struct {
		scenario, guest string
		want            []string
	}{
		{"manager", "eni", []string{"iface eth0 inet static", "address 192.0.2.10/24", "route add default gw 192.0.2.1", "dns-nameservers 192.0.2.53 192.0.2.54", "iface eth1 inet dhcp"}},
		{"manager", "networkd", []string{"MACAddress=bc:24:11:00:00:0a", "Address=192.0.2.10/24", "Gateway=192.0.2.1", "DNS=192.0.2.53 192.0.2.54", "DHCP=ipv4"}},
		{"manager", "netplan", []string{"192.0.2.10/24", "macaddress: bc:24:11:00:00:0a", "via: 192.0.2.1", "192.0.2.54", "dhcp4: true"}},
		{"dual-stack", "eni", []string{"iface eth0 inet6 static", "address 2001:db8::10/64", "gateway 2001:db8::1"}},
		{"dual-stack", "networkd", []string{"Address=2001:db8::10/64", "Gateway=2001:db8::1", "Gateway=192.0.2.1"}},
		{"dual-stack", "netplan", []string{"2001:db8::10/64", "gateway6: 2001:db8::1"}},
		{"on-link", "netplan", []string{"on-link: true", "via: 198.51.100.1", "via: 2001:db8:1::1"}},
		{"template", "networkd", []string{"MACAddress=bc:24:11:00:00:0b", "Address=198.51.100.7/24", "Gateway=198.51.100.1", "DHCP=ipv4"}},
	} {
		t.Run(c.scenario+"/"+c.guest, func(t *testing.T) {
			network, err := scenarios(t)[c.scenario].NetworkPart()
			if err != nil {
				t.Fatal(err)
			}
			got := convert(t, network, c.guest)
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("no %q in what %s is told:\n%s\nfrom:\n%s", want, c.guest, got, network)
				}
			}
		})
	}
}

// convert returns all files that cloud-init writes for a kind of guest. This machine has no NICs with these addresses,
// so that they are called by their ids.
func convert(t *testing.T, network []byte, guest string) string {
	t.Helper()
	dir := t.TempDir()
	args := []string{"devel", "net-convert", "--network-data", write(t, network), "--kind", "yaml", "--directory", dir, "--distro", "debian", "--output-kind", guest}
	if out, err := cloudInit(t, args...); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out, network)
	}
	files := map[string]string{}
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		files[path] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, path := range slices.Sorted(maps.Keys(files)) {
		all.WriteString(files[path])
	}
	return all.String()
}
