package pvesim_test

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// run carries out the lines and returns what they print.
func run(t *testing.T, c *pvesim.Cluster, lines ...string) string {
	t.Helper()
	var out strings.Builder
	for _, line := range lines {
		text, err := c.Do(t.Context(), line)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out.WriteString(text)
	}
	return out.String()
}

func TestDoNodes(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 0 })
	api := regexp.MustCompile(` (api|ip)=\S+`)
	for _, tc := range []struct{ line, want string }{
		{"# nothing", "pve1 power=on online=pve1,pve2,pve3 quorate=true writable=true\n" +
			"pve2 power=on online=pve1,pve2,pve3 quorate=true writable=true\npve3 power=on online=pve1,pve2,pve3 quorate=true writable=true\n"},
		{"partition pve1|pve2,pve3", "pve1 power=on online=pve1 quorate=false writable=false\n" +
			"pve2 power=on online=pve2,pve3 quorate=true writable=true\npve3 power=on online=pve2,pve3 quorate=true writable=true\n"},
		{"cut pve3>pve2", "pve1 power=on online=pve1 quorate=false writable=false\n" +
			"pve2 power=on online=pve2 quorate=false writable=false\npve3 power=on online=pve3 quorate=false writable=false\n"},
		{"heal", "pve1 power=on online=pve1,pve2,pve3 quorate=true writable=true\n" +
			"pve2 power=on online=pve1,pve2,pve3 quorate=true writable=true\npve3 power=on online=pve1,pve2,pve3 quorate=true writable=true\n"},
		{"node pve2 off", "pve1 power=on online=pve1,pve3 quorate=true writable=true\n" +
			"pve2 power=off online= quorate=false writable=false\npve3 power=on online=pve1,pve3 quorate=true writable=true\n"},
		{"readonly pve1 on", "pve1 power=on online=pve1,pve3 quorate=true writable=false\n" +
			"pve2 power=off online= quorate=false writable=false\npve3 power=on online=pve1,pve3 quorate=true writable=true\n"},
		{"quorum all off", "pve1 power=on online=pve1,pve3 quorate=false writable=false\n" +
			"pve2 power=off online= quorate=false writable=false\npve3 power=on online=pve1,pve3 quorate=false writable=false\n"},
	} {
		run(t, c, tc.line)
		if diff := cmp.Diff(tc.want, api.ReplaceAllString(run(t, c, "nodes"), "")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.line, diff)
		}
	}
}

func TestDoVMs(t *testing.T) {
	c := startCluster(t, nil)
	uuid := regexp.MustCompile(`uuid=\S+`)
	out := run(t, c,
		"set 101 name=web lock=backup", "vanish 103", "kill 100", "set 101 lock=", "add 500 pve2 name=made cores=2",
		"migrate 101 pve3 gap 1ms", "ha 500 started", "ha 500 none", "deaf 102 on", "vmlist-lag pve3 1s", "vmlist-lag pve3 0s", "migrate-gap 1ms",
		"stranger 101 pve1", "vms")
	want := `100 node=pve1 name=vm-100 U lock= running=false template=false
101 node=pve1 name=stranger-101 U lock= running=false template=false
102 node=pve3 name=vm-102 U lock= running=true template=false
500 node=pve2 name=made U lock= running=false template=false
9000 node=pve1 name=linux-template U lock= running=false template=true
9001 node=pve1 name=linux-template-shared U lock= running=false template=true
`
	if diff := cmp.Diff(want, uuid.ReplaceAllString(out, "U")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	run(t, c, "move 102 pve1", "start 100", "mount pve2 off", "mount pve2 on", "api pve2 off", "api pve2 on")
	if owner, _ := c.Owner(102); owner != "pve1" {
		t.Errorf("102 is on %s", owner)
	}
	help := run(t, c, "help")
	for _, verb := range []string{"partition <node>,<node>|<node>", "stranger <vm> <node>", "hold <type>"} {
		if !strings.Contains(help, verb) {
			t.Errorf("%q is not in:\n%s", verb, help)
		}
	}
}

func TestDoFaults(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 0 })
	cl := newClient(t, c, "pve1")
	run(t, c, "hold clone")
	upid := cl.upidOf("POST /nodes/pve1/qemu/9000/clone", "newid=600")
	eventually(t, "the clone has begun", func() bool { _, ok := c.Owner(600); return ok })
	if out := run(t, c, "tasks"); !strings.Contains(out, "type=qmclone id=9000") {
		t.Errorf("%s", out)
	}
	run(t, c, "release clone", "hold clone pve2", "release clone pve2")
	if exit, _ := cl.wait(upid); exit != "OK" {
		t.Error(exit)
	}
	run(t, c, "fail GET /nodes/*/qemu/*/config 500 x2 no such luck", "fail-after PUT /nodes/*/qemu/*/config 502", "fail-task destroy any disk on fire")
	for _, want := range []string{"no such luck", "no such luck", "OK"} {
		if r := cl.do("GET /nodes/pve1/qemu/600/config", ""); r.Reason != want {
			t.Errorf("%s, want %s", r.Reason, want)
		}
	}
	if r := cl.do("PUT /nodes/pve1/qemu/600/config", "cores=3"); r.Status != 502 {
		t.Errorf("%d", r.Status)
	}
	if conf, err := c.Config(600); err != nil || conf["cores"] != "3" {
		t.Errorf("%v %v", conf, err)
	}
	if exit, _ := cl.task("DELETE /nodes/pve1/qemu/600", ""); exit != "disk on fire" {
		t.Error(exit)
	}
	run(t, c, "fail * /version 500", "clear-faults")
	cl.must("GET /version", "")
	run(t, c, "hold migrate", "migrate 600 pve2 &")
	if _, err := c.Do(t.Context(), "&"); err == nil {
		t.Error("nothing in the background")
	}
}

