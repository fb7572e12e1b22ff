package pve

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTypedReadsOfRecordedAnswers(t *testing.T) {
	byTitle := map[string]exchange{}
	for _, e := range recorded(t, "reads.txt") {
		byTitle[e.title] = e
	}
	one := func(title string) *Client {
		e, ok := byTitle[title]
		if !ok {
			t.Fatalf("%q is not recorded", title)
		}
		return replay(t, e)
	}
	ctx := t.Context()

	check := func(name string, got any, err error, want any) {
		t.Helper()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
	}
	version, err := one("version").Version(ctx)
	check("version", version, err, Version{Version: "9.2.11", Release: "9.2", RepoID: "14a22df35955d97d"})
	if version.Major() != 9 {
		t.Errorf("major %d", version.Major())
	}

	status, err := one("status stopped").Status(ctx, "pve1", 100)
	check("stopped", status, err, Status{VMID: 100, Name: "lab100", Status: "stopped", QMPStatus: "stopped", CPUs: 2, MaxMem: 1 << 30, MaxDisk: 268435456, Agent: true})
	status, err = one("status running").Status(ctx, "pve1", 100)
	if err != nil || status.Status != "running" || status.PID != 12422 || status.RunningQEMU != "10.0.13" || bool(status.HA.Managed) {
		t.Errorf("running: %+v %v", status, err)
	}
	status, err = one("status of template").Status(ctx, "pve1", 900)
	check("template", bool(status.Template), err, true)
	status, err = one("status with lock").Status(ctx, "pve1", 100)
	check("lock", status.Lock, err, "backup")

	entries, err := one("cluster status").ClusterStatus(ctx)
	if err != nil || len(entries) != 4 {
		t.Fatalf("cluster status: %+v %v", entries, err)
	}
	slices.SortFunc(entries, func(a, b ClusterEntry) int { return strings.Compare(a.ID, b.ID) })
	check("cluster", entries[0].Type, nil, "cluster")
	check("quorate", bool(entries[0].Quorate), nil, true)
	if !slices.ContainsFunc(entries, func(e ClusterEntry) bool { return bool(e.Local) && e.Name == "pve1" && bool(e.Online) }) {
		t.Errorf("no local node in %+v", entries)
	}

	nodes, err := one("nodes").Nodes(ctx)
	if err != nil || len(nodes) != 3 || nodes[0].Status != "offline" || nodes[0].MaxCPU != 2 || nodes[1].MaxMem != 25276514304 {
		t.Errorf("nodes: %+v %v", nodes, err)
	}

	rows, err := one("resources with lock").Resources(ctx, "vm")
	if err != nil || len(rows) != 7 || rows[0].Lock != "backup" || rows[0].VMID != 100 || !bool(rows[5].Template) {
		t.Errorf("resources: %+v %v", rows, err)
	}

	storages, err := one("storage list").Storages(ctx, "pve1")
	if err != nil || len(storages) != 2 || !bool(storages[0].Shared) || bool(storages[1].Shared) || !storages[1].Holds("snippets") || storages[1].Holds("snip") {
		t.Errorf("storages: %+v %v", storages, err)
	}

	volumes, err := one("content vmid").Content(ctx, "pve1", "local", ContentQuery{VMID: 120})
	if err != nil || len(volumes) != 3 {
		t.Fatalf("content: %+v %v", volumes, err)
	}
	check("linked volume", volumes[1], nil, Volume{
		VolID: "local:900/base-900-disk-0.qcow2/120/vm-120-disk-0.qcow2", Content: "images", Format: "qcow2",
		VMID: 120, Parent: "../900/base-900-disk-0.qcow2", Size: 419430400, Used: 593920, CTime: 1795330951,
	})

	tasks, err := one("tasks list").Tasks(ctx, "pve1", TaskQuery{Limit: 3})
	if err != nil || len(tasks) != 3 || tasks[0].Type != "qmstart" || tasks[0].Running() || tasks[0].Err() != nil {
		t.Errorf("tasks: %+v %v", tasks, err)
	}

	config, err := one("config").Config(ctx, "pve1", 100, false)
	if err != nil || config["name"] != "lab100" {
		t.Errorf("config: %v %v", config, err)
	}
	check("PUT config", nil, one("PUT config (sync)").SetConfig(ctx, "pve1", 100, url.Values{"description": {"hello sync"}}), nil)
	rows, err = one("no privilege: resources").Resources(ctx, "vm")
	check("no privilege", len(rows), err, 0)
}

