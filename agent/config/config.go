// Package config turns files, environment and flags into one valid, typed
// [Config]. Unknown keys, wrong types and values out of range are errors that
// name the file, the line and the key; nothing is guessed.
//
// The keys are one table (keys.go): the parser, the flags, the environment,
// [Config.Dump] and docs/configuration.md all read it.
package config

import (
	"fmt"
	"log/slog"
	"time"
)

// Config is everything the agent is told from outside. [Load] returns it
// complete and checked; nobody else sets defaults.
type Config struct {
	// Node is the name of this node as PVE knows it (a directory name in
	// <pmxcfs>/nodes). Default: the host name up to the first dot.
	Node string
	// Listen is where and how the provider service is served.
	Listen Listen
	// Gossip is how the agents of the cluster find and tell each other.
	Gossip Gossip
	// Socket is the unix socket of the node service, for commands on this
	// node. Empty: none.
	Socket string
	// Metrics is the host:port of /healthz, /readyz and /metrics (plain HTTP).
	Metrics string
	// StateDir is the directory of the operation journal.
	StateDir string
	// Log says how much is logged and in which form.
	Log Log
	// PVE is the local PVE API and who we are there.
	PVE PVE
	// Paths are the places PVE keeps its files in.
	Paths Paths
	// Watch is how often <pmxcfs>/.version is read.
	Watch time.Duration
	// VMIDRange holds the ids given to VMs we make.
	VMIDRange VMIDRange
	// SyncWait is how long an RPC waits for its operation before it answers
	// with a task.
	SyncWait time.Duration
	// SyncWaitsPerClient is how many RPCs of one client may wait so at once;
	// the next ones get their task immediately.
	SyncWaitsPerClient int
	// DeleteForeign allows Delete of VMs that we did not make.
	DeleteForeign bool
	// ConsoleURL is the base of the PVE GUI in console links, without a
	// trailing slash. Empty: https://<this node's address in .members>:8006.
	ConsoleURL string
	// SnippetsStorage is the storage for cloud-init snippets. Empty: the first
	// enabled storage with content type snippets.
	SnippetsStorage string
	// Bridges are the bridges that names of networks stand for, beside the
	// built-in ones; names are in lower case.
	Bridges Names
	// StorageClasses say where disks of a type go ("storage") and with which
	// drive options, by the type's name.
	StorageClasses Classes
	// NodeSelector names the nodes, or groups of them, for new VMs: preferred
	// ones, or the only ones if Placement.SelectorRequired. Empty: all.
	NodeSelector []string
	// Placement says on which node a new VM is made.
	Placement Placement
	// Tasks says how PVE tasks are awaited.
	Tasks Tasks

	// PrintConfig is --print-config: the caller prints Dump and exits.
	PrintConfig bool
	// Warnings are settings that work but deserve a line in the log at each
	// start. They hold no secrets.
	Warnings []string
	// Sources says where the value of each key came from: "default",
	// "--flag", "env NAME" or "file:line".
	Sources map[string]string
}

// Listen is where and how the provider service is served.
type Listen struct {
	// GRPC is the host:port of the service; an empty host means all addresses.
	GRPC string
	// Advertise is the ip:port under which other agents reach GRPC. Empty: this
	// node's address in .members, with the port of GRPC.
	Advertise string
	// Cert, Key and CA are PEM files: this server's certificate chain, its
	// private key, and the CAs whose client certificates are accepted.
	Cert, Key, CA string
	// AllowedSANs are the client identities accepted (URI SAN, DNS SAN or CN,
	// exact match). Empty: every certificate of the CA.
	AllowedSANs []string
	// Plaintext serves without TLS; on loopback only, unless InsecureAnyway.
	Plaintext bool
	// InsecureAnyway allows Plaintext on an address others can reach.
	InsecureAnyway bool
}

// Gossip is how the agents of the cluster find and tell each other.
type Gossip struct {
	// Bind is the host:port (TCP and UDP); an empty host means this node's
	// address in .members.
	Bind string
	// Advertise is the ip:port under which others reach Bind. Empty: as Bind.
	Advertise string
	// Join holds the ip:port of agents to join. Empty: the online nodes of
	// .members, with the port of Bind.
	Join []string
	// KeyFile holds the keys. Load sets it to priv/pve-rigaud/gossip.key below
	// Paths.PMXCFS if nothing else is said.
	KeyFile string
}

// Log says how much is logged and in which form.
type Log struct {
	// Level is the lowest level that is written.
	Level slog.Level
	// Format is "text", "json" or "journal" (native protocol of journald).
	Format string
}

// PVE is the local PVE API and who we are there.
type PVE struct {
	// Endpoint is scheme://host:port of the API, without a path: pvedaemon
	// (http, loopback only) or pveproxy (https).
	Endpoint string
	// TokenID is "user@realm!name"; with TokenSecret it is used for every call.
	TokenID     string
	TokenSecret Secret
	// Username is "user@realm"; with Password it is used if there is no token.
	Username string
	Password Secret
	// TokenSecretFile and PasswordFile are where the secrets were read from,
	// once, by Load. Empty if they came from the environment.
	TokenSecretFile, PasswordFile string
	// CABundle is the PEM file that verifies an https endpoint.
	CABundle string
	// CABundlePEM is the bundle itself, if PVE_CA_BUNDLE held PEM text instead
	// of a path; CABundle is empty then.
	CABundlePEM string
	// InsecureSkipVerify turns the verification off.
	InsecureSkipVerify bool
	// ServerName is the name verified in the endpoint's certificate, if it is
	// not the host of Endpoint.
	ServerName string
	// Workers is the number of worker processes of pvedaemon or pveproxy on
	// this node; one fewer of our calls are in flight at once.
	Workers int
	// CallTimeout is the deadline of one API call.
	CallTimeout time.Duration
}

// Paths are the places PVE keeps its files in (absolute).
type Paths struct {
	// PMXCFS is the mount point of the cluster file system.
	PMXCFS string
	// Run holds <vmid>.pid, <vmid>.qmp and <vmid>.qga of running VMs.
	Run string
	// Lock holds PVE's lock-<vmid>.conf files.
	Lock string
	// Proc and Sys are where the kernel tells of the host's memory, CPUs, load
	// and network devices. Processes are always looked for in /proc.
	Proc, Sys string
}

// Tasks says how PVE tasks are awaited: looked at once, then after PollMin,
// with growing pauses up to PollMax.
type Tasks struct {
	PollMin, PollMax time.Duration
	// Timeout is how long one task may take.
	Timeout time.Duration
}

// VMIDRange is a range of VM ids, both ends included.
type VMIDRange struct{ Min, Max int }

// String gives the form of the configuration file, "10000-999999".
func (r VMIDRange) String() string { return fmt.Sprintf("%d-%d", r.Min, r.Max) }

// Contains says whether id lies in the range.
func (r VMIDRange) Contains(id int) bool { return r.Min <= id && id <= r.Max }
