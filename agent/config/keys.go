package config

import (
	"strings"
	"time"
)

// DefaultFile is the local configuration file; it may be missing.
const DefaultFile = "/etc/pve-rigaud/config.yaml"

// clusterFileName is the file below paths.pmxcfs with what all nodes share.
const clusterFileName = "pve-rigaud.yaml"

// A key is one setting: its names everywhere, and the field it fills.
type key struct {
	// name is the path in the YAML file, with dots.
	name string
	// def is the default in the form of the file; a list has none.
	def string
	// env is the environment variable, empty if there is none.
	env string
	// flag overrides the flag's name, which is otherwise name with dashes.
	flag string
	// contents says of a text in the environment variable that it is the
	// contents of the file, not its path. Nil: never.
	contents func(text string) bool
	// cluster allows the key in the file that all nodes share: for policy, and
	// for paths that are the same file everywhere.
	cluster bool
	// field points to the place in the Config; its type is the key's type.
	field func(*Config) any
	// check looks at the value behind field.
	check func(value any) error
	// doc says what the setting means, in one line.
	doc string
	// unset says in the documentation what an empty value means.
	unset string
}

// flagName is the flag of the key, without dashes in front.
func (k *key) flagName() string {
	if k.flag != "" {
		return k.flag
	}
	return strings.ReplaceAll(k.name, ".", "-")
}

