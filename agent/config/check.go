package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Names as PVE takes them: a node is a host name label, a storage id as in
// pve-storage-id, a token id as in tokenid (pveum).
var (
	nodePattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	hostPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	storagePattern   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]$`)
	userPattern      = regexp.MustCompile(`^[^\s:/!=@]+(@[^\s:/!=@]+)*@[A-Za-z][A-Za-z0-9._-]+$`)
	tableName        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	interfacePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]{0,14}$`)

	tokenPattern = regexp.MustCompile(`^[^\s:/!=]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+$`)
)

// The smallest and largest guest id PVE takes (pve-vmid).
const (
	minVMID = 100
	maxVMID = 999999999
)

// of makes a check of values of one type out of one that the table can hold.
func of[T any](check func(T) error) func(any) error {
	return func(field any) error {
		value, ok := field.(*T)
		if !ok {
			panic(fmt.Sprintf("config: a check of %T for a field of type %T", *new(T), field))
		}
		return check(*value)
	}
}

// optional lets the empty string pass.
func optional(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

// each applies a check to every entry of a list.
func each(check func(string) error) func([]string) error {
	return func(list []string) error {
		for i, s := range list {
			if err := check(s); err != nil {
				return fmt.Errorf("entry %d: %w", i+1, err)
			}
		}
		return nil
	}
}

func matching(pattern *regexp.Regexp, want string) func(string) error {
	return func(s string) error {
		if !pattern.MatchString(s) {
			return fmt.Errorf("expected %s, got %q", want, s)
		}
		return nil
	}
}

var (
	nodeName  = matching(nodePattern, "the name of a PVE node, without a domain")
	hostName  = matching(hostPattern, "a host name or an address")
	storageID = matching(storagePattern, "the id of a PVE storage")
	userName  = matching(userPattern, "name@realm")
	// nodeOrGroup is what a node-selector names. Which of both it is can be told only when all settings are known.
	nodeOrGroup = matching(tableName, "the name of a node or of a group")
)

func tokenID(s string) error {
	if strings.Contains(s, "=") {
		// Do not print it: what follows the "=" is the secret.
		return errors.New("expected user@realm!name alone; the secret belongs in the file of pve.token-secret-file")
	}
	return matching(tokenPattern, "user@realm!name")(s)
}

func identity(s string) error {
	if s == "" || strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("expected a URI, a DNS name or a common name, got %q", s)
	}
	return nil
}

func absolute(s string) error {
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("expected an absolute path, got %q", s)
	}
	return nil
}

func oneOf(words ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(words, s) {
			return fmt.Errorf("expected %s, got %q", alternatives(words), s)
		}
		return nil
	}
}

// alternatives joins "a, b or c".
func alternatives(words []string) string {
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

func between(lo, hi int) func(int) error {
	return func(n int) error {
		if n < lo || n > hi {
			return fmt.Errorf("expected %d to %d, got %d", lo, hi, n)
		}
		return nil
	}
}

func lasting(lo, hi time.Duration) func(time.Duration) error {
	return func(d time.Duration) error {
		if d < lo || d > hi {
			return fmt.Errorf("expected %s to %s, got %s", duration(lo), duration(hi), duration(d))
		}
		return nil
	}
}

func hostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || (host != "" && !isHost(host)) {
		return fmt.Errorf("expected host:port, got %q", s)
	}
	return nil
}

// addrPort is what others can connect to: names are not looked up, and no address stands for all of them.
func addrPort(s string) error {
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 || a.Addr().IsUnspecified() {
		return fmt.Errorf("expected ip:port, got %q", s)
	}
	return nil
}

func isHost(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil || hostPattern.MatchString(s)
}

// isLoopback says whether host can be reached from this machine only. Names
// other than localhost are not looked up: what they mean can change.
func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// endpoint never prints the value: people put passwords into URLs.
func endpoint(s string) error {
	u, err := url.Parse(s)
	if err != nil || !isPlainURL(u) || strings.Trim(u.Path, "/") != "" {
		return errors.New("expected http://127.0.0.1:85 or https://host:port, without user, path or query")
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return fmt.Errorf("http to %s would send the credentials in the clear; use https://%s",
			u.Host, net.JoinHostPort(u.Hostname(), "8006"))
	}
	return nil
}

func webURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || !isPlainURL(u) {
		return errors.New("expected https://host:port, without user or query")
	}
	return nil
}

func isPlainURL(u *url.URL) bool {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "1"), 10, 16)
	return (u.Scheme == "http" || u.Scheme == "https") && isHost(u.Hostname()) && err == nil && port > 0 &&
		u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && u.Opaque == ""
}