func TestTypedCallsOfRecordedTasks(t *testing.T) {
	calls := map[string]func(context.Context, *Client) (UPID, error){
		"start":               func(ctx context.Context, c *Client) (UPID, error) { return c.Start(ctx, "pve1", 100) },
		"stop again":          func(ctx context.Context, c *Client) (UPID, error) { return c.Stop(ctx, "pve1", 100) },
		"shutdown of stopped": func(ctx context.Context, c *Client) (UPID, error) { return c.Shutdown(ctx, "pve1", 100, 0, false) },
		"resize +64M":         func(ctx context.Context, c *Client) (UPID, error) { return c.Resize(ctx, "pve1", 100, "scsi0", "+64M") },
		"full clone of template": func(ctx context.Context, c *Client) (UPID, error) {
			return c.Clone(ctx, "pve1", 900, CloneParams{NewID: 121, Name: "full121", Full: true})
		},
		"linked clone to pve2 (shared)": func(ctx context.Context, c *Client) (UPID, error) {
			return c.Clone(ctx, "pve1", 901, CloneParams{NewID: 210, Name: "c210", Target: "pve2"})
		},
		"shutdown with agent=1 but agent not running, forceStop=0": func(ctx context.Context, c *Client) (UPID, error) {
			return c.Shutdown(ctx, "pve1", 101, 19500*time.Millisecond, false)
		},
	}
	for _, e := range recorded(t, "tasks.txt") {
		call, ok := calls[e.title]
		if !ok {
			continue
		}
		delete(calls, e.title)
		t.Run(e.title, func(t *testing.T) {
			c := replay(t, e)
			u, err := call(t.Context(), c)
			if err != nil || u != e.upid(t) {
				t.Fatalf("%q %v, want %q", u, err, e.upid(t))
			}
			if err := c.Wait(t.Context(), u); err != nil {
				t.Error(err)
			}
			log, err := c.TaskLog(t.Context(), u)
			if err != nil || len(log) == 0 || log[len(log)-1] != "TASK OK" {
				t.Errorf("log %q %v", log, err)
			}
		})
	}
	if len(calls) > 0 {
		t.Errorf("not recorded: %v", reflect.ValueOf(calls).MapKeys())
	}
}

