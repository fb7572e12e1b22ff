package pvesim

import (
	"maps"
	"slices"
	"strings"
)

// ACL is what somebody may do: privileges by path ("/", "/vms/100",
// "/storage/local", "/nodes/pve1", "/sdn/zones/localnetwork/vmbr0"). An entry
// counts for all paths below it until a longer one takes its place.
type ACL map[string][]string

// privileges of PVE 9; the older versions differ in the last groups.
var privileges = strings.Fields(`Datastore.Allocate Datastore.AllocateSpace Datastore.AllocateTemplate Datastore.Audit
 Group.Allocate Permissions.Modify Pool.Allocate Pool.Audit Realm.Allocate Realm.AllocateUser SDN.Allocate SDN.Audit
 Sys.Audit Sys.Console Sys.Incoming Sys.Modify Sys.PowerMgmt Sys.Syslog User.Modify VM.Allocate VM.Audit VM.Backup
 VM.Clone VM.Config.CDROM VM.Config.CPU VM.Config.Cloudinit VM.Config.Disk VM.Config.HWType VM.Config.Memory
 VM.Config.Network VM.Config.Options VM.Console VM.Migrate VM.PowerMgmt VM.Snapshot VM.Snapshot.Rollback`)

var (
	privilegesFrom8 = strings.Fields(`Mapping.Audit Mapping.Modify Mapping.Use SDN.Use Sys.AccessNetwork`)
	privilegesTo8   = []string{"VM.Monitor"}
	privilegesFrom9 = strings.Fields(`VM.GuestAgent.Audit VM.GuestAgent.FileRead VM.GuestAgent.FileSystemMgmt
 VM.GuestAgent.FileWrite VM.GuestAgent.Unrestricted VM.Replicate`)
)

// AllPrivileges lists every privilege of a PVE version ("7.4", "8.4", "9.1").
func AllPrivileges(version string) []string {
	out := slices.Clone(privileges)
	if version >= "8" {
		out = append(out, privilegesFrom8...)
	}
	if version < "9" {
		out = append(out, privilegesTo8...)
	} else {
		out = append(out, privilegesFrom9...)
	}
	slices.Sort(out)
	return out
}

// effective returns the privileges on a path: the entry on it or on the
// nearest path above.
func (a ACL) effective(path string) []string {
	for {
		if privs, ok := a[path]; ok {
			return privs
		}
		if path == "/" || path == "" {
			return nil
		}
		path = path[:strings.LastIndexByte(path, '/')]
		if path == "" {
			path = "/"
		}
	}
}

func (a ACL) has(path, priv string) bool { return slices.Contains(a.effective(path), priv) }

// principal is who makes a request.
type principal struct {
	user  string // "virtrigaud@pve"
	token string // "agent", "" for a ticket
	acl   ACL
	pools *pools // of the cluster, whose privileges count for its VMs; nil for none
}

// has says whether a privilege is there on a path: a VM in a pool has what its
// pool has.
func (p principal) has(path, priv string) bool {
	if p.acl.has(path, priv) {
		return true
	}
	vm, ok := strings.CutPrefix(path, "/vms/")
	if !ok || p.pools == nil {
		return false
	}
	pool := p.pools.poolOf(atoi(vm))
	return pool != "" && p.acl.has("/pool/"+pool, priv)
}

// authID is the user as it stands in a UPID: "virtrigaud@pve!agent".
func (p principal) authID() string {
	if p.token == "" {
		return p.user
	}
	return p.user + "!" + p.token
}

// root says whether this is root@pam itself, not a token of it.
func (p principal) root() bool { return p.authID() == "root@pam" }

// check wants every privilege on the path.
func (p principal) check(path string, privs ...string) error {
	if p.root() {
		return nil
	}
	for _, priv := range privs {
		if !p.has(path, priv) {
			return denied(path + ", " + priv)
		}
	}
	return nil
}

// checkAny wants one of the privileges on the path.
func (p principal) checkAny(path string, privs ...string) error {
	if p.root() {
		return nil
	}
	for _, priv := range privs {
		if p.has(path, priv) {
			return nil
		}
	}
	return denied(path + ", " + strings.Join(privs, "|"))
}

func (p principal) may(path string, privs ...string) bool { return p.check(path, privs...) == nil }

// permissionPaths are the paths /access/permissions answers besides those
// with an entry of their own.
var permissionPaths = []string{"/", "/access", "/access/groups", "/mapping", "/nodes", "/pool", "/sdn", "/storage", "/vms"}

// permissions is the answer of /access/permissions.
func (p principal) permissions(only, version string) map[string]map[string]int {
	paths := map[string]bool{}
	if only != "" {
		paths[only] = true
	} else {
		for _, path := range permissionPaths {
			paths[path] = true
		}
		for path := range p.acl {
			paths[path] = true
		}
	}
	out := map[string]map[string]int{}
	for path := range maps.Keys(paths) {
		privs := p.acl.effective(path)
		if p.root() {
			privs = AllPrivileges(version)
		}
		if len(privs) == 0 {
			continue
		}
		out[path] = map[string]int{}
		for _, priv := range privs {
			out[path][priv] = 1
		}
	}
	return out
}
