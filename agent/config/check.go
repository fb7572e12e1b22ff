package config

import (
	"cmp"
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
	nodePattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	hostPattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	storagePattern = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]$`)
	userPattern    = regexp.MustCompile(`^[^\s:/!=@]+(@[^\s:/!=@]+)*@[A-Za-z][A-Za-z0-9._-]+$`)
	tokenPattern   = regexp.MustCompile(`^[^\s:/!=]+@[A-Za-z][A-Za-z0-9._-]+![A-Za-z][A-Za-z0-9._-]+$`)
)

// The smallest and largest guest id PVE takes (pve-vmid).
const (
	minVMID = 100
	maxVMID = 999999999
)

// optional lets the empty string pass.
func optional(check func(any) error) func(any) error {
	return func(v any) error {
		if *v.(*string) == "" {
			return nil
		}
		return check(v)
	}
}

// each applies a check of strings to every entry of a list.
func each(check func(any) error) func(any) error {
	return func(v any) error {
		for i, s := range *v.(*[]string) {
			if err := check(&s); err != nil {
				return fmt.Errorf("entry %d: %w", i+1, err)
			}
		}
		return nil
	}
}

func matching(v any, pattern *regexp.Regexp, want string) error {
	if s := *v.(*string); !pattern.MatchString(s) {
		return fmt.Errorf("expected %s, got %q", want, s)
	}
	return nil
}

func nodeName(v any) error {
	return matching(v, nodePattern, "the name of a PVE node, without a domain")
}
func hostName(v any) error  { return matching(v, hostPattern, "a host name or an address") }
func storageID(v any) error { return matching(v, storagePattern, "the id of a PVE storage") }
func userName(v any) error  { return matching(v, userPattern, "name@realm") }

func tokenID(v any) error {
	s := *v.(*string)
	if strings.Contains(s, "=") {
		// Do not print it: what follows the "=" is the secret.
		return fmt.Errorf("expected user@realm!name alone; the secret belongs in the file of pve.token-secret-file")
	}
	return matching(v, tokenPattern, "user@realm!name")
}

func identity(v any) error {
	s := *v.(*string)
	if s == "" || strings.TrimSpace(s) != s || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("expected a URI, a DNS name or a common name, got %q", s)
	}
	return nil
}

func absolute(v any) error {
	s := *v.(*string)
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("expected an absolute path, got %q", s)
	}
	return nil
}

func oneOf(words ...string) func(any) error {
	return func(v any) error {
		if s := *v.(*string); !slices.Contains(words, s) {
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

func between(lo, hi int) func(any) error {
	return func(v any) error {
		if n := *v.(*int); n < lo || n > hi {
			return fmt.Errorf("expected %d to %d, got %d", lo, hi, n)
		}
		return nil
	}
}

func lasting(lo, hi time.Duration) func(any) error {
	return func(v any) error {
		if d := *v.(*time.Duration); d < lo || d > hi {
			return fmt.Errorf("expected %s to %s, got %s", duration(lo), duration(hi), duration(d))
		}
		return nil
	}
}

func hostPort(v any) error {
	s := *v.(*string)
	host, port, err := net.SplitHostPort(s)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil || (host != "" && !isHost(host)) {
		return fmt.Errorf("expected host:port, got %q", s)
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
func endpoint(v any) error {
	const want = "expected http://127.0.0.1:85 or https://host:port, without user, path or query"
	u, err := url.Parse(*v.(*string))
	if err != nil || !isPlainURL(u) || strings.Trim(u.Path, "/") != "" {
		return fmt.Errorf(want)
	}
	if u.Scheme == "http" && !isLoopback(u.Hostname()) {
		return fmt.Errorf("http to %s would send the credentials in the clear; use https://%s:8006", u.Host, u.Hostname())
	}
	return nil
}

func webURL(v any) error {
	u, err := url.Parse(*v.(*string))
	if err != nil || !isPlainURL(u) {
		return fmt.Errorf("expected https://host:port, without user or query")
	}
	return nil
}

func isPlainURL(u *url.URL) bool {
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "1"), 10, 16)
	return (u.Scheme == "http" || u.Scheme == "https") && isHost(u.Hostname()) && err == nil && port > 0 &&
		u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && u.Opaque == ""
}