// everyCall makes each typed call with all its parameters.
func everyCall(ctx context.Context, c *Client) map[string]error {
	errs := map[string]error{}
	note := func(name string, err error) { errs[name] = err }
	upid := UPID("UPID:pve1:000025CB:00038BCD:6B028ED1:qmcreate:100:virtrigaud@pve!agent:")
	_, err := c.Version(ctx)
	note("Version", err)
	_, err = c.Nodes(ctx)
	note("Nodes", err)
	_, err = c.Permissions(ctx)
	note("Permissions", err)
	_, err = c.ClusterStatus(ctx)
	note("ClusterStatus", err)
	_, err = c.Resources(ctx, "vm")
	note("Resources", err)
	_, err = c.HAResources(ctx)
	note("HAResources", err)
	_, err = c.Clone(ctx, "pve1", 100, CloneParams{NewID: 101, Name: "web-1", Description: "d", Full: true, Storage: "local", Format: "qcow2", Target: "pve2", Pool: "p", SnapName: "s1"})
	note("Clone", err)
	_, err = c.Create(ctx, "pve1", CreateParams{VMID: 102, Pool: "p", Config: url.Values{"name": {"new"}, "scsi0": {"local:8"}, "ide2": {"local:iso/x.iso,media=cdrom"}}})
	note("Create", err)
	note("SetConfig", c.SetConfig(ctx, "pve1", 100, url.Values{"cores": {"2"}, "scsi1": {"local:1"}, "delete": {"net1"}, "digest": {"b518d6c7b32f51e84a1f0af8b1c1c92c77b3fd45"}}))
	_, err = c.ConfigTask(ctx, "pve1", 100, url.Values{"scsi2": {"local:8,serial=data"}, "digest": {"b518d6c7b32f51e84a1f0af8b1c1c92c77b3fd45"}})
	note("ConfigTask", err)
	_, err = c.Config(ctx, "pve1", 100, true)
	note("Config", err)
	_, err = c.Start(ctx, "pve1", 100)
	note("Start", err)
	_, err = c.Stop(ctx, "pve1", 100)
	note("Stop", err)
	_, err = c.Shutdown(ctx, "pve1", 100, 90*time.Second, true)
	note("Shutdown", err)
	_, err = c.Reboot(ctx, "pve1", 100, 90*time.Second)
	note("Reboot", err)
	_, err = c.Resize(ctx, "pve1", 100, "scsi0", "40G")
	note("Resize", err)
	_, err = c.Migrate(ctx, "pve1", 100, MigrateParams{Target: "pve2", Online: true, WithLocalDisks: true})
	note("Migrate", err)
	_, err = c.Destroy(ctx, "pve1", 100, DestroyParams{Purge: true})
	note("Destroy", err)
	_, err = c.Status(ctx, "pve1", 100)
	note("Status", err)
	_, err = c.Storages(ctx, "pve1")
	note("Storages", err)
	_, err = c.Content(ctx, "pve1", "local", ContentQuery{Content: "images", VMID: 100})
	note("Content", err)
	_, err = c.DeleteVolume(ctx, "pve1", "local:100/vm-100-disk-1.qcow2")
	note("DeleteVolume", err)
	_, err = c.CreateSnapshot(ctx, "pve1", 100, SnapshotParams{Name: "s1", Description: "d", Memory: true})
	note("CreateSnapshot", err)
	_, err = c.DeleteSnapshot(ctx, "pve1", 100, "s2")
	note("DeleteSnapshot", err)
	_, err = c.Rollback(ctx, "pve1", 100, "s3")
	note("Rollback", err)
	_, err = c.Snapshots(ctx, "pve1", 100)
	note("Snapshots", err)
	_, err = c.HasFeature(ctx, "pve1", 100, FeatureSnapshot)
	note("HasFeature", err)
	_, err = c.Machines(ctx, "pve1")
	note("Machines", err)
	_, err = c.Tasks(ctx, "pve1", TaskQuery{VMID: 100, Type: "qmclone", Since: time.Unix(1795330000, 0), Source: "all", Limit: 10})
	note("Tasks", err)
	_, err = c.TaskStatus(ctx, upid)
	note("TaskStatus", err)
	_, err = c.TaskLog(ctx, upid)
	note("TaskLog", err)
	return errs
}

// nothing answers null, which every call must understand: old versions do, where new ones give a UPID.
func nothing(w http.ResponseWriter) { ok(w, `{"data":null}`) }

