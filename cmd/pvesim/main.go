// Command pvesim runs a simulated Proxmox VE cluster in the foreground, for
// developing and demonstrating pve-rigaud without a real one. It is not
// packaged.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if errors.Is(err, pflag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pvesim:", err)
		os.Exit(1)
	}
}

// options are the flags that are no field of pvesim.Config.
type options struct {
	cfg       pvesim.Config
	memory    string
	memories  map[string]string
	tokens    []string
	users     []string
	debug     bool
	qemu      string
	addresses []string
	apiHost   string
	pmxcfs    string
}

func parse(args []string) (*options, error) {
	var o options
	f := pflag.NewFlagSet("pvesim", pflag.ContinueOnError)
	f.StringVar(&o.cfg.Dir, "dir", "", "directory for all files; short, unix sockets live below it")
	f.IntVar(&o.cfg.Nodes, "nodes", 3, "number of nodes")
	f.IntVar(&o.cfg.VMs, "vms", 100, "number of VMs, every other one running")
	f.IntVar(&o.cfg.FirstVM, "first-vmid", 100, "number of the first VM")
	f.StringVar(&o.cfg.TemplateName, "template", "linux-template", "name of template 9000 on pve1")
	f.DurationVar(&o.cfg.TaskDelay, "task-delay", 0, "time that every task takes beside its work")
	f.BoolVar(&o.cfg.TLS, "tls", false, "agents serve with certificates (made in DIR/tls)")
	f.StringVar(&o.qemu, "qemu", "auto", "auto, real, fake or none")
	f.StringVar(&o.pmxcfs, "pmxcfs", "dir", "how nodes see /etc/pve: dir or fuse")
	f.DurationVar(&o.cfg.ReadDelay, "read-delay", 0, "time of each read of /etc/pve (fuse only; 300us as on a real node)")
	f.IntVar(&o.cfg.CPUs, "cpus", 16, "CPUs of each node")
	f.StringVar(&o.memory, "memory", "64G", "memory of each node")
	f.StringToIntVar(&o.cfg.NodeCPUs, "node-cpus", nil, "CPUs of single nodes, pve2=4")
	f.StringToStringVar(&o.memories, "node-memory", nil, "memory of single nodes, pve2=8G")
	f.StringVar(&o.cfg.Version, "pve-version", "", "7.4, 8.4 or 9.1; default: of the schema, else 9.1")
	f.StringVar(&o.cfg.SchemaFile, "schema", "", "PVE's call schema to check requests against; default $PVE_API_SCHEMA, \"none\" for no check")
	f.StringArrayVar(&o.tokens, "token", nil, "another API token: ID=SECRET[=PATH:PRIV,PRIV[;PATH:...]]; all privileges without a list")
	f.StringArrayVar(&o.users, "user", nil, "another user, like --token: user@realm=password[=PATH:PRIV,...]")
	f.DurationVar(&o.cfg.AuthDelay, "auth-delay", 0, "time before a 401; default 3s, negative for none")
	f.StringVar(&o.cfg.Control, "control", "127.0.0.1:0", "where the control API listens (POST /do, see docs/pvesim.md); empty: nowhere")
	f.StringSliceVar(&o.addresses, "addresses", nil, "the nodes' addresses, in order; default: 127.R.S.1 and up, R and S by chance")
	f.StringVar(&o.apiHost, "api-host", "", "address of this machine where all nodes' APIs listen, if --addresses are not this machine's")
	f.DurationVar(&o.cfg.CorosyncDelay, "corosync-delay", 0, "time until .members says that a node or a link is gone or back")
	f.DurationVar(&o.cfg.FencingDelay, "fencing-delay", time.Minute, "time until VMs under HA of an offline node are started elsewhere")
	f.BoolVar(&o.debug, "debug", false, "log what happens")
	if err := f.Parse(args); err != nil {
		return nil, fmt.Errorf("%w", err)
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	o.cfg.QEMU, o.cfg.PMXCFS = pvesim.QEMU(o.qemu), pvesim.PMXCFS(o.pmxcfs)
	return &o, o.parseAddresses()
}

func (o *options) parseAddresses() error {
	for _, text := range o.addresses {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("--addresses: %w", err)
		}
		o.cfg.Addresses = append(o.cfg.Addresses, addr)
	}
	if o.apiHost == "" {
		return nil
	}
	var err error
	if o.cfg.APIHost, err = netip.ParseAddr(o.apiHost); err != nil {
		return fmt.Errorf("--api-host: %w", err)
	}
	return nil
}

