package config

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A site is a machine's files: DIR/config.yaml, DIR/pve (a mounted pmxcfs) and
// DIR/secret (mode 0600).
type site struct {
	t   *testing.T
	dir string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir()}
	s.write("pve/.version", "{}", 0o640)
	s.write("secret", "s3cr3t\n", 0o600)
	return s
}

func (s *site) write(name, text string, mode os.FileMode) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(s.expand(text)), mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask is
		s.t.Fatal(err)
	}
	return path
}

// expand puts the site's directory into a text.
func (s *site) expand(text string) string { return strings.ReplaceAll(text, "DIR", s.dir) }

// working is a local file without any error.
const working = `
node: pve1
listen: {grpc: "127.0.0.1:9443", plaintext: true}
paths: {pmxcfs: DIR/pve}
pve: {token-id: "u@pve!agent", token-secret-file: DIR/secret}
`

// load runs Load on the site; local is the text of config.yaml.
func (s *site) load(local string, env map[string]string, args ...string) (Config, error) {
	s.t.Helper()
	path := s.write("config.yaml", local, 0o644)
	for i := range args {
		args[i] = s.expand(args[i])
	}
	return Load(append([]string{"--config", path}, args...), func(name string) (string, bool) {
		v, ok := env[name]
		return s.expand(v), ok
	})
}

// effective is the Config that working alone gives.
func (s *site) effective() Config {
	c := Config{
		Node:     "pve1",
		Listen:   Listen{GRPC: "127.0.0.1:9443", Plaintext: true},
		Gossip:   Gossip{Bind: ":7946", KeyFile: "DIR/pve/priv/pve-rigaud/gossip.key"},
		Socket:   "/run/pve-rigaud/agent.sock",
		Metrics:  "127.0.0.1:9444",
		StateDir: "/var/lib/pve-rigaud",
		Log:      Log{Level: slog.LevelInfo, Format: "text"},
		PVE: PVE{
			Endpoint: "http://127.0.0.1:85", TokenID: "u@pve!agent", TokenSecret: NewSecret("s3cr3t"),
			TokenSecretFile: "DIR/secret", CABundle: "DIR/pve/pve-root-ca.pem", Workers: 3, CallTimeout: 30 * time.Second,
		},
		Paths:              Paths{PMXCFS: "DIR/pve", Run: "/var/run/qemu-server", Lock: "/var/lock/qemu-server", Proc: "/proc", Sys: "/sys"},
		Watch:              time.Second,
		VMIDRange:          VMIDRange{Min: 10000, Max: 999999},
		SyncWait:           2 * time.Second,
		SyncWaitsPerClient: 3,
		DeleteForeign:      true,
		Placement:          Placement{Scorer: "crs", MemoryOvercommit: 1, MemoryReserve: 1 << 30, ImageReplicas: 1},
		Tasks:              Tasks{PollMin: 20 * time.Millisecond, PollMax: 500 * time.Millisecond, Timeout: 6 * time.Hour},
	}
	for _, p := range []*string{&c.PVE.TokenSecretFile, &c.PVE.CABundle, &c.Paths.PMXCFS, &c.Gossip.KeyFile} {
		*p = s.expand(*p)
	}
	return c
}

var compare = cmp.Options{
	cmp.AllowUnexported(Secret{}),
	cmpopts.IgnoreFields(Config{}, "Sources", "Warnings"),
	cmpopts.EquateEmpty(),
}

func TestDefaults(t *testing.T) {
	s := newSite(t)
	got, err := s.load(working, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.effective(), got, compare); diff != "" {
		t.Error(diff)
	}
}

