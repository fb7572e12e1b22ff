package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Load builds the configuration. What weighs more stands first:
//
//  1. flags (args, without the program's name)
//  2. the documented environment variables (env, such as os.LookupEnv; nil
//     for none); an empty variable counts as unset
//  3. the local file: --config, else DefaultFile, which may be missing
//  4. pve-rigaud.yaml in the cluster file system (paths.pmxcfs), which may be
//     missing if the file system is mounted; only keys that make sense on all
//     nodes are accepted there
//  5. the defaults
//
// A wrong setting is an error even where another source outweighs it. All of
// them are found at once and joined, each as an [*Error]; none holds a secret.
// Secret files are read here, once. Flags that cannot be parsed are reported
// alone; with -h or --help that error wraps pflag.ErrHelp.
func Load(args []string, env func(string) (string, bool)) (Config, error) {
	a, err := parseArguments(args)
	if err != nil {
		return Config{}, err
	}
	local := readLocal(a)
	cluster := &file{}
	if root, known := pmxcfsRoot(a, local); known {
		cluster = readCluster(root, a.file)
	}

	l := &loader{
		c:        Config{PrintConfig: a.printConfig, Sources: map[string]string{}},
		errs:     slices.Concat(local.errs, cluster.errs),
		contents: map[string]string{},
	}
	for _, layer := range [][]setting{defaults(), cluster.settings, local.settings, environment(env), a.settings} {
		for _, s := range layer {
			l.apply(s)
		}
	}
	// What is missing, or does not go together, can be told only of settings
	// that could all be read.
	if len(l.errs) == 0 {
		l.derive()
		l.secrets()
		l.crossCheck()
	}
	if len(l.errs) > 0 {
		return Config{}, errors.Join(l.errs...)
	}
	return l.c, nil
}

// A loader puts settings together, the weightiest last.
type loader struct {
	c    Config
	errs []error
	// contents holds, by key, what the environment gave in place of a file.
	contents map[string]string
}

func (l *loader) fail(err error) { l.errs = append(l.errs, err) }

func (l *loader) warn(format string, args ...any) {
	l.c.Warnings = append(l.c.Warnings, fmt.Sprintf(format, args...))
}

// apply takes one setting. It outweighs what was there before.
func (l *loader) apply(s setting) {
	l.c.Sources[s.key.name] = s.source
	delete(l.contents, s.key.name)
	if s.env && s.key.contents != nil && s.key.contents(s.texts[0]) {
		l.contents[s.key.name] = s.texts[0]
		s.texts = []string{""} // there is no file
	}
	if err := s.apply(&l.c); err != nil {
		l.fail(err)
	}
}

// defaults gives every key its default.
func defaults() []setting {
	var settings []setting
	for _, k := range keys {
		s := setting{key: k, source: "default", texts: []string{k.def}}
		switch k.field(new(Config)).(type) {
		case *[]string, table:
			s.texts = nil
		}
		settings = append(settings, s)
	}
	return settings
}

// derive fills what depends on other settings or on the machine.
func (l *loader) derive() {
	c := &l.c
	c.PVE.CABundlePEM = l.contents["pve.ca-bundle"]
	if c.PVE.CABundlePEM != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(c.PVE.CABundlePEM)) {
		l.wrong("pve.ca-bundle", "the PEM text holds no certificate")
	}
	if c.PVE.CABundle == "" && c.PVE.CABundlePEM == "" {
		c.PVE.CABundle = filepath.Join(c.Paths.PMXCFS, "pve-root-ca.pem")
	}
	if c.Gossip.KeyFile == "" {
		c.Gossip.KeyFile = filepath.Join(c.Paths.PMXCFS, "priv", "pve-rigaud", "gossip.key")
	}
	c.ConsoleURL = strings.TrimRight(c.ConsoleURL, "/")
	c.PVE.Endpoint = strings.TrimRight(c.PVE.Endpoint, "/")
	if c.Node != "" {
		return
	}
	host, err := os.Hostname()
	if err != nil {
		l.fail(&Error{Key: "node", Err: fmt.Errorf("not set, and the host name is unknown: %w", err)})
		return
	}
	// PVE calls a node by its host name up to the first dot.
	c.Node, _, _ = strings.Cut(host, ".")
	c.Sources["node"] = "host name"
	if nodeName(c.Node) != nil {
		l.fail(&Error{Key: "node", Err: fmt.Errorf("not set, and the host name %q is no name of a PVE node", host)})
	}
}

// readLocal reads the local file. Only the default one may be missing.
func readLocal(a *arguments) *file {
	data, _, err := readFile(a.file)
	if errors.Is(err, fs.ErrNotExist) && !a.fileGiven {
		return &file{path: a.file}
	}
	if err != nil {
		return &file{path: a.file, errs: []error{&Error{Source: a.file, Err: err}}}
	}
	return parseFile(a.file, data)
}

// pmxcfsRoot finds paths.pmxcfs before everything else is put together,
// because the cluster file stands there. It is not known if the local file has
// errors and may have meant to name it.
func pmxcfsRoot(a *arguments, local *file) (string, bool) {
	for _, layer := range [][]setting{a.settings, local.settings} {
		for _, s := range layer {
			if s.key.name == "paths.pmxcfs" {
				return s.texts[0], absolute(s.texts[0]) == nil
			}
		}
	}
	return keyByName("paths.pmxcfs").def, len(local.errs) == 0
}

// ErrNotMounted says that /etc/pve is not there yet: nothing is wrong with the
// configuration, and a later Load may succeed.
var ErrNotMounted = errors.New("the cluster file system is not mounted")

// readCluster reads the file that all nodes share. That it is missing counts
// only where pmxcfs is mounted (.version is there): else "delete-foreign:
// false" would be forgotten after a boot at which pmxcfs did not come up.
func readCluster(root, localPath string) *file {
	path := filepath.Join(root, clusterFileName)
	data, _, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		f := &file{path: path}
		if _, err := os.Stat(filepath.Join(root, ".version")); err != nil {
			f.errs = []error{&Error{Source: root, Err: fmt.Errorf(
				"%w, so the settings that all nodes share are unknown; see systemctl status pve-cluster: %w", ErrNotMounted, reason(err))}}
		}
		return f
	}
	if err != nil {
		return &file{path: path, errs: []error{&Error{Source: path, Err: err}}}
	}
	f := parseFile(path, data)
	f.onlyClusterKeys(localPath)
	return f
}

// onlyClusterKeys refuses the keys that belong to one node.
func (f *file) onlyClusterKeys(localPath string) {
	var kept []setting
	for _, s := range f.settings {
		if s.key.cluster {
			kept = append(kept, s)
			continue
		}
		f.errs = append(f.errs, &Error{
			Source: s.source, Key: s.key.name,
			Err: fmt.Errorf("belongs to one node, so it cannot stand in the file of all nodes; set it in %s", localPath),
		})
	}
	f.settings = kept
}
