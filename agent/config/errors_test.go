package config

import (
	"errors"
	"strings"
	"testing"
)

// What a user reads when a setting is wrong. DIR stands for the site's
// directory; in local, a line that begins with "+" is added to working, and
// everything else replaces it.
func TestErrors(t *testing.T) {
	tests := []struct {
		name    string
		local   string
		cluster string
		env     map[string]string
		args    []string
		want    string
	}{
		// Keys.
		{name: "unknown key", local: "+sync-wiat: 2s", want: "DIR/config.yaml:6: sync-wiat: unknown key, did you mean sync-wait?"},
		{name: "unknown key in a section", local: "+tasks:\n+  poll_mim: 2s", want: "DIR/config.yaml:7: tasks.poll_mim: unknown key, did you mean tasks.poll-min?"},
		{name: "key in the wrong section", local: "+endpoint: http://127.0.0.1:85", want: "DIR/config.yaml:6: endpoint: unknown key, did you mean pve.endpoint?"},
		{name: "key in another style", local: "+SNIPPETS_STORAGE: a", want: "DIR/config.yaml:6: SNIPPETS_STORAGE: unknown key, did you mean snippets-storage?"},
		{name: "unknown section", local: "+task: {}", want: "DIR/config.yaml:6: task: unknown key, did you mean tasks?"},
		{name: "nothing like it", local: "+xyzzy: 1", want: "DIR/config.yaml:6: xyzzy: unknown key"},
		{name: "twice", local: "+watch: 1s\n+watch: 2s", want: "DIR/config.yaml:7: watch: given twice, first in line 6"},
		{name: "no key", local: "+[a]: 1", want: "DIR/config.yaml:6: expected a key, got a list"},
		{name: "long key", local: "+? " + strings.Repeat("x", 100) + "\n+: 1", want: "DIR/config.yaml:6: " + strings.Repeat("x", 60) + "...: unknown key"},

		// Types.
		{name: "number for a string", local: "+state-dir: 7", want: "DIR/config.yaml:6: state-dir: expected a string, got a number (put it in quotes)"},
		{name: "number for a duration", local: "+watch: 1", want: "DIR/config.yaml:6: watch: expected a duration such as 2s or 500ms, got a number"},
		{name: "nothing", local: "+watch:", want: "DIR/config.yaml:6: watch: expected a duration such as 2s or 500ms, got nothing"},
		{name: "word for a duration", local: "+watch: soon", want: `DIR/config.yaml:6: watch: expected a duration such as 2s or 500ms, got "soon"`},
		{name: "word for a number", local: "+sync-waits-per-client: three", want: "DIR/config.yaml:6: sync-waits-per-client: expected a number, got a string"},
		{name: "odd number", local: "+sync-waits-per-client: 0x3", want: `DIR/config.yaml:6: sync-waits-per-client: expected a number, got "0x3"`},
		{name: "yes", local: "+delete-foreign: yes", want: "DIR/config.yaml:6: delete-foreign: expected true or false, got a string"},
		{name: "list for a string", local: "+console-url: [a]", want: "DIR/config.yaml:6: console-url: expected a string, got a list"},
		{name: "list for names", local: "+bridges: [a]", want: "DIR/config.yaml:6: bridges: expected names with values, got a list"},
		{name: "no bridge", local: "+bridges: {lan: 'vmbr0,tag=1'}", want: "DIR/config.yaml:6: bridges: lan: expected a value without comma, '=' and line feed"},
		{name: "no interface", local: "+bridges: {lan: 0x}", want: "DIR/config.yaml:6: bridges: lan: expected the name of a bridge or of a VNet, got \"0x\""},
		{name: "a name twice", local: "+bridges: {lan: vmbr0, lan: vmbr1}", want: "DIR/config.yaml:6: bridges: lan is given twice"},
		{name: "class without settings", local: "+storage-classes: {nvme: fast}", want: "DIR/config.yaml:6: storage-classes: nvme: expected names with values, got a string"},
		{name: "class on no storage", local: "+storage-classes: {nvme: {storage: 'a b'}}", want: "DIR/config.yaml:6: storage-classes: nvme.storage: expected the id of a PVE storage, got \"a b\""},
		{name: "names by flag", args: []string{"--bridges=lan"}, want: "--bridges: expected name=value, got \"lan\""},
		{name: "classes by flag", args: []string{"--storage-classes=nvme=fast"}, want: "--storage-classes: expected name:storage=<storage>,option=value, got \"nvme=fast\""},
		{name: "unit of ten", local: "+placement: {memory-reserve: 2GB}", want: `DIR/config.yaml:6: placement.memory-reserve: expected a size such as 8GiB or 512MiB, got "2GB"`},
		{name: "no unit", local: "+placement: {memory-reserve: 2}", want: `DIR/config.yaml:6: placement.memory-reserve: expected a size such as 8GiB or 512MiB, got "2"`},
		{name: "list for a size", local: "+placement: {memory-reserve: []}", want: `DIR/config.yaml:6: placement.memory-reserve: expected a size such as 8GiB or 512MiB, got a list`},
		{name: "too much", local: "+placement: {memory-overcommit: 101}", want: `DIR/config.yaml:6: placement.memory-overcommit: expected 0.1 to 100.0, got 101.0`},
		{name: "not a number", args: []string{"--placement-memory-overcommit=NaN"}, want: `--placement-memory-overcommit: expected 0.1 to 100.0, got NaN`},
		{name: "no replicas", local: "+placement: {image-replicas: 0}", want: `DIR/config.yaml:6: placement.image-replicas: expected 1 to 64, or all, got "0"`},
		{name: "replicas", local: "+placement: {image-replicas: every}", want: `DIR/config.yaml:6: placement.image-replicas: expected 1 to 64, or all, got "every"`},
		{name: "selector", local: "+placement: {node-selector: [pve1]}", want: `DIR/config.yaml:6: placement.node-selector: expected prefer or required, got a list`},
		{name: "scorer", local: "+placement: {scorer: best}", want: `DIR/config.yaml:6: placement.scorer: expected crs, spread or pack, got "best"`},
		{name: "list of groups", local: "+placement:\n+  groups:\n+    fast: [pve1]\n+    slow: pve2", want: `DIR/config.yaml:9: placement.groups: slow: expected a list of strings, got a string`},
		{name: "no node in a group", local: "+placement: {groups: {fast: ['pve1,pve2']}}", want: `DIR/config.yaml:6: placement.groups: fast: entry 1: expected the name of a PVE node, without a domain, got "pve1,pve2"`},
		{name: "groups by flag", args: []string{"--placement-groups=fast=pve1,p_2"}, want: `--placement-groups: fast: entry 2: expected the name of a PVE node, without a domain, got "p_2"`},
		{name: "two zones", local: "+placement: {zones: {b: [pve2, pve3], a: [pve1, pve2]}}", want: `DIR/config.yaml:6: placement.zones: node pve2 is in a and in b; it can be in one`},

		// Policies.
		{name: "no policies", local: "+placement: {policies: [db]}", want: "DIR/config.yaml:6: placement.policies: expected names with values, got a list"},
		{name: "no policy", local: "+placement:\n+  policies:\n+    web: {}\n+    db: spread", want: "DIR/config.yaml:9: placement.policies: db: expected names with values, got a string"},
		{name: "policy twice", local: "+placement:\n+  policies:\n+    db: {}\n+    db: {}", want: "DIR/config.yaml:9: placement.policies: db is given twice"},
		{name: "unknown key of a policy", local: "+placement:\n+  policies:\n+    db:\n+      antiAffinty: []", want: "DIR/config.yaml:9: placement.policies: db.antiAffinty: unknown key, did you mean anti-affinity?"},
		{name: "nothing like it in a policy", local: "+placement: {policies: {db: {xyzzy: 1}}}", want: "DIR/config.yaml:6: placement.policies: db.xyzzy: unknown key"},
		{name: "unknown key of a match", local: "+placement: {policies: {db: {match: {tag: [db]}}}}", want: "DIR/config.yaml:6: placement.policies: db.match.tag: unknown key, did you mean tags?"},
		{name: "pattern", local: "+placement: {policies: {db: {match: {names: ['db-*', '[a']}}}}", want: `DIR/config.yaml:6: placement.policies: db.match.names: entry 2: expected a pattern with *, ? and [a-z], got "[a"`},
		{name: "empty tag", local: "+placement: {policies: {db: {match: {tags: ['']}}}}", want: `DIR/config.yaml:6: placement.policies: db.match.tags: entry 1: expected a word, got ""`},
		{name: "operator", local: "+placement:\n+  policies:\n+    db:\n+      affinity:\n+        - {key: tag, operator: In, values: [a]}\n+        - {key: tag, operator: in, values: [a]}", want: `DIR/config.yaml:11: placement.policies: db.affinity[2].operator: expected In, NotIn, Exists or DoesNotExist, got "in"`},
		{name: "no key of a term", local: "+placement: {policies: {db: {affinity: [{operator: Exists}]}}}", want: "DIR/config.yaml:6: placement.policies: db.affinity[1]: key is missing"},
		{name: "no operator", local: "+placement: {policies: {db: {affinity: [{key: tag}]}}}", want: "DIR/config.yaml:6: placement.policies: db.affinity[1]: operator is missing"},
		{name: "no values", local: "+placement: {policies: {db: {affinity: [{key: tag, operator: NotIn}]}}}", want: "DIR/config.yaml:6: placement.policies: db.affinity[1]: operator NotIn needs values"},
		{name: "values of Exists", local: "+placement: {policies: {db: {anti-affinity: [{key: tag, operator: Exists, values: [a]}]}}}", want: "DIR/config.yaml:6: placement.policies: db.anti-affinity[1]: operator Exists has no values"},
		{name: "one term without a list", local: "+placement: {policies: {db: {affinity: {key: tag}}}}", want: "DIR/config.yaml:6: placement.policies: db.affinity: expected a list of {key, operator, values}, got keys with values"},
		{name: "type in a policy", local: "+placement: {policies: {db: {max-vms-per-node: many}}}", want: "DIR/config.yaml:6: placement.policies: db.max-vms-per-node: expected a number, got a string"},
		{name: "size in a policy", local: "+placement: {policies: {db: {min-free-memory: 8 GB}}}", want: `DIR/config.yaml:6: placement.policies: db.min-free-memory: expected a size such as 8GiB or 512MiB, got "8 GB"`},
		{name: "required without nodes", local: "+placement: {policies: {db: {required: true}}}", want: "DIR/config.yaml:6: placement.policies: db.required: there is no node-selector"},
		{name: "no group and no node", local: "+placement: {policies: {db: {node-selector: [no_group]}}}", want: `DIR/config.yaml:6: placement.policies: db.node-selector: "no_group" is neither in placement.groups nor the name of a node`},
		{name: "no name of a node", args: []string{"--node-selector=pve1,-x"}, want: `--node-selector: entry 2: expected the name of a node or of a group, got "-x"`},
		{name: "zone without zones", local: "+placement: {policies: {db: {spread: zone}}}", want: "DIR/config.yaml:6: placement.policies: db.spread: zone needs placement.zones"},
		{name: "term of zones without zones", local: "+placement: {policies: {db: {affinity: [{key: tag, operator: Exists, zone: true}]}}}", want: "DIR/config.yaml:6: placement.policies: db.affinity by zone (tag) needs placement.zones"},
		{name: "policy by flag", args: []string{"--placement-policies=db"}, want: "--placement-policies: expected names with values, got a string"},
		{name: "broken policy by flag", args: []string{"--placement-policies=db: ["}, want: "--placement-policies: expected YAML such as name: {spread: node}: not valid YAML: line 1: did not find expected node content"},
		{name: "policy twice by flag", args: []string{"--placement-policies=db: {}", "--placement-policies={web: {}, db: {}}"}, want: "--placement-policies: db is given twice"},
		{name: "two wrong policies", local: "+placement:\n+  policies:\n+    db: {spread: room}\n+    web: {scorer: x}", want: "DIR/config.yaml:8: placement.policies: db.spread: expected node or zone, got \"room\"\nDIR/config.yaml:9: placement.policies: web.scorer: expected crs, spread or pack, got \"x\""},
		{name: "string for a list", local: "+node-selector: a,b", want: "DIR/config.yaml:6: node-selector: expected a list of strings, got a string"},
		{name: "list of numbers", local: "+node-selector: [a, 1]", want: "DIR/config.yaml:6: node-selector: entry 2: expected a string, got a number"},
		{name: "value for a section", local: "+log: debug", want: "DIR/config.yaml:6: log: expected keys with values, got a string"},
		{name: "section for a value", local: "+watch: {every: 1s}", want: "DIR/config.yaml:6: watch: expected a duration such as 2s or 500ms, got keys with values"},
		{name: "list for the file", local: "- a", want: "DIR/config.yaml:1: expected keys with values, got a list"},
		{name: "alias", local: "+state-dir: &x /a\n+console-url: *x", want: "DIR/config.yaml:7: console-url: expected a string, got an alias"},
		{name: "merge key", local: "+log:\n+  <<: {level: info}", want: "DIR/config.yaml:7: expected a key, got a merge key"},
		{name: "two documents", local: working + "---\nwatch: 1s\n", want: "DIR/config.yaml: holds more than one document (a line with ---)"},
		{name: "not YAML", local: "+watch: [", want: "DIR/config.yaml: not valid YAML: line 6: did not find expected node content"},
		{name: "value with a star", local: "+console-url: *hunter2", want: "DIR/config.yaml: not valid YAML: a value that begins with * or & needs quotes"},

		// Ranges and forms.
		{name: "too short", local: "+watch: 5ms", want: "DIR/config.yaml:6: watch: expected 100ms to 10s, got 5ms"},
		{name: "too long", args: []string{"--tasks-timeout=200h"}, want: "--tasks-timeout: expected 1s to 168h, got 200h"},
		{name: "negative", args: []string{"--sync-wait=-1s"}, want: "--sync-wait: expected 0s to 1m, got -1s"},
		{name: "one worker", args: []string{"--pve-workers=1"}, want: "--pve-workers: expected 2 to 64, got 1"},
		{name: "vmid below 100", args: []string{"--vmid-range=99-200"}, want: `--vmid-range: expected a range within 100-999999999, low end first, got "99-200"`},
		{name: "vmid range turned", args: []string{"--vmid-range=300-200"}, want: `--vmid-range: expected a range within 100-999999999, low end first, got "300-200"`},
		{name: "vmid without range", args: []string{"--vmid-range=300"}, want: `--vmid-range: expected a range such as 10000-999999, got "300"`},
		{name: "level", env: map[string]string{"LOG_LEVEL": "trace"}, want: `env LOG_LEVEL: log.level: expected debug, info, warn or error, got "trace"`},
		{name: "format", args: []string{"--log-format=xml"}, want: `--log-format: expected text, json or journal, got "xml"`},
		{name: "bool in the environment", env: map[string]string{"PVE_INSECURE_SKIP_VERIFY": "1"}, want: `env PVE_INSECURE_SKIP_VERIFY: pve.insecure-skip-verify: expected true or false, got "1"`},
		{name: "address without port", args: []string{"--metrics=127.0.0.1"}, want: `--metrics: expected host:port, got "127.0.0.1"`},
		{name: "port out of range", args: []string{"--metrics=127.0.0.1:70000"}, want: `--metrics: expected host:port, got "127.0.0.1:70000"`},
		{name: "relative path", args: []string{"--state-dir=x"}, want: `--state-dir: expected an absolute path, got "x"`},
		{name: "node with a domain", args: []string{"--node=pve1.example.com"}, want: `--node: expected the name of a PVE node, without a domain, got "pve1.example.com"`},
		{name: "node list", args: []string{"--node-selector=pve1,b_d"}, want: `--node-selector: "b_d" is neither in placement.groups nor the name of a node`},
		{name: "storage", args: []string{"--snippets-storage=a/b"}, want: `--snippets-storage: expected the id of a PVE storage, got "a/b"`},
		{name: "empty identity", local: strings.Replace(working, "plaintext: true", "plaintext: true, allowed-sans: [\"\"]", 1), want: `DIR/config.yaml:3: listen.allowed-sans: entry 1: expected a URI, a DNS name or a common name, got ""`},
		{name: "user", args: []string{"--pve-username=root"}, want: `--pve-username: expected name@realm, got "root"`},
		{name: "token", args: []string{"--pve-token-id=root@pam"}, want: `--pve-token-id: expected user@realm!name, got "root@pam"`},
		{name: "poll turned", args: []string{"--tasks-poll-min=2s"}, want: "tasks.poll-max: 500ms is shorter than tasks.poll-min, 2s"},
		{name: "console", args: []string{"--console-url=pve1:8006"}, want: "--console-url: expected https://host:port, without user or query"},

		// Endpoint.
		{name: "endpoint over the network", args: []string{"--pve-endpoint=http://192.0.2.1:85"}, want: "--pve-endpoint: http to 192.0.2.1:85 would send the credentials in the clear; use https://192.0.2.1:8006"},
		{name: "endpoint with a path", env: map[string]string{"PVE_ENDPOINT": "https://a:8006/api2/json"}, want: "env PVE_ENDPOINT: pve.endpoint: expected http://127.0.0.1:85 or https://host:port, without user, path or query"},
		{name: "endpoint with a password", env: map[string]string{"PVE_ENDPOINT": "https://root:hunter2@a:8006"}, want: "env PVE_ENDPOINT: pve.endpoint: expected http://127.0.0.1:85 or https://host:port, without user, path or query"},
		{name: "CA without certificate", env: map[string]string{"PVE_CA_BUNDLE": "-----BEGIN nothing"}, want: "env PVE_CA_BUNDLE: pve.ca-bundle: the PEM text holds no certificate"},

		// Listener.
		{name: "plaintext for all", args: []string{"--listen-grpc=:9443"}, want: "DIR/config.yaml:3: listen.plaintext: others can reach :9443: anybody there could delete every VM; use 127.0.0.1, or certificates (listen.cert, listen.key, listen.ca), or listen.insecure-anyway: true if something else guards the port"},
		{name: "plaintext by name", args: []string{"--listen-grpc=pve1:9443", "--plaintext"}, want: "--plaintext: others can reach pve1:9443: anybody there could delete every VM; use 127.0.0.1, or certificates (listen.cert, listen.key, listen.ca), or listen.insecure-anyway: true if something else guards the port"},
		{name: "no certificate", args: []string{"--plaintext=false"}, want: "listen.cert: no certificate: set listen.cert, listen.key and listen.ca (how to make them: docs/configuration.md, section Certificates), or for a test on this machine listen.plaintext: true and listen.grpc: 127.0.0.1:9443"},
		{name: "half a certificate", args: []string{"--plaintext=false", "--listen-cert=/c"}, want: "listen.key: missing: listen.cert, listen.key and listen.ca belong together\nlisten.ca: missing: listen.cert, listen.key and listen.ca belong together"},
		{name: "no second error", args: []string{"--plaintext=maybe"}, want: `--plaintext: expected true or false, got "maybe"`},

		// Credentials.
		{name: "no credentials", local: strings.Split(working, "pve: {")[0], want: "pve.token-id: no credentials for the PVE API: make a token (pveum user token add USER@REALM NAME, printed once), then set pve.token-id and pve.token-secret-file; or set pve.username and pve.password-file"},
		{name: "token without secret", local: strings.Replace(working, ", token-secret-file: DIR/secret", "", 1), want: "pve.token-secret-file: missing: pve.token-id is set"},
		{name: "secret without token", local: strings.Replace(working, `token-id: "u@pve!agent", `, "", 1), want: "pve.token-id: missing: pve.token-secret-file is set"},
		{name: "user without password", args: []string{"--pve-username=u@pve"}, want: "pve.password-file: missing: pve.username is set"},
		{name: "secret in the file", local: strings.Replace(working, "token-secret-file: DIR/secret", "token-secret: hunter2", 1), want: "DIR/config.yaml:5: pve.token-secret: a secret does not stand in a configuration file: put it into a file of mode 0600 and name that file in pve.token-secret-file"},
		{name: "password in the file", local: "+password: hunter2", want: "DIR/config.yaml:6: password: a secret does not stand in a configuration file: put it into a file of mode 0600 and name that file in pve.password-file"},
		{name: "secret in the token id", env: map[string]string{"PVE_TOKEN_ID": "u@pve!agent=hunter2"}, want: "env PVE_TOKEN_ID: pve.token-id: expected user@realm!name alone; the secret belongs in the file of pve.token-secret-file"},
		{name: "secret by flag", args: []string{"--pve-token-secret=hunter2"}, want: "parse flags: --pve-token-secret: every user of the machine can read command lines; put the secret into a file of mode 0600 and name it with --pve-token-secret-file"},
		{name: "password by flag", args: []string{"--password", "hunter2"}, want: "parse flags: --password: every user of the machine can read command lines; put the secret into a file of mode 0600 and name it with --pve-password-file"},
		{name: "secret of two lines", env: map[string]string{"PVE_TOKEN_SECRET": "hunter2\nhunter3"}, want: "env PVE_TOKEN_SECRET: pve.token-secret-file: expected one line of text"},
		{name: "secret file missing", args: []string{"--pve-token-secret-file=DIR/none"}, want: "--pve-token-secret-file: read DIR/none: open: no such file or directory"},
		{name: "secret file is a directory", args: []string{"--pve-token-secret-file=DIR"}, want: "--pve-token-secret-file: read DIR: not a regular file"},
		{name: "secret file for all", args: []string{"--pve-token-secret-file=DIR/open"}, want: "--pve-token-secret-file: others can read DIR/open (mode 0640): chmod 600 it"},
		{name: "secret file empty", args: []string{"--pve-token-secret-file=DIR/empty"}, want: "--pve-token-secret-file: read DIR/empty: empty"},

		// Flags.
		{name: "unknown flag", args: []string{"--sync-wate=1s"}, want: "parse flags: unknown flag --sync-wate, did you mean --sync-wait?"},
		{name: "flag like nothing", args: []string{"--xyzzy"}, want: "parse flags: unknown flag --xyzzy"},
		{name: "key as flag", args: []string{"--listen-plaintext"}, want: "parse flags: unknown flag --listen-plaintext, did you mean --plaintext?"},
		{name: "argument", args: []string{"start"}, want: `parse flags: unexpected argument "start"`},
		{name: "flag without value", args: []string{"--watch"}, want: "parse flags: flag needs an argument: --watch"},

		// Files.
		{name: "file missing", args: []string{"--config=DIR/none"}, want: "DIR/none: open: no such file or directory"},
		{name: "cluster file with a node's key", cluster: "state-dir: /x\n", want: "DIR/pve/pve-rigaud.yaml:1: state-dir: belongs to one node, so it cannot stand in the file of all nodes; set it in DIR/config.yaml"},
		{name: "cluster file with an unknown key", cluster: "watsh: 1s\n", want: "DIR/pve/pve-rigaud.yaml:1: watsh: unknown key, did you mean watch?"},
		{name: "cluster file cut short", cluster: "watch: [", want: "DIR/pve/pve-rigaud.yaml: not valid YAML: line 1: did not find expected node content"},
		{name: "not mounted", args: []string{"--paths-pmxcfs=DIR/none"}, want: "DIR/none: the cluster file system is not mounted, so the settings that all nodes share are unknown; see systemctl status pve-cluster: stat: no such file or directory"},

		{name: "nothing is mounted there", args: []string{"--paths-pmxcfs=DIR"}, want: "DIR: the cluster file system is not mounted, so the settings that all nodes share are unknown; see systemctl status pve-cluster: stat: no such file or directory"},

		// All at once, also where another source outweighs.
		{
			name: "several", local: "+watch: 1\n+sync-wiat: 2s", cluster: "sync-wait: 1h\n", args: []string{"--watch=2s", "--sync-wait=1s"},
			want: "DIR/config.yaml:6: watch: expected a duration such as 2s or 500ms, got a number\n" +
				"DIR/config.yaml:7: sync-wiat: unknown key, did you mean sync-wait?\n" +
				"DIR/pve/pve-rigaud.yaml:1: sync-wait: expected 0s to 1m, got 1h",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.write("open", "x", 0o640)
			s.write("empty", "\n", 0o600)
			if tt.cluster != "" {
				s.write("pve/pve-rigaud.yaml", tt.cluster, 0o640)
			}
			local := tt.local
			if local == "" || local[0] == '+' {
				local = working + strings.ReplaceAll(strings.TrimPrefix(local, "+"), "\n+", "\n")
			}
			c, err := s.load(local, tt.env, tt.args...)
			got := ""
			if err != nil {
				got = strings.ReplaceAll(err.Error(), s.dir, "DIR")
			}
			if got != tt.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tt.want)
			}
			if strings.Contains(got, "hunter") {
				t.Error("the error holds a secret")
			}
			if err != nil && c.Node != "" {
				t.Error("a Config beside an error")
			}
		})
	}
}

func TestErrorNamesKeyAndSource(t *testing.T) {
	_, err := newSite(t).load(working, nil, "--watch=1h")
	var e *Error
	if !errors.As(err, &e) || e.Key != "watch" || e.Source != "--watch" {
		t.Errorf("got %#v", err)
	}
}