// The environment names are those the VirtRigaud provider for Proxmox
// documents. It says of its task polling only that environment variables tune
// it, without a name; those two are ours.
var keys = []*key{
	{
		name: "node", unset: "host name up to the first dot",
		field: func(c *Config) any { return &c.Node }, check: of(optional(nodeName)),
		doc: "Name of this node as PVE knows it.",
	},
	{
		name: "listen.grpc", def: ":9443",
		field: func(c *Config) any { return &c.Listen.GRPC }, check: of(hostPort),
		doc: "Address (host:port) of the provider service; an empty host means all addresses.",
	},
	{
		name:  "listen.advertise",
		field: func(c *Config) any { return &c.Listen.Advertise }, check: of(optional(addrPort)),
		unset: "this node's address in `.members` with the port of `listen.grpc`",
		doc:   "Address (ip:port) under which the agents of other nodes reach `listen.grpc`.",
	},
	{
		name:  "listen.cert",
		field: func(c *Config) any { return &c.Listen.Cert }, check: of(optional(absolute)),
		doc: "Certificate chain of this server (PEM file). Required unless `listen.plaintext`.",
	},
	{
		name:  "listen.key",
		field: func(c *Config) any { return &c.Listen.Key }, check: of(optional(absolute)),
		doc: "Private key of `listen.cert` (PEM file).",
	},
	{
		name: "listen.ca", cluster: true,
		field: func(c *Config) any { return &c.Listen.CA }, check: of(optional(absolute)),
		doc: "CA certificates of the clients (PEM file).",
	},
	{
		name: "listen.allowed-sans", flag: "allowed-sans", cluster: true, unset: "every certificate of the CA",
		field: func(c *Config) any { return &c.Listen.AllowedSANs }, check: of(each(identity)),
		doc: "Clients that may call: URI SAN, DNS SAN or CN of their certificate, exact match.",
	},
	{
		name: "listen.plaintext", def: "false", flag: "plaintext",
		field: func(c *Config) any { return &c.Listen.Plaintext },
		doc:   "Serve without TLS, on a loopback address only.",
	},
	{
		name: "listen.insecure-anyway", def: "false", flag: "insecure-anyway",
		field: func(c *Config) any { return &c.Listen.InsecureAnyway },
		doc:   "Allow `listen.plaintext` on an address that others can reach.",
	},
	{
		name: "gossip.bind", def: ":7946",
		field: func(c *Config) any { return &c.Gossip.Bind }, check: of(hostPort),
		doc: "Address (host:port, TCP and UDP) of the gossip between agents; an empty host means this node's address in `.members`. All nodes use one port, unless `gossip.join` names them.",
	},
	{
		name:  "gossip.advertise",
		field: func(c *Config) any { return &c.Gossip.Advertise }, check: of(optional(addrPort)),
		unset: "the address of `gossip.bind`",
		doc:   "Address (ip:port) under which other agents reach `gossip.bind`.",
	},
	{
		name:  "gossip.join",
		field: func(c *Config) any { return &c.Gossip.Join }, check: of(each(addrPort)), cluster: true,
		unset: "the online nodes of `.members`",
		doc:   "Addresses (ip:port) of agents to join.",
	},
	{
		name:  "gossip.key-file",
		field: func(c *Config) any { return &c.Gossip.KeyFile }, check: of(optional(absolute)), cluster: true,
		unset: "`priv/pve-rigaud/gossip.key` in `paths.pmxcfs`",
		doc:   "Keys that encrypt the gossip: one base64 text of 32 bytes a line, the first is used to send. If it does not exist one is made.",
	},
	{
		name: "socket", def: "/run/pve-rigaud/agent.sock",
		field: func(c *Config) any { return &c.Socket }, check: of(optional(absolute)),
		doc: "Unix socket for the commands of this node, root only. Empty: none.",
	},
	{
		name: "metrics", def: "127.0.0.1:9444",
		field: func(c *Config) any { return &c.Metrics }, check: of(hostPort),
		doc: "Address (host:port) of `/healthz`, `/readyz` and `/metrics` (plain HTTP).",
	},
	{
		name: "state-dir", def: "/var/lib/pve-rigaud",
		field: func(c *Config) any { return &c.StateDir }, check: of(absolute),
		doc: "Directory of the journal of operations.",
	},
	{
		name: "log.level", def: "info", env: "LOG_LEVEL", cluster: true,
		field: func(c *Config) any { return &c.Log.Level },
		doc:   "Lowest level that is logged: `debug`, `info`, `warn` or `error`.",
	},
	{
		name: "log.format", def: "text", env: "LOG_FORMAT", cluster: true,
		field: func(c *Config) any { return &c.Log.Format }, check: of(oneOf("text", "json", "journal")),
		doc: "Form of the log: `text`, `json` or `journal` (fields for journald).",
	},
	{
		name: "pve.endpoint", def: "http://127.0.0.1:85", env: "PVE_ENDPOINT", cluster: true,
		field: func(c *Config) any { return &c.PVE.Endpoint }, check: of(endpoint),
		doc: "The PVE API: pvedaemon (`http`, loopback only) or pveproxy (`https`), without a path.",
	},
	{
		name: "pve.token-id", env: "PVE_TOKEN_ID", cluster: true,
		field: func(c *Config) any { return &c.PVE.TokenID }, check: of(optional(tokenID)),
		doc: "API token, `user@realm!name`.",
	},
	{
		name: "pve.token-secret-file", env: "PVE_TOKEN_SECRET", contents: always, cluster: true,
		field: func(c *Config) any { return &c.PVE.TokenSecretFile }, check: of(optional(absolute)),
		doc: "File with the token's secret. The environment variable holds the secret itself.",
	},
	{
		name: "pve.username", env: "PVE_USERNAME", cluster: true,
		field: func(c *Config) any { return &c.PVE.Username }, check: of(optional(userName)),
		doc: "User, `name@realm`, if there is no token.",
	},
	{
		name: "pve.password-file", env: "PVE_PASSWORD", contents: always, cluster: true,
		field: func(c *Config) any { return &c.PVE.PasswordFile }, check: of(optional(absolute)),
		doc: "File with the user's password. The environment variable holds the password itself.",
	},
	{
		name: "pve.ca-bundle", env: "PVE_CA_BUNDLE", contents: isPEM, cluster: true,
		unset: "`pve-root-ca.pem` in `paths.pmxcfs`",
		field: func(c *Config) any { return &c.PVE.CABundle }, check: of(optional(absolute)),
		doc: "CA certificates (PEM file) that verify an https endpoint. The environment variable holds a path or the PEM text itself.",
	},
	{
		name:  "pve.server-name",
		field: func(c *Config) any { return &c.PVE.ServerName }, check: of(optional(hostName)),
		unset: "the endpoint's host",
		doc:   "Name to find in the certificate of an https endpoint.",
	},
	{
		name: "pve.insecure-skip-verify", def: "false", env: "PVE_INSECURE_SKIP_VERIFY",
		field: func(c *Config) any { return &c.PVE.InsecureSkipVerify },
		doc:   "Do not verify an https endpoint.",
	},
	{
		name: "pve.workers", def: "3",
		field: func(c *Config) any { return &c.PVE.Workers }, check: of(between(2, 64)),
		doc: "Worker processes of the API on this node (2 to 64); one of them is left to others.",
	},
	{
		name: "pve.call-timeout", def: "30s", cluster: true,
		field: func(c *Config) any { return &c.PVE.CallTimeout }, check: of(lasting(time.Second, 10*time.Minute)),
		doc: "Deadline of one API call (1s to 10m).",
	},
	{
		name: "paths.pmxcfs", def: "/etc/pve",
		field: func(c *Config) any { return &c.Paths.PMXCFS }, check: of(absolute),
		doc: "Mount point of the cluster file system.",
	},
	{
		name: "paths.run", def: "/var/run/qemu-server",
		field: func(c *Config) any { return &c.Paths.Run }, check: of(absolute),
		doc: "Directory of PVE's pid files and QEMU sockets.",
	},
	{
		name: "paths.lock", def: "/var/lock/qemu-server",
		field: func(c *Config) any { return &c.Paths.Lock }, check: of(absolute),
		doc: "Directory of PVE's lock files.",
	},
	{
		name: "paths.proc", def: "/proc",
		field: func(c *Config) any { return &c.Paths.Proc }, check: of(absolute),
		doc: "Where the kernel tells of the host's memory, CPUs and load. Processes are always looked for in `/proc`.",
	},
	{
		name: "paths.sys", def: "/sys",
		field: func(c *Config) any { return &c.Paths.Sys }, check: of(absolute),
		doc: "Where the kernel tells of the host's network devices.",
	},
	{
		name: "watch", def: "1s", cluster: true,
		field: func(c *Config) any { return &c.Watch }, check: of(lasting(100*time.Millisecond, 10*time.Second)),
		doc: "How often the cluster's state is looked at (100ms to 10s).",
	},
	{
		name: "vmid-range", def: "10000-999999", cluster: true,
		field: func(c *Config) any { return &c.VMIDRange },
		doc:   "Ids of the VMs the agent makes (within 100-999999999, both ends included).",
	},
	{
		name: "sync-wait", def: "2s", cluster: true,
		field: func(c *Config) any { return &c.SyncWait }, check: of(lasting(0, time.Minute)),
		doc: "How long a call waits for its work before it answers with a task (0s to 1m).",
	},
	{
		name: "sync-waits-per-client", def: "3", cluster: true,
		field: func(c *Config) any { return &c.SyncWaitsPerClient }, check: of(between(0, 64)),
		doc: "How many calls of one client may wait so at once (0 to 64).",
	},
	{
		name: "delete-foreign", def: "true", cluster: true,
		field: func(c *Config) any { return &c.DeleteForeign },
		doc:   "Allow Delete of VMs that this service did not make. Adoption needs it.",
	},
	{
		name: "console-url", cluster: true, unset: "`https://<address of this node>:8006`",
		field: func(c *Config) any { return &c.ConsoleURL }, check: of(optional(webURL)),
		doc: "Base of the PVE GUI in console links.",
	},
	{
		name: "snippets-storage", cluster: true, unset: "first enabled storage with content type snippets",
		field: func(c *Config) any { return &c.SnippetsStorage }, check: of(optional(storageID)),
		doc: "Storage for cloud-init snippets.",
	},
	{
		name: "bridges", cluster: true, unset: "`default` and `lan` are `vmbr0`, `dmz` is `vmbr1`, `mgmt` and `management` are `vmbr2`",
		field: func(c *Config) any { return &c.Bridges }, check: of(bridgeTable),
		doc: "Bridges that names of networks stand for, `{name: bridge}`; they are added to the built-in ones.",
	},
	{
		name: "storage-classes", cluster: true, unset: "`thin` disks go where the root disk is; other types are refused",
		field: func(c *Config) any { return &c.StorageClasses }, check: of(classTable),
		doc: "Where disks of a type go, and with which drive options: `{nvme: {storage: fast, ssd: 1, iothread: 1}}`.",
	},
	{
		name: "node-selector", env: "PVE_NODE_SELECTOR", cluster: true, unset: "all",
		field: func(c *Config) any { return &c.NodeSelector }, check: of(each(nodeOrGroup)),
		doc: "Nodes, or groups of `placement.groups`, for new VMs: preferred, or the only ones (`placement.node-selector`).",
	},
	{
		name: "placement.scorer", def: "crs", cluster: true,
		field: func(c *Config) any { return &c.Placement.Scorer }, check: of(oneOf(scorers...)),
		doc: "Which of the nodes that can take a VM gets it: `crs` (as Proxmox's own scheduler chooses), `spread` (the emptiest) or `pack` (the fullest).",
	},
	{
		name: "placement.memory-overcommit", def: "1.0", cluster: true,
		field: func(c *Config) any { return (*ratio)(&c.Placement.MemoryOvercommit) }, check: of(ratioBetween(0.1, 100)),
		doc: "How much of a node's memory may be promised to VMs (0.1 to 100 times what it has).",
	},
	{
		name: "placement.memory-reserve", def: "1GiB", cluster: true,
		field: func(c *Config) any { return (*size)(&c.Placement.MemoryReserve) },
		doc:   "Memory of each node that no VM gets, beside what ZFS keeps for its cache.",
	},
	{
		name: "placement.node-selector", def: "prefer", cluster: true,
		field: func(c *Config) any { return (*selector)(&c.Placement.SelectorRequired) },
		doc:   "What `node-selector` means: `prefer`, or `required`.",
	},
	{
		name: "placement.groups", cluster: true, unset: "none",
		field: func(c *Config) any { return &c.Placement.Groups }, check: of(nodeLists),
		doc: "Nodes that requests and policies may name together: `{fast: [pve1, pve2]}`.",
	},
	{
		name: "placement.zones", cluster: true, unset: "none",
		field: func(c *Config) any { return &c.Placement.Zones }, check: of(zoneLists),
		doc: "Nodes that fail together; a node is in one zone at most: `{room-a: [pve1], room-b: [pve2, pve3]}`.",
	},
	{
		name: "placement.image-replicas", def: "1", cluster: true,
		field: func(c *Config) any { return (*replicas)(&c.Placement.ImageReplicas) },
		doc:   "On how many nodes an image is to be (1 to 64, or `all`), unless its disks are on shared storage.",
	},
	{
		name: "placement.policies", cluster: true, unset: "none",
		field: func(c *Config) any { return &c.Placement.Policies },
		doc:   "Rules for some of the VMs, see Placement: `{db: {match: {tags: [db]}, spread: zone}}`.",
	},
	{
		name: "tasks.poll-min", def: "20ms", cluster: true,
		field: func(c *Config) any { return &c.Tasks.PollMin }, check: of(lasting(time.Millisecond, 10*time.Second)),
		doc: "Pause after the first look at a PVE task (1ms to 10s).",
	},
	{
		name: "tasks.poll-max", def: "500ms", env: "PVE_TASK_POLL_INTERVAL", cluster: true,
		field: func(c *Config) any { return &c.Tasks.PollMax }, check: of(lasting(time.Millisecond, time.Minute)),
		doc: "Longest pause between two looks (1ms to 1m).",
	},
	{
		name: "tasks.timeout", def: "6h", env: "PVE_TASK_TIMEOUT", cluster: true,
		field: func(c *Config) any { return &c.Tasks.Timeout }, check: of(lasting(time.Second, 7*24*time.Hour)),
		doc: "How long one PVE task may take (1s to 168h).",
	},
}

// keyByName finds a key of the table.
func keyByName(name string) *key {
	for _, k := range keys {
		if k.name == name {
			return k
		}
	}
	return nil
}

// isSection says whether name holds keys.
func isSection(name string) bool {
	for _, k := range keys {
		if strings.HasPrefix(k.name, name+".") {
			return true
		}
	}
	return false
}

// scorers are what orders the nodes that can take a VM.
var scorers = []string{"crs", "spread", "pack"}

func always(string) bool { return true }

func isPEM(text string) bool { return strings.Contains(text, "-----BEGIN ") }
