package pve

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"regexp"
	"strings"
)

// Kind is what happened, in a word that can be logged and counted.
type Kind string

// The kinds. They are recognised by PVE's own words, in answers as in the ends of tasks.
const (
	KindNone           Kind = ""                // no error
	KindOther          Kind = "other"           // something PVE said that is not in the table
	KindNoSuchVM       Kind = "no-such-vm"      // no config file of that VM on that node: it may be on another one
	KindNoNode         Kind = "no-node"         // the cluster has no such node, or pvedaemon (:85) was asked about another one
	KindLocked         Kind = "locked"          // the VM's config carries a lock (backup, migrate, clone, ...)
	KindLockTimeout    Kind = "lock-timeout"    // PVE could not get a lock in time: nothing was done, see RetryLocked
	KindPermission     Kind = "permission"      // see PermissionDetail
	KindAuth           Kind = "auth"            // PVE does not accept our token or password
	KindTLS            Kind = "tls"             // the server's certificate is not the one we trust
	KindExists         Kind = "exists"          // a VM, a snapshot or a volume of that id or name exists
	KindAlreadyRunning Kind = "already-running" // the VM runs, and should not for this
	KindNotRunning     Kind = "not-running"     // the VM does not run, and should for this
	KindGuestTimeout   Kind = "guest-timeout"   // the guest did not shut down in the time given
	KindNoAgent        Kind = "no-agent"        // no guest agent configured, or it does not answer
	KindProtected      Kind = "protected"       // the VM's config says protection: 1
	KindTemplate       Kind = "template"        // not possible with a template
	KindTemplateInUse  Kind = "template-in-use" // linked clones need this template's disk
	KindNoLinkedClone  Kind = "no-linked-clone" // the source is no template, or its storage cannot do it
	KindLocalStorage   Kind = "local-storage"   // another node cannot see the VM's disks
	KindNoStorage      Kind = "no-storage"      // no such storage, or not for this node, or disabled
	KindNoSpace        Kind = "no-space"        // the storage is full
	KindNoVolume       Kind = "no-volume"       // no such volume or disk
	KindNoSnapshot     Kind = "no-snapshot"     // no such snapshot
	KindNoSnapshots    Kind = "no-snapshots"    // a disk is where no snapshot can be taken
	KindNotNewest      Kind = "not-newest"      // the storage goes back to the newest snapshot only
	KindNoBridge       Kind = "no-bridge"       // no such network bridge on the node
	KindTooManyCPUs    Kind = "too-many-cpus"   // more vCPUs than the node has CPUs
	KindDigest         Kind = "digest"          // the config has changed since its digest was read
	KindNoQuorum       Kind = "no-quorum"       // /etc/pve is not writable on that node
	KindParameter      Kind = "parameter"       // PVE does not accept a parameter; Error.Params says which
	KindNoTask         Kind = "no-task"         // the node has no such task (any more)
	KindNoMethod       Kind = "no-method"       // this version of PVE has no such call
	KindUnreachable    Kind = "unreachable"     // no connection, or it broke, or PVE cannot reach the node
	KindTimeout        Kind = "timeout"         // our deadline passed; see Uncertain
	KindCanceled       Kind = "canceled"        // our caller gave up
)

// statusNoConnection is the first of the statuses (595 to 599) by which pveproxy says that it has no answer of the
// node it passed the request to: no connection, connection broken, body broken.
const statusNoConnection = 595

// pattern is a text of PVE and what it means.
type pattern struct {
	kind Kind
	text *regexp.Regexp
}

