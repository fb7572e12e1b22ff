package pvesim

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/vmconf"
)

func cloudInitDrive(s vmconf.Section) *vmconf.Drive {
	for _, d := range s.Drives() {
		if d.CloudInit() {
			return &d
		}
	}
	return nil
}

// generateCloudInit writes the cloud-init drive anew. t may be nil.
func (c *Cluster) generateCloudInit(ctx context.Context, n *Node, vmid int, conf *vmconf.Conf, t *Task) error {
	d := cloudInitDrive(conf.Main)
	if d == nil {
		return nil
	}
	path, err := c.pool.path(n.Name, d.File)
	if err != nil {
		return err
	}
	files := map[string][]byte{}
	for kind, name := range map[string]string{"user": "user-data", "network": "network-config", "meta": "meta-data", "vendor": "vendor-data"} {
		text, err := c.cloudInitFile(n, vmid, conf.Main, kind)
		if err != nil {
			return err
		}
		if text != "" {
			files[name] = []byte(text)
		}
	}
	if t != nil {
		t.logf("generating cloud-init ISO")
	}
	if err := c.disks.CloudInit(ctx, path, files); err != nil {
		return dief("generating cloud-init ISO failed: %s", err)
	}
	if conf.Special["cloudinit"] != nil {
		delete(conf.Special, "cloudinit")
		return c.saveConf(n, vmid, conf)
	}
	return nil
}

// cloudInitFile is one file of the drive: the user's snippet, or PVE's own.
func (c *Cluster) cloudInitFile(n *Node, vmid int, s vmconf.Section, kind string) (string, error) {
	if volid := vmconf.Props(s["cicustom"], "")[kind]; volid != "" {
		return c.snippet(n, volid)
	}
	switch kind {
	case "user":
		return userData(s), nil
	case "network":
		return networkConfig(s), nil
	case "meta":
		return "instance-id: " + instanceID(vmid, s) + "\n", nil
	}
	return "", nil
}

func (c *Cluster) snippet(n *Node, volid string) (string, error) {
	path, err := c.pool.path(n.Name, volid)
	if err != nil {
		return "", err
	}
	if v, err := parseVolume(volid); err != nil || v.kind != "snippets" {
		return "", dief("%s is not in the snippets directory", volid)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", dief("can't open '%s' - No such file or directory", path)
	}
	return string(b), nil
}

func instanceID(vmid int, s vmconf.Section) string { return fmt.Sprintf("%d-%s", vmid, s.UUID()) }

func userData(s vmconf.Section) string {
	var b strings.Builder
	name, fqdn := s["name"], s["name"]
	if domain := s["searchdomain"]; domain != "" {
		fqdn += "." + strings.Fields(domain)[0]
	}
	fmt.Fprintf(&b, "#cloud-config\nhostname: %s\nmanage_etc_hosts: true\nfqdn: %s\n", name, fqdn)
	if v := s["ciuser"]; v != "" {
		fmt.Fprintf(&b, "user: %s\n", v)
	} else {
		b.WriteString("disable_root: False\n")
	}
	if v := s["cipassword"]; v != "" {
		fmt.Fprintf(&b, "password: %s\n", v)
	}
	if keys, err := url.PathUnescape(s["sshkeys"]); err == nil && strings.TrimSpace(keys) != "" {
		b.WriteString("ssh_authorized_keys:\n")
		for _, k := range strings.Split(strings.TrimSpace(keys), "\n") {
			fmt.Fprintf(&b, "  - %s\n", k)
		}
	}
	b.WriteString("chpasswd:\n  expire: False\n")
	if s["ciuser"] != "root" {
		b.WriteString("users:\n  - default\n")
	}
	if s.Bool("ciupgrade", true) {
		b.WriteString("package_upgrade: true\n")
	}
	return b.String()
}