func TestEveryCallSendsWhatItSays(t *testing.T) {
	var got []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if a := r.Header.Get("Authorization"); a != "PVEAPIToken="+testToken+"="+testSecret {
			t.Errorf("authorization %q", a)
		}
		if r.Header.Get("Accept-Encoding") != "" {
			t.Errorf("PVE is asked to compress: %v", r.Header)
		}
		if r.Method == http.MethodGet || r.Method == http.MethodDelete {
			if r.ContentLength > 0 {
				t.Errorf("%s %s has a body: PVE answers 501", r.Method, r.URL)
			}
		} else if r.Header.Get("Content-Type") != "application/x-www-form-urlencoded" || len(r.URL.RawQuery) > 0 || len(r.TransferEncoding) > 0 {
			t.Errorf("%s %s: %v", r.Method, r.URL, r.Header)
		}
		_ = r.ParseForm()
		got = append(got, r.Method+" "+r.URL.Path+" "+r.Form.Encode())
		nothing(w)
	})
	for name, err := range everyCall(t.Context(), c) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	want := strings.Split(strings.TrimSpace(`
DELETE /api2/json/nodes/pve1/qemu/100 destroy-unreferenced-disks=0&purge=1
DELETE /api2/json/nodes/pve1/qemu/100/snapshot/s2 
DELETE /api2/json/nodes/pve1/storage/local/content/local:100/vm-100-disk-1.qcow2 
GET /api2/json/access/permissions 
GET /api2/json/cluster/ha/resources 
GET /api2/json/cluster/resources type=vm
GET /api2/json/cluster/status 
GET /api2/json/nodes 
GET /api2/json/nodes/pve1/capabilities/qemu/machines 
GET /api2/json/nodes/pve1/qemu/100/config current=1
GET /api2/json/nodes/pve1/qemu/100/feature feature=snapshot
GET /api2/json/nodes/pve1/qemu/100/snapshot 
GET /api2/json/nodes/pve1/qemu/100/status/current 
GET /api2/json/nodes/pve1/storage 
GET /api2/json/nodes/pve1/storage/local/content content=images&vmid=100
GET /api2/json/nodes/pve1/tasks limit=10&since=1795330000&source=all&typefilter=qmclone&vmid=100
GET /api2/json/nodes/pve1/tasks/UPID:pve1:000025CB:00038BCD:6B028ED1:qmcreate:100:virtrigaud@pve!agent:/log limit=1000&start=0
GET /api2/json/nodes/pve1/tasks/UPID:pve1:000025CB:00038BCD:6B028ED1:qmcreate:100:virtrigaud@pve!agent:/status 
GET /api2/json/version 
POST /api2/json/nodes/pve1/qemu ide2=local%3Aiso%2Fx.iso%2Cmedia%3Dcdrom&name=new&pool=p&scsi0=local%3A8&vmid=102
POST /api2/json/nodes/pve1/qemu/100/clone description=d&format=qcow2&full=1&name=web-1&newid=101&pool=p&snapname=s1&storage=local&target=pve2
POST /api2/json/nodes/pve1/qemu/100/config digest=b518d6c7b32f51e84a1f0af8b1c1c92c77b3fd45&scsi2=local%3A8%2Cserial%3Ddata
POST /api2/json/nodes/pve1/qemu/100/migrate online=1&target=pve2&with-local-disks=1
POST /api2/json/nodes/pve1/qemu/100/snapshot description=d&snapname=s1&vmstate=1
POST /api2/json/nodes/pve1/qemu/100/snapshot/s3/rollback 
POST /api2/json/nodes/pve1/qemu/100/status/reboot timeout=90
POST /api2/json/nodes/pve1/qemu/100/status/shutdown forceStop=1&timeout=90
POST /api2/json/nodes/pve1/qemu/100/status/start 
POST /api2/json/nodes/pve1/qemu/100/status/stop 
PUT /api2/json/nodes/pve1/qemu/100/config cores=2&delete=net1&digest=b518d6c7b32f51e84a1f0af8b1c1c92c77b3fd45&scsi1=local%3A1
PUT /api2/json/nodes/pve1/qemu/100/resize disk=scsi0&size=40G`), "\n")
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestEveryCallFitsTheSchema compares all calls with PVE's own description of them.
func TestEveryCallFitsTheSchema(t *testing.T) {
	file := os.Getenv("PVE_API_SCHEMA")
	if file == "" {
		t.Skip("skipped: needs a PVE call schema; enable with: export PVE_API_SCHEMA=/path/to/9.1.json")
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]map[string]methodSchema
	if err := json.Unmarshal(raw, &schema); err != nil {
		t.Fatal(err)
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		if err := fits(schema, r.Method, strings.TrimPrefix(r.URL.Path, "/api2/json"), r.Form); err != nil {
			t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
		}
		nothing(w)
	})
	for name, err := range everyCall(t.Context(), c) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type methodSchema struct {
	Parameters struct {
		Properties map[string]struct {
			Type     string   `json:"type"`
			Enum     []string `json:"enum"`
			Optional Int      `json:"optional"`
		} `json:"properties"`
	} `json:"parameters"`
}