// Every source of every key, and who outweighs whom.
func TestPrecedence(t *testing.T) {
	const cluster = `
log: {level: error}
vmid-range: 300-400
sync-wait: 3s
node-selector: [c1]
delete-foreign: false
`
	tests := []struct {
		name   string
		local  string
		env    map[string]string
		args   []string
		change func(*Config)
		source map[string]string
	}{
		{
			name: "cluster file over defaults",
			source: map[string]string{
				"vmid-range": "DIR/pve/pve-rigaud.yaml:3", "watch": "default", "node": "DIR/config.yaml:2",
				"pve.ca-bundle": "default",
			},
		},
		{
			name: "local file over cluster file", local: "vmid-range: 500-600\nnode-selector: [l1, l2]\ndelete-foreign: true\n",
			change: func(c *Config) {
				c.VMIDRange, c.NodeSelector, c.DeleteForeign = VMIDRange{500, 600}, []string{"l1", "l2"}, true
			},
			source: map[string]string{"vmid-range": "DIR/config.yaml:6", "log.level": "DIR/pve/pve-rigaud.yaml:2"},
		},
		{
			name: "an empty list outweighs too", local: "node-selector: []\n",
			change: func(c *Config) { c.NodeSelector = nil },
		},
		{
			name: "environment over files", local: "node-selector: [l1]\n",
			env:    map[string]string{"LOG_LEVEL": "DEBUG", "PVE_NODE_SELECTOR": " e1, e2,,"},
			change: func(c *Config) { c.Log.Level, c.NodeSelector = slog.LevelDebug, []string{"e1", "e2"} },
			source: map[string]string{"log.level": "env LOG_LEVEL"},
		},
		{
			name: "an empty variable is unset", env: map[string]string{"LOG_LEVEL": "", "PVE_NODE_SELECTOR": ""},
		},
		{
			name: "flags over all", local: "node-selector: [l1]\n",
			env: map[string]string{"LOG_LEVEL": "debug", "PVE_NODE_SELECTOR": "e1"},
			args: []string{
				"--log-level=warn", "--node-selector", "f1,f2", "--node-selector=f3", "--vmid-range=700-800", "--vmid-range=900-1000",
				"--delete-foreign", "--sync-wait", "0s",
			},
			change: func(c *Config) {
				c.Log.Level, c.NodeSelector, c.VMIDRange = slog.LevelWarn, []string{"f1", "f2", "f3"}, VMIDRange{900, 1000}
				c.DeleteForeign, c.SyncWait = true, 0
			},
			source: map[string]string{"log.level": "--log-level", "node-selector": "--node-selector"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.write("pve/pve-rigaud.yaml", cluster, 0o640)
			got, err := s.load(working+tt.local, tt.env, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			want := s.effective()
			want.Log.Level, want.VMIDRange, want.SyncWait = slog.LevelError, VMIDRange{300, 400}, 3*time.Second
			want.NodeSelector, want.DeleteForeign = []string{"c1"}, false
			if tt.change != nil {
				tt.change(&want)
			}
			if diff := cmp.Diff(want, got, compare); diff != "" {
				t.Error(diff)
			}
			for name, source := range tt.source {
				if got.Sources[name] != s.expand(source) {
					t.Errorf("source of %s: %q, want %q", name, got.Sources[name], s.expand(source))
				}
			}
		})
	}
}

// otherTexts holds, for every key, a value that is not its default.
var otherTexts = map[string]string{
	"node": "pve7", "listen.grpc": "[::1]:1", "listen.cert": "/c", "listen.key": "/k", "listen.ca": "/a",
	"listen.allowed-sans": "spiffe://a/b,manager", "listen.plaintext": "true", "listen.insecure-anyway": "true",
	"listen.advertise": "192.0.2.1:9443", "gossip.bind": "192.0.2.1:1", "gossip.advertise": "[2001:db8::1]:7946",
	"gossip.join": "192.0.2.2:7946,192.0.2.3:7946", "gossip.key-file": "DIR/gossip", "socket": "/s.sock", "metrics": "localhost:0", "state-dir": "/s", "log.level": "warn", "log.format": "journal",
	"pve.endpoint": "https://[::1]:8006", "pve.token-id": "me@pam!x-1", "pve.token-secret-file": "DIR/secret",
	"pve.username": "me@corp.example", "pve.password-file": "DIR/secret", "pve.ca-bundle": "/ca.pem", "pve.server-name": "pve.example.com",
	"pve.insecure-skip-verify": "true", "pve.workers": "8", "pve.call-timeout": "1m30s", "paths.pmxcfs": "DIR/pve", "paths.run": "/r",
	"paths.lock": "/l", "paths.proc": "/p", "paths.sys": "/y", "watch": "250ms", "vmid-range": "100-999999999", "sync-wait": "0s", "sync-waits-per-client": "0",
	"delete-foreign": "false", "console-url": "https://gui.example.com/pve", "snippets-storage": "cephfs", "node-selector": "a,b",
	"bridges": "storage=vmbr3", "storage-classes": "nvme:storage=fast",
	"placement.scorer": "pack", "placement.memory-overcommit": "1.25", "placement.memory-reserve": "512MiB", "placement.node-selector": "required",
	"placement.groups": "fast=pve1", "placement.zones": "a=pve1", "placement.image-replicas": "all", "placement.policies": "db: {max-vms-per-node: 20}",
	"tasks.poll-min": "1ms", "tasks.poll-max": "1m", "tasks.timeout": "168h",
}

// Every key must arrive by its flag, and by its variable if it has one.
func TestEveryFlagAndVariable(t *testing.T) {
	s := newSite(t)
	for _, k := range keys {
		text, ok := otherTexts[k.name]
		if !ok {
			t.Errorf("%s: no value in otherTexts", k.name)
			continue
		}
		// Keys that need each other: a certificate is three files, and a
		// password needs its user.
		args := []string{"--listen-key=/k", "--listen-ca=/a", "--listen-cert=/c", "--pve-username=me@pam", "--pve-password-file=DIR/secret"}
		want := strings.Split(s.expand(text), ",")
		got, err := s.load(working, nil, append(args, "--"+k.flagName()+"="+text)...)
		if err != nil {
			t.Errorf("%s by flag: %v", k.name, err)
			continue
		}
		if diff := cmp.Diff(want, texts(k.field(&got))); diff != "" {
			t.Errorf("%s by flag: %s", k.name, diff)
		}
		if k.env == "" || strings.HasSuffix(k.name, "-file") {
			continue
		}
		if got, err = s.load(working, map[string]string{k.env: text}, args...); err != nil && k.flagName() != "pve-username" {
			t.Errorf("%s by variable: %v", k.name, err)
		} else if diff := cmp.Diff(want, texts(k.field(&got))); diff != "" && k.name != "pve.username" {
			t.Errorf("%s by variable: %s", k.name, diff)
		}
	}
}

func TestSecretsFromEnvironment(t *testing.T) {
	s := newSite(t)
	got, err := s.load(working, map[string]string{
		"PVE_TOKEN_SECRET": "from-env\n", "PVE_USERNAME": "root@pam", "PVE_PASSWORD": "pw", "PVE_TOKEN_ID": "a@pve!bb",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := s.effective()
	want.PVE.TokenID, want.PVE.TokenSecret, want.PVE.TokenSecretFile = "a@pve!bb", NewSecret("from-env"), ""
	want.PVE.Username, want.PVE.Password = "root@pam", NewSecret("pw")
	if diff := cmp.Diff(want, got, compare); diff != "" {
		t.Error(diff)
	}
	// A flag outweighs the variable: the file is read again.
	got, err = s.load(working, map[string]string{"PVE_TOKEN_SECRET": "from-env"}, "--pve-token-secret-file=DIR/secret")
	if err != nil || got.PVE.TokenSecret.Reveal() != "s3cr3t" {
		t.Errorf("got %q, %v", got.PVE.TokenSecret.Reveal(), err)
	}
}

func TestCABundle(t *testing.T) {
	pem := string(mustRead(t, "testdata/ca.pem"))
	tests := []struct {
		name, value string
		args        []string
		path, text  string
	}{
		{name: "default", path: "DIR/pve/pve-root-ca.pem"},
		{name: "path", value: "/ca.pem", path: "/ca.pem"},
		{name: "PEM text", value: pem, text: pem},
		{name: "a flag outweighs PEM text", value: pem, args: []string{"--pve-ca-bundle=/ca.pem"}, path: "/ca.pem"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			got, err := s.load(working, map[string]string{"PVE_CA_BUNDLE": tt.value}, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if got.PVE.CABundle != s.expand(tt.path) || got.PVE.CABundlePEM != tt.text {
				t.Errorf("got %q and %q", got.PVE.CABundle, got.PVE.CABundlePEM)
			}
		})
	}
}

func TestNodeFromHostName(t *testing.T) {
	s := newSite(t)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.load(strings.Replace(working, "node: pve1", "", 1), nil)
	want, _, _ := strings.Cut(host, ".")
	if nodeName(want) != nil { // a machine that could not be a PVE node
		if err == nil {
			t.Errorf("host name %q is taken", host)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got.Node != want || got.Sources["node"] != "host name" {
		t.Errorf("node %q from %q, want %q", got.Node, got.Sources["node"], want)
	}
}

func TestTrailingSlashes(t *testing.T) {
	got, err := newSite(t).load(working, nil, "--console-url=https://gui.example.com/", "--pve-endpoint=https://127.0.0.1:8006/")
	if err != nil {
		t.Fatal(err)
	}
	if got.ConsoleURL != "https://gui.example.com" || got.PVE.Endpoint != "https://127.0.0.1:8006" {
		t.Errorf("got %q and %q", got.ConsoleURL, got.PVE.Endpoint)
	}
}

func TestWarnings(t *testing.T) {
	const certificates = "--plaintext=false"
	triple := []string{certificates, "--listen-cert=/c", "--listen-key=/k", "--listen-ca=/a"}
	tests := []struct {
		name string
		args []string
		want []string
	}{
		{name: "certificates and a token", args: triple},
		{
			name: "plaintext",
			want: []string{"listen.plaintext: whoever reaches 127.0.0.1:9443 rules every VM; calls are neither encrypted nor authenticated"},
		},
		{
			name: "plaintext for all", args: []string{"--listen-grpc=:9443", "--insecure-anyway"},
			want: []string{"listen.plaintext: whoever reaches :9443 rules every VM; calls are neither encrypted nor authenticated"},
		},
		{
			name: "two log-ins", args: append([]string{"--pve-username=u@pve", "--pve-password-file=DIR/secret"}, triple...),
			want: []string{"pve.token-id and pve.username are both set: the token is used"},
		},
		{
			name: "unverified", args: append([]string{"--pve-insecure-skip-verify", "--pve-endpoint=https://pve2:8006"}, triple...),
			want: []string{"pve.insecure-skip-verify: anybody between the agent and https://pve2:8006 can read the credentials"},
		},
		{
			name: "secret in pmxcfs that www-data can read", args: append([]string{"--pve-token-secret-file=DIR/pve/secret"}, triple...),
			want: []string{"pve.token-secret-file: others can read DIR/pve/secret (mode 0640): move it below DIR/pve/priv"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.write("pve/secret", "x", 0o640)
			got, err := s.load(working, nil, append([]string(nil), tt.args...)...)
			if err != nil {
				t.Fatal(err)
			}
			for i := range tt.want {
				tt.want[i] = s.expand(tt.want[i])
			}
			if diff := cmp.Diff(tt.want, got.Warnings, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOnlyTheDefaultFileMayBeMissing(t *testing.T) {
	none := newSite(t).dir + "/none"
	if f := readLocal(&arguments{file: none}); len(f.errs) > 0 || len(f.settings) > 0 {
		t.Errorf("got %v", f.errs)
	}
	if f := readLocal(&arguments{file: none, fileGiven: true}); len(f.errs) != 1 {
		t.Errorf("a file named by --config is missing, got %v", f.errs)
	}
}

func TestPrintConfig(t *testing.T) {
	c, err := newSite(t).load(working, nil, "--print-config")
	if err != nil || !c.PrintConfig {
		t.Errorf("got %v, %v", c.PrintConfig, err)
	}
}

func TestHelp(t *testing.T) {
	if _, err := Load([]string{"--help"}, nil); !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("got %v", err)
	}
	usage := FlagUsages()
	for _, k := range keys {
		if !strings.Contains(usage, "--"+k.flagName()+" ") && !strings.Contains(usage, "--"+k.flagName()+"[") {
			t.Errorf("--%s is not in the usage", k.flagName())
		}
	}
	t.Logf("\n%s", usage)
}

func TestVMIDRangeContains(t *testing.T) {
	r := VMIDRange{Min: 100, Max: 200}
	for id, want := range map[int]bool{99: false, 100: true, 200: true, 201: false} {
		if r.Contains(id) != want {
			t.Errorf("Contains(%d) = %v", id, !want)
		}
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