func networkConfig(s vmconf.Section) string {
	var b strings.Builder
	b.WriteString("version: 1\nconfig:\n")
	for _, key := range sortedKeys(s) {
		if !vmconf.IsNIC(key) {
			continue
		}
		i := strings.TrimPrefix(key, "net")
		mac := strings.ToLower(vmconf.ParseNIC(key, s[key]).MAC)
		fmt.Fprintf(&b, "    - type: physical\n      name: eth%s\n      mac_address: '%s'\n      subnets:\n", i, mac)
		subnet(&b, vmconf.Props(s["ipconfig"+i], ""))
	}
	if s["nameserver"] != "" || s["searchdomain"] != "" {
		b.WriteString("    - type: nameserver\n")
		list(&b, "address", s["nameserver"])
		list(&b, "search", s["searchdomain"])
	}
	return b.String()
}

func subnet(b *strings.Builder, p map[string]string) {
	switch ip := p["ip"]; ip {
	case "":
	case "dhcp":
		b.WriteString("      - type: dhcp4\n")
	default:
		addr, bits, _ := strings.Cut(ip, "/")
		fmt.Fprintf(b, "      - type: static\n        address: '%s'\n        netmask: '%s'\n", addr, netmask(atoi(bits)))
		if p["gw"] != "" {
			fmt.Fprintf(b, "        gateway: '%s'\n", p["gw"])
		}
	}
	switch ip := p["ip6"]; ip {
	case "":
	case "dhcp", "auto":
		fmt.Fprintf(b, "      - type: %s\n", map[string]string{"dhcp": "dhcp6", "auto": "ipv6_slaac"}[ip])
	default:
		fmt.Fprintf(b, "      - type: static6\n        address: '%s'\n", ip)
		if p["gw6"] != "" {
			fmt.Fprintf(b, "        gateway: '%s'\n", p["gw6"])
		}
	}
}

func netmask(bits int) string {
	m := ^uint32(0) << (32 - bits)
	return fmt.Sprintf("%d.%d.%d.%d", m>>24, m>>16&0xff, m>>8&0xff, m&0xff)
}

func list(b *strings.Builder, name, values string) {
	if values == "" {
		return
	}
	fmt.Fprintf(b, "      %s:\n", name)
	for _, v := range vmconf.SplitList(values) {
		fmt.Fprintf(b, "      - '%s'\n", v)
	}
}

var cloudInitKeys = []string{"cicustom", "cipassword", "citype", "ciuser", "ciupgrade", "nameserver", "searchdomain", "sshkeys"}

// cloudInitState is GET .../cloudinit: what the drive has and what the config says.
func (c *Cluster) cloudInitState(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	now, was := sectionJSON(conf.Main), sectionJSON(conf.Special["cloudinit"])
	added := vmconf.SplitList(conf.Special["cloudinit"]["added"])
	out := []any{}
	for _, key := range added {
		out = append(out, map[string]any{"key": key, "pending": now[key]})
	}
	for _, key := range cloudInitKeys {
		v, ok := now[key]
		if !ok || slices.Contains(added, key) {
			continue
		}
		e := map[string]any{"key": key, "value": v}
		if old, changed := was[key]; changed {
			e["value"], e["pending"] = old, v
		}
		out = append(out, e)
	}
	for _, key := range sortedKeys(was) {
		if _, ok := now[key]; !ok && key != "added" {
			out = append(out, map[string]any{"key": key, "delete": 1})
		}
	}
	return out, nil
}

// cloudInitUpdate is PUT .../cloudinit.
func (c *Cluster) cloudInitUpdate(ctx context.Context, rq *request) (any, error) {
	n, vmid := rq.node, rq.vmid()
	return nil, c.lockConf(ctx, n, vmid, nil, func() error {
		conf, err := c.loadConf(n, vmid)
		if err != nil {
			return err
		}
		if err := checkLock(conf); err != nil {
			return err
		}
		return c.generateCloudInit(ctx, n, vmid, conf, nil)
	})
}

// cloudInitDump is GET .../cloudinit/dump.
func (c *Cluster) cloudInitDump(_ context.Context, rq *request) (any, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	return c.cloudInitFile(rq.node, rq.vmid(), conf.Main, rq.param("type"))
}