var schemaParam = regexp.MustCompile(`\\\{(\w+)\\\}`)

// fits checks parameters' names and types; numbered ones stand in the schema as "net[n]".
func fits(schema map[string]map[string]methodSchema, method, path string, params url.Values) error {
	for p, methods := range schema {
		// A volume id, which comes last, holds slashes.
		re := "^" + strings.ReplaceAll(schemaParam.ReplaceAllString(regexp.QuoteMeta(p), `(?P<$1>[^/]+)`), `(?P<volume>[^/]+)`, `(?P<volume>.+)`) + "$"
		m := regexp.MustCompile(re).FindStringSubmatch(path)
		call, ok := methods[method]
		if m == nil || !ok {
			continue
		}
		return fitsCall(call, regexp.MustCompile(re).SubexpNames(), params)
	}
	return fmt.Errorf("no such call")
}

func fitsCall(call methodSchema, inPath []string, params url.Values) error {
	digits := regexp.MustCompile(`\d+$`)
	for k, v := range params {
		prop, ok := call.Parameters.Properties[k]
		if !ok {
			prop, ok = call.Parameters.Properties[digits.ReplaceAllString(k, "[n]")]
		}
		if !ok {
			return fmt.Errorf("no parameter %s", k)
		}
		if prop.Type == "integer" || prop.Type == "boolean" {
			if _, err := strconv.Atoi(v[0]); err != nil {
				return fmt.Errorf("%s is no %s: %q", k, prop.Type, v[0])
			}
		}
		if len(prop.Enum) > 0 && !slices.Contains(prop.Enum, v[0]) {
			return fmt.Errorf("%s is none of %v: %q", k, prop.Enum, v[0])
		}
	}
	for k, prop := range call.Parameters.Properties {
		if prop.Optional == 0 && !params.Has(k) && !slices.Contains(inPath, k) {
			return fmt.Errorf("parameter %s is missing", k)
		}
	}
	return nil
}

func TestResizeOfOldAndNewVersions(t *testing.T) {
	for body, want := range map[string]UPID{
		`{"data":null}`: "", // 7.4
		`{"data":"UPID:pve1:00003206:00041CD2:6B029045:resize:100:virtrigaud@pve!agent:"}`: "UPID:pve1:00003206:00041CD2:6B029045:resize:100:virtrigaud@pve!agent:",
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { ok(w, body) })
		u, err := c.Resize(t.Context(), "pve1", 100, "scsi0", "+64M")
		if err != nil || u != want {
			t.Errorf("%s: %q %v", body, u, err)
		}
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) { t.Errorf("asked %s", r.URL) })
	if err := c.Wait(t.Context(), ""); err != nil {
		t.Errorf("wait for nothing: %v", err)
	}
}

func TestAnswersThatAreNotWhatTheAPIDescribes(t *testing.T) {
	for _, body := range []string{"", "<html>", `{"data":"hello"}`, `{"data":[1]}`, `{"data":{"version":`} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { ok(w, body) })
		_, err := c.Start(t.Context(), "pve1", 100)
		if err == nil || !Uncertain(err) || KindOf(err) != KindUnreachable {
			t.Errorf("%q: %v", body, err)
		}
		if _, err := c.Nodes(t.Context()); err == nil {
			t.Errorf("%q is a list of nodes", body)
		}
	}
}

func TestErrorBodiesThatAreNot(t *testing.T) {
	for _, tc := range []struct{ reason, body, want string }{
		{"VM is locked (backup)", "", "VM is locked (backup)"},
		{"VM is locked (backup)", "<html>", "VM is locked (backup)"},
		{"x", `{"message":"VM is locked (backup)\n"}`, "VM is locked (backup)"},
		{"x", `{"message":"two\nlines\n","errors":{"a":["b",1]}}`, "two\nlines"},
		{"", "", ""},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) { writeRaw(w, 500, tc.reason, tc.body) })
		err := c.Call(t.Context(), http.MethodPut, "/x", nil, nil)
		if said, ok := err.(*Error); !ok || said.Message != tc.want || said.Status != 500 { //nolint:errorlint // no wrapping here
			t.Errorf("%q %q: %#v", tc.reason, tc.body, err)
		}
	}
}

