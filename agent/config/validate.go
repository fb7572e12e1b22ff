package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"unicode"
)

// wrong reports key, with the place it came from.
func (l *loader) wrong(name, format string, args ...any) {
	source := l.c.Sources[name]
	if source == "default" {
		source = ""
	}
	l.fail(&Error{Source: source, Key: name, Err: fmt.Errorf(format, args...)})
}

// crossCheck looks at settings that depend on each other.
func (l *loader) crossCheck() {
	l.checkListen()
	l.checkCredentials()
	l.checkPlacement()
	c := &l.c
	if c.PVE.InsecureSkipVerify && strings.HasPrefix(c.PVE.Endpoint, "https:") {
		l.warn("pve.insecure-skip-verify: anybody between the agent and %s can read the credentials", c.PVE.Endpoint)
	}
	if c.Tasks.PollMin > c.Tasks.PollMax {
		l.wrong("tasks.poll-max", "%s is shorter than tasks.poll-min, %s", duration(c.Tasks.PollMax), duration(c.Tasks.PollMin))
	}
}

func (l *loader) checkListen() {
	listen := &l.c.Listen
	if !listen.Plaintext {
		l.checkCertificates()
		return
	}
	host, _, _ := net.SplitHostPort(listen.GRPC) // hostPort has checked it
	if !isLoopback(host) && !listen.InsecureAnyway {
		l.wrong("listen.plaintext", "others can reach %s: anybody there could delete every VM; use 127.0.0.1, or certificates "+
			"(listen.cert, listen.key, listen.ca), or listen.insecure-anyway: true if something else guards the port", listen.GRPC)
		return
	}
	l.warn("listen.plaintext: whoever reaches %s rules every VM; calls are neither encrypted nor authenticated", listen.GRPC)
}

func (l *loader) checkCertificates() {
	listen := &l.c.Listen
	var missing []string
	for _, f := range []struct{ name, path string }{
		{"listen.cert", listen.Cert}, {"listen.key", listen.Key}, {"listen.ca", listen.CA},
	} {
		if f.path == "" {
			missing = append(missing, f.name)
		}
	}
	switch len(missing) {
	case 0:
	case 3:
		l.wrong("listen.cert", "no certificate: set listen.cert, listen.key and listen.ca "+
			"(how to make them: docs/configuration.md, section Certificates), "+
			"or for a test on this machine listen.plaintext: true and listen.grpc: 127.0.0.1:9443")
	default:
		for _, name := range missing {
			l.wrong(name, "missing: listen.cert, listen.key and listen.ca belong together")
		}
	}
}

// checkCredentials asks for one way to log in. Of two, the token wins: it
// needs no renewal and can be given fewer privileges.
func (l *loader) checkCredentials() {
	p := &l.c.PVE
	secret := l.hasSecret("pve.token-secret-file", p.TokenSecretFile)
	password := l.hasSecret("pve.password-file", p.PasswordFile)
	token := l.both("pve.token-id", p.TokenID != "", "pve.token-secret-file", secret)
	user := l.both("pve.username", p.Username != "", "pve.password-file", password)
	switch {
	case token && user:
		l.warn("pve.token-id and pve.username are both set: the token is used")
	case p.TokenID == "" && p.Username == "" && !secret && !password:
		l.wrong("pve.token-id", "no credentials for the PVE API: make a token "+
			"(pveum user token add USER@REALM NAME, printed once), then set pve.token-id and pve.token-secret-file; "+
			"or set pve.username and pve.password-file")
	}
}

// hasSecret says whether a secret is named, readable or not.
func (l *loader) hasSecret(name, path string) bool {
	_, given := l.contents[name]
	return given || path != ""
}

// both says whether both halves of a log-in are there; one alone is an error.
func (l *loader) both(name string, hasName bool, secret string, hasSecret bool) bool {
	switch {
	case hasName && !hasSecret:
		l.wrong(secret, "missing: %s is set", name)
	case hasSecret && !hasName:
		l.wrong(name, "missing: %s is set", secret)
	}
	return hasName && hasSecret
}

// secrets reads the secret files, unless the environment held the secrets.
func (l *loader) secrets() {
	p := &l.c.PVE
	for _, s := range []struct {
		name, path string
		to         *Secret
	}{
		{"pve.token-secret-file", p.TokenSecretFile, &p.TokenSecret},
		{"pve.password-file", p.PasswordFile, &p.Password},
	} {
		text, given := l.contents[s.name]
		if !given && s.path == "" {
			continue
		}
		value, err := oneLine(text)
		if !given {
			value, err = l.secretFile(s.name, s.path)
		}
		if err != nil {
			l.wrong(s.name, "%w", err)
			continue
		}
		*s.to = NewSecret(value)
	}
}

// secretFile reads the secret in path. Others must not be able to read it. The
// cluster file system sets its modes itself (0640 root:www-data, 0600 below
// priv/), so there it is a warning.
func (l *loader) secretFile(name, path string) (string, error) {
	data, info, err := readFile(path)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		if !within(path, l.c.Paths.PMXCFS) {
			return "", fmt.Errorf("others can read %s (mode %04o): chmod 600 it", path, info.Mode().Perm())
		}
		l.warn("%s: others can read %s (mode %04o): move it below %s", name, path, info.Mode().Perm(),
			filepath.Join(l.c.Paths.PMXCFS, "priv"))
	}
	value, err := oneLine(string(data))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return value, nil
}

// within says whether path lies below dir, by its name.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(os.PathSeparator))
}

// oneLine takes one line and drops its end. The errors do not show it.
func oneLine(text string) (string, error) {
	text = strings.TrimRight(text, "\r\n")
	switch {
	case text == "":
		return "", errors.New("empty")
	case strings.ContainsFunc(text, unicode.IsControl):
		return "", errors.New("expected one line of text")
	}
	return text, nil
}