// texts are recognised in messages of status 500 and in the ends of tasks, first match first. Many come wrapped in
// others ("clone failed: ..."), so most are not anchored. Those marked with a call were recorded from it, the others
// are raised by the named module of PVE.
var texts = []pattern{
	{KindLockTimeout, re(`can't lock file '[^']*' - got timeout`)},                                // any change of a VM
	{KindLockTimeout, re(`cfs[- ]lock '[^']*'( error)?: got lock request timeout`)},               // PVE::Cluster, storages
	{KindNoQuorum, re(`no quorum|cluster filesystem not online`)},                                 // PVE::Cluster
	{KindNoQuorum, re(`unable to (open|create) file '/etc/pve/[^']*' - Permission denied`)},       // PUT config
	{KindPermission, re(`^Permission check failed|only root can |Only root may `)},                // PUT config
	{KindNoSuchVM, re(`Configuration file '[^']*' does not exist`)},                               // every call
	{KindNoSuchVM, re(`unable to find configuration file for VM \d+`)},                            // PVE::QemuConfig
	{KindNoNode, re(`^hostname lookup '[^']*' failed|no such cluster node '|^proxy not allowed`)}, // every call
	{KindLocked, re(`VM is locked( \(|$)`)},                                                       // PUT config, clone
	{KindExists, re(`config file already exists|(VM|CT) \d+ already exists on node '`)},           // clone, create
	{KindExists, re(`atomic file '[^']*\.conf' failed: File exists`)},                             // clone: another node has that number
	{KindExists, re(`snapshot name '[^']*' already used|disk image '[^']*' already exists`)},      // snapshot
	{KindTemplateInUse, re(`base volume '[^']*' is still in use by linked clone`)},                // delete
	{KindProtected, re(`protection mode enabled`)},                                                // PVE::AbstractConfig
	{KindNoLinkedClone, re(`Linked clone feature is not supported for '`)},                        // clone
	{KindLocalStorage, re(`can't clone VM to node '[^']*' \(VM uses local storage\)`)},            // clone
	{KindTemplate, re(`if it's a template|VM \d+ is a template|convert a template`)},              // start; PVE::API2::Qemu
	{KindAlreadyRunning, re(`VM \d+ already running|VM \d+ is running - destroy failed`)},         // start, delete
	{KindNotRunning, re(`VM \d+ (is )?not running`)},                                              // agent, reboot
	{KindGuestTimeout, re(`VM quit/powerdown failed`)},                                            // shutdown
	{KindNoAgent, re(`QEMU guest agent is not running|No QEMU guest agent configured`)},           // agent
	{KindNoStorage, re(`storage '[^']*' (does not exist|is not available on node|is disabled)`)},
	{KindNoSpace, re(`(?i)no space left on device|(not enough|insufficient) free space|out of space|disk quota exceeded`)},
	{KindNoSnapshot, re(`snapshot '[^']*' does not exist`)},                                                                             // delete a snapshot
	{KindNoSnapshots, re(`snapshot feature is not available`)},                                                                          // PVE::AbstractConfig
	{KindNotNewest, re(`is not most recent snapshot on '`)},                                                                             // PVE::Storage, of ZFS, LVM and volume chains
	{KindNoVolume, re(`volume '?[^ ']+'? does not exist|[dD]isk '[^']*' (for VM '\d+' )?does not exist|Failed to find logical volume`)}, // PUT config, resize
	{KindNoBridge, re(`bridge '[^']*' does not exist`)},                                                                                 // start
	{KindTooManyCPUs, re(`MAX \d+ vcpus allowed per VM on this node`)},                                                                  // start
	{KindDigest, re(`checksum mismatch \(file change|detected modified configuration`)},                                                 // PUT config
	{KindNoTask, re(`^no such task`)},
	{KindParameter, re(`shrinking disks is not supported|^parameter '[^']*' not allowed|can't move to the same storage`)}, // resize, clone, move_disk
	{KindParameter, re(`data too large`)},                                                                                 // PVE::APIServer: 64 KiB of form
}

// paramTexts are recognised in the values of Error.Params. They are anchored: those texts quote what the caller sent.
var paramTexts = []pattern{
	{KindNoTask, re(`^no such task`)},
	{KindExists, re(`^(VM|CT) \d+ already exists`)},
	{KindPermission, re(`^[Oo]nly root `)},
}

func re(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// KindOf says what happened. It is KindNone for nil, and KindOther for errors that do not come from this package.
func KindOf(err error) Kind {
	if err == nil {
		return KindNone
	}
	if task, ok := errors.AsType[*TaskError](err); ok {
		return kindOfText(task.ExitStatus)
	}
	if said, ok := errors.AsType[*Error](err); ok {
		return kindOfAnswer(said)
	}
	return kindOfTransport(err)
}

func kindOfAnswer(e *Error) Kind {
	switch {
	case e.Status == http.StatusUnauthorized:
		return KindAuth
	case e.Status == http.StatusForbidden:
		return KindPermission
	case e.Status == http.StatusNotImplemented && strings.HasPrefix(e.Message, "Method '"):
		return KindNoMethod
	case e.Status >= statusNoConnection && e.Status <= 599,
		e.Status >= http.StatusBadGateway && e.Status <= http.StatusGatewayTimeout:
		return KindUnreachable
	case e.Status == http.StatusBadRequest:
		return kindOfParams(e.Params)
	}
	return kindOfText(e.Message)
}

func kindOfParams(params map[string]string) Kind {
	for _, p := range paramTexts {
		for _, text := range params {
			if p.text.MatchString(text) {
				return p.kind
			}
		}
	}
	return KindParameter
}

func kindOfText(s string) Kind {
	for _, p := range texts {
		if p.text.MatchString(s) {
			return p.kind
		}
	}
	return KindOther
}

// kindOfTransport judges errors of the network and of contexts.
func kindOfTransport(err error) Kind {
	_, transport := errors.AsType[*TransportError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return KindCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return KindTimeout
	case isTLS(err):
		return KindTLS
	case transport:
		return KindUnreachable
	}
	return KindOther
}

func isTLS(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err) // the other side speaks plain http
	return ok
}