func run(ctx context.Context, args []string, out, errs io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	o.cfg.Log = slog.New(slog.NewTextHandler(errs, &slog.HandlerOptions{Level: level}))
	if o.cfg.Memory, err = pvesim.ParseSize(o.memory); err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	o.cfg.NodeMemory = map[string]int64{}
	for node, text := range o.memories {
		if o.cfg.NodeMemory[node], err = pvesim.ParseSize(text); err != nil {
			return fmt.Errorf("--node-memory: %w", err)
		}
	}
	c, err := pvesim.New(o.cfg)
	if err != nil {
		return err
	}
	if err := addAccounts(c, o); err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	announce(out, c, o)
	<-ctx.Done()
	return errors.Join(c.Close(), report(out, c))
}

// announce says what was chosen and where things are.
func announce(out io.Writer, c *pvesim.Cluster, o *options) {
	lines := []string{"virtual machines: " + c.Hypervisor()}
	if why := c.Why(); why != "" {
		lines = append(lines, "  not real ones: "+strings.ReplaceAll(why, "\n", "\n  "))
	}
	if ids := c.StandIns(); ids != "" {
		lines = append(lines, "  stand-ins instead: "+ids)
	}
	lines = append(lines, "/etc/pve: "+c.PMXCFS(), "schema: "+c.Schema())
	for _, n := range c.Nodes() {
		lines = append(lines, fmt.Sprintf("%s: api %s  daemon %s  agent %s", n.Name, n.API(), n.Daemon(), n.AgentYAML))
	}
	if url := c.Control(); url != "" {
		lines = append(lines, "control: "+url+"/do")
	}
	lines = append(lines, "ready: "+filepath.Join(o.cfg.Dir, "env"))
	say(out, lines...)
}

// say prints; a reader that went away is no reason to stop.
func say(out io.Writer, lines ...string) {
	_, _ = fmt.Fprintln(out, strings.Join(lines, "\n"))
}

// report prints what requests broke the schema.
func report(out io.Writer, c *pvesim.Cluster) error {
	bad := c.SchemaErrors()
	for _, e := range bad {
		say(out, "schema: "+e)
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d requests did not fit the schema", len(bad))
	}
	return nil
}

func addAccounts(c *pvesim.Cluster, o *options) error {
	for _, spec := range o.tokens {
		id, secret, acl, err := account(c, spec)
		if err != nil || !strings.Contains(id, "!") {
			return fmt.Errorf("--token %q: want user@realm!name=secret[=PATH:PRIV,PRIV;PATH:...]", spec)
		}
		c.AddToken(id, secret, acl)
	}
	for _, spec := range o.users {
		id, password, acl, err := account(c, spec)
		if err != nil || !strings.Contains(id, "@") {
			return fmt.Errorf("--user %q: want user@realm=password[=PATH:PRIV,PRIV;PATH:...]", spec)
		}
		c.AddUser(id, password, acl)
	}
	return nil
}

// account reads "id=secret" with an optional list of privileges by path
// behind another "="; without it all privileges are given.
func account(c *pvesim.Cluster, spec string) (id, secret string, acl pvesim.ACL, err error) {
	parts := strings.SplitN(spec, "=", 3)
	if len(parts) < 2 {
		return "", "", nil, errors.New("no secret")
	}
	if len(parts) == 2 {
		return parts[0], parts[1], pvesim.ACL{"/": pvesim.AllPrivileges(c.Version())}, nil
	}
	acl = pvesim.ACL{}
	for _, entry := range strings.Split(parts[2], ";") {
		path, privs, ok := strings.Cut(entry, ":")
		if !ok {
			return "", "", nil, errors.New("no privileges")
		}
		acl[path] = strings.Split(privs, ",")
	}
	return parts[0], parts[1], acl, nil
}
