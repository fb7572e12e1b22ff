package pve

import (
	"net/url"
	"strconv"
	"strings"
	"time"
)

const upperHex = "0123456789ABCDEF"

// EncodeSSHKeys writes public keys, one per line, as the value of PVE's `sshkeys`: percent-encoded as
// encodeURIComponent does it (a blank is %20, never +). The form then encodes it a second time, as PVE expects.
func EncodeSSHKeys(keys string) string {
	var b strings.Builder
	for i := range len(keys) {
		c := keys[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.!~*'()", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(upperHex[c>>4])
		b.WriteByte(upperHex[c&15])
	}
	return b.String()
}

// nodePath is the path of something on a node; each part is escaped, so that no name can leave its place.
func nodePath(node string, parts ...string) string {
	var b strings.Builder
	b.WriteString("/nodes/")
	b.WriteString(url.PathEscape(node))
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(p))
	}
	return b.String()
}

// vmPath is the path of a VM of a node, or of something below it.
func vmPath(node string, vmid int, below string) string {
	return nodePath(node, "qemu", strconv.Itoa(vmid)) + below
}

// setText sets a parameter unless its value is empty.
func setText(v url.Values, key, value string) {
	if value != "" {
		v.Set(key, value)
	}
}

// setInt sets a parameter unless its value is 0.
func setInt(v url.Values, key string, n int) {
	if n != 0 {
		v.Set(key, strconv.Itoa(n))
	}
}

// setSeconds sets a duration in whole seconds, rounded up, unless it is 0.
func setSeconds(v url.Values, key string, d time.Duration) {
	if d > 0 {
		v.Set(key, strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10))
	}
}

func flag(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

// idAfter says which path element follows a collection, for PathTemplate.
var idAfter = map[string]string{
	"nodes": "{node}", "qemu": "{vmid}", "lxc": "{vmid}", "storage": "{storage}", "content": "{volume}",
	"tasks": "{upid}", "snapshot": "{snapname}",
}

// PathTemplate replaces the ids in a path of the API, so that it can be a metric's label:
// "/nodes/pve1/qemu/100/config" becomes "/nodes/{node}/qemu/{vmid}/config".
func PathTemplate(path string) string {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, p := range parts {
		switch {
		case i > 1 && parts[i-2] == "capabilities": // of the node's QEMU, not of a VM
		case i > 0 && idAfter[parts[i-1]] != "":
			parts[i] = idAfter[parts[i-1]]
			if parts[i] == "{volume}" { // a volume id holds slashes
				return "/" + strings.Join(parts[:i+1], "/")
			}
		case strings.Trim(p, "abcdefghijklmnopqrstuvwxyz_-") != "":
			parts[i] = "{id}"
		}
	}
	return "/" + strings.Join(parts, "/")
}