func TestPathsCannotLeaveTheirPlace(t *testing.T) {
	c := serve(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked %s", r.URL) })
	for _, node := range []string{"", ".", "..", "pve1/qemu/100/status"} {
		if _, err := c.Status(t.Context(), node, 100); err == nil {
			t.Errorf("node %q was asked", node)
		}
	}
	for _, path := range []string{"", "version", "/version?x=1", "/version#", "//x", "/x/", "/a\nb", "/%zz", "/a%2fb"} {
		if err := c.Call(t.Context(), http.MethodGet, path, nil, nil); err == nil {
			t.Errorf("path %q was asked", path)
		}
	}
	for _, volid := range []string{"", "local", "local:", ":x", "../x:y", "local:100/../x", "local:/x//y"} {
		if _, err := c.DeleteVolume(t.Context(), "pve1", volid); err == nil {
			t.Errorf("volume %q was deleted", volid)
		}
	}
	for _, u := range []UPID{"x", "UPID:../x:00000001:00000001:6B028ED1:t:1:u@pve:"} {
		if _, err := c.TaskStatus(t.Context(), u); err == nil {
			t.Errorf("task %q was asked", u)
		}
	}
}

func TestNamesAreEscaped(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api2/json/nodes/a b?c#d/qemu/100/status/current" || r.URL.RawQuery != "" || !strings.Contains(r.RequestURI, "a%20b%3Fc%23d") {
			t.Errorf("%q", r.RequestURI)
		}
		nothing(w)
	})
	if _, err := c.Status(t.Context(), "a b?c#d", 100); err != nil {
		t.Error(err)
	}
}

func TestPermissionsHas(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		ok(w, `{"data":{"/":{"Sys.Audit":1,"Pool.Audit":0},"/vms":{"VM.Audit":1},"/vms/100":{"VM.PowerMgmt":0}}}`)
	})
	p, err := c.Permissions(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path, priv string
		want       bool
	}{
		{"/", "Sys.Audit", true},
		{"/nodes/pve1", "Sys.Audit", true},
		{"/", "Pool.Audit", true},
		{"/pool/x", "Pool.Audit", false}, // not handed down
		{"/vms/100", "VM.PowerMgmt", true},
		{"/vms/100", "VM.Audit", false}, // what is listed for a path replaces what comes from above
		{"/vms/101", "VM.Audit", true},
		{"/vms/101", "Sys.Audit", false},
		{"relative", "Sys.Audit", false},
	} {
		if got := p.Has(tc.path, tc.priv); got != tc.want {
			t.Errorf("%s on %s: %v, want %v", tc.priv, tc.path, got, tc.want)
		}
	}
}

func TestObserve(t *testing.T) {
	type seen struct {
		Method, Path string
		Status       int
	}
	var got []seen
	observe := func(c *Config) {
		c.Observe = func(method, path string, status int, d time.Duration) {
			if d <= 0 {
				t.Errorf("%s took %s", path, d)
			}
			got = append(got, seen{method, path, status})
		}
	}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			writeRaw(w, 595, "No route to host", "")
			return
		}
		nothing(w)
	}, observe)
	_, _ = c.Status(t.Context(), "pve1", 100)
	_, _ = c.Start(t.Context(), "pve2", 100)
	dead := client(t, "http://127.0.0.1:1", observe)
	_, _ = dead.Version(t.Context())
	want := []seen{
		{"GET", "/nodes/{node}/qemu/{vmid}/status/current", 200},
		{"POST", "/nodes/{node}/qemu/{vmid}/status/start", 595},
		{"GET", "/version", 0},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