func TestDoRefuses(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs = 1 })
	for line, want := range map[string]string{
		"explode":                 `no command "explode"`,
		"node pve2":               "want: node <node> on|off",
		"node pve2 maybe":         "want: node",
		"node pve9 off":           `no node "pve9"`,
		"partition pve1|pve1":     "in two groups",
		"partition":               "want: partition",
		"cut pve1":                "want: cut",
		"cut pve1>pve9":           `no node "pve9"`,
		"heal now":                "want: heal",
		"migrate 100":             "want: migrate <vm> <node> [gap <d>]",
		"migrate 100 pve2 gap x":  "want: migrate",
		"migrate 100 pve1":        "it is on pve1",
		"migrate 777 pve1":        "no VM 777",
		"migrate x pve1":          "want: migrate",
		"vmlist-lag pve1 soon":    "invalid duration",
		"set 100 name":            "want: set",
		"ha 100 maybe":            "want: ha",
		"deaf 100 maybe":          "want: deaf",
		"stranger 100 pve9":       `no node "pve9"`,
		"fail GET /x":             "want: fail",
		"fail GET /x many":        "want: fail",
		"fail-task clone web oh!": "want: fail-task",
		"hold":                    "want: hold",
		"hold clone pve9":         `no node "pve9"`,
		"release clone":           "nothing holds qmclone",
		"vms all":                 "want: vms",
		"migrate-gap":             "want: migrate-gap",
		"quorum pve9 off":         `no node "pve9"`,
	} {
		if _, err := c.Do(t.Context(), line); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}

func TestControlAPI(t *testing.T) {
	dir := ""
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.VMs, cfg.Control, dir = 1, "127.0.0.1:0", cfg.Dir })
	post := func(lines string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.Control()+"/do", strings.NewReader(lines))
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if status, out := post("# a scenario\n\nnode pve2 off\nset 100 name=web\nvms\n"); status != 200 || !strings.Contains(out, "100 node=pve1 name=web ") {
		t.Errorf("%d %s", status, out)
	}
	if status, out := post("nodes\nnode pve9 off\nnode pve2 on\n"); status != 400 || !strings.HasPrefix(out, "pve1 ") || !strings.HasSuffix(out, "node: pvesim: no node \"pve9\"\n") {
		t.Errorf("%d %s", status, out)
	}
	if out := run(t, c, "nodes"); !strings.Contains(out, "pve2 ip="+c.Node("pve2").IP.String()+" power=off") {
		t.Errorf("what follows an error was carried out:\n%s", out)
	}
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil || !strings.Contains(string(b), "PVESIM_CONTROL='"+c.Control()+"'\n") {
		t.Errorf("%s %v", b, err)
	}
}
