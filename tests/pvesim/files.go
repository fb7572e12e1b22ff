package pvesim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// makeCerts makes the cluster's CA and the nodes' certificates, and with
// Config.TLS those of the agents' gRPC.
func (c *Cluster) makeCerts(context.Context) error {
	var err error
	if c.ca, err = newAuthority("Proxmox Virtual Environment"); err != nil {
		return err
	}
	if err := c.tree.writeFile("pve-root-ca.pem", c.ca.pem, 0o640); err != nil {
		return err
	}
	for _, n := range c.nodes {
		if err := c.nodeCert(n); err != nil {
			return err
		}
	}
	if !c.cfg.TLS {
		return nil
	}
	return c.agentCerts()
}

func (c *Cluster) nodeCert(n *Node) error {
	l, err := c.ca.issue(n.Name, c.certNames(n)...)
	if err != nil {
		return err
	}
	for name, b := range map[string][]byte{"pve-ssl.pem": l.cert, "pve-ssl.key": l.key} {
		if err := c.tree.writeFile(filepath.Join("nodes", n.Name, name), b, 0o640); err != nil {
			return err
		}
	}
	if n.cert, err = l.tls(); err != nil {
		return err
	}
	n.proxy.tls = serverTLS(n.cert)
	return nil
}

// certNames are the names of a node in its certificates.
func (c *Cluster) certNames(n *Node) []string {
	names := []string{n.Name, n.Name + ".pvesim.test", "localhost", "127.0.0.1", n.IP.String()}
	if c.cfg.APIHost.IsValid() {
		names = append(names, c.cfg.APIHost.String())
	}
	return names
}

// agentCerts writes D/tls: the CA, a certificate for each agent and one for a client.
func (c *Cluster) agentCerts() error {
	dir := filepath.Join(c.cfg.Dir, "tls")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("tls: %w", err)
	}
	var err error
	if c.agentCA, err = newAuthority("pvesim agents"); err != nil {
		return err
	}
	files := map[string][]byte{"ca.crt": c.agentCA.pem}
	for _, n := range c.nodes {
		l, err := c.agentCA.issue(n.Name, append(c.certNames(n), "pve-rigaud://"+ClusterName+"/node/"+n.Name)...)
		if err != nil {
			return err
		}
		files[n.Name+".crt"], files[n.Name+".key"] = l.cert, l.key
	}
	client, err := c.agentCA.issue("virtrigaud-manager", "manager.virtrigaud.test")
	if err != nil {
		return err
	}
	files["client.crt"], files["client.key"] = client.cert, client.key
	for _, name := range sortedKeys(files) {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o600); err != nil {
			return fmt.Errorf("tls: %w", err)
		}
	}
	return nil
}

// writeFiles writes the agents' configurations and D/env.
func (c *Cluster) writeFiles(ctx context.Context) error {
	if err := c.agentPorts(ctx); err != nil {
		return err
	}
	secret := filepath.Join(c.cfg.Dir, "token-secret")
	if err := os.WriteFile(secret, []byte(TokenSecret+"\n"), 0o600); err != nil {
		return fmt.Errorf("token secret: %w", err)
	}
	for _, n := range c.nodes {
		if err := c.agentConfig(n, secret); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, "env"), []byte(c.envText()), 0o600); err != nil {
		return fmt.Errorf("env: %w", err)
	}
	return nil
}

func (c *Cluster) agentConfig(n *Node, secret string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# An agent for %s of a simulated cluster (pvesim).\nnode: %s\nlisten:\n  grpc: %q\n", n.Name, n.Name, n.GRPC)
	if c.cfg.TLS {
		dir := filepath.Join(c.cfg.Dir, "tls")
		fmt.Fprintf(&b, "  cert: %s/%s.crt\n  key: %s/%s.key\n  ca: %s/ca.crt\n", dir, n.Name, dir, n.Name, dir)
	} else {
		b.WriteString("  plaintext: true\n")
		if !n.IP.IsLoopback() {
			b.WriteString("  insecure-anyway: true\n")
		}
	}
	fmt.Fprintf(&b, "gossip:\n  bind: %q\nsocket: %s\n", n.Gossip, n.Socket)
	fmt.Fprintf(&b, "metrics: %q\nstate-dir: %s\n", n.Metrics, n.State)
	fmt.Fprintf(&b, "pve:\n  endpoint: %s\n  ca-bundle: %s\n  token-id: %s\n  token-secret-file: %s\n",
		n.API(), filepath.Join(n.PMXCFS, "pve-root-ca.pem"), TokenID, secret)
	fmt.Fprintf(&b, "paths:\n  pmxcfs: %s\n  run: %s\n  lock: %s\n  proc: %s\n  sys: %s\n", n.PMXCFS, n.Run, n.Lock, n.Proc, n.Sys)
	if err := os.WriteFile(n.AgentYAML, []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("agent configuration: %w", err)
	}
	return nil
}

// envText are shell variables for scripts.
func (c *Cluster) envText() string {
	var b strings.Builder
	set := func(name, value string) { fmt.Fprintf(&b, "%s='%s'\n", name, strings.ReplaceAll(value, "'", `'\''`)) }
	for i, n := range c.nodes {
		p := fmt.Sprintf("PVE%d_", i+1)
		set(p+"API", n.API())
		set(p+"DAEMON", n.Daemon())
		set(p+"GRPC", n.GRPC)
		set(p+"METRICS", n.Metrics)
		set(p+"GOSSIP", n.Gossip)
		set(p+"IP", n.IP.String())
		set(p+"SOCKETS", n.Run)
		set(p+"SOCKET", n.Socket)
		set(p+"PMXCFS", n.PMXCFS)
		set(p+"CONFIG", n.AgentYAML)
	}
	if url := c.Control(); url != "" {
		set("PVESIM_CONTROL", url)
	}
	set("PVE_CA_FILE", filepath.Join(c.tree.root, "pve-root-ca.pem"))
	set("PVE_TOKEN_ID", TokenID)
	set("PVE_TOKEN_SECRET", TokenSecret)
	if !c.cfg.NoTemplates {
		set("TEMPLATE_ID", itoa(TemplateID))
		set("TEMPLATE_NAME", c.cfg.TemplateName)
		set("TEMPLATE_SHARED_ID", itoa(TemplateSharedID))
	}
	ids := ""
	if c.cfg.VMs > 0 {
		ids = fmt.Sprintf("%d-%d", c.cfg.FirstVM, c.cfg.FirstVM+c.cfg.VMs-1)
	}
	set("VM_IDS", ids)
	set("BRIDGE", bridges[0])
	set("STORAGE_LOCAL", StorageLocal)
	set("STORAGE_SHARED", StorageShared)
	if c.cfg.TLS {
		dir := filepath.Join(c.cfg.Dir, "tls")
		set("CLIENT_CERT", filepath.Join(dir, "client.crt"))
		set("CLIENT_KEY", filepath.Join(dir, "client.key"))
		set("CLIENT_CA", filepath.Join(dir, "ca.crt"))
	}
	return b.String()
}
