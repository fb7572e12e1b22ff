package pvesim_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// conn is one connection to a node's plain API.
type conn struct {
	t   *testing.T
	net net.Conn
	in  *bufio.Reader
}

func dial(t *testing.T, n *pvesim.Node) *conn {
	t.Helper()
	var d net.Dialer
	c, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(n.Daemon(), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &conn{t: t, net: c, in: bufio.NewReader(c)}
}

// get sends a request and reads the answer: its status (0 = the server
// closed) and whether it said that it would close.
func (c *conn) get(path string) (status int, last bool) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.net, "GET /api2/json%s HTTP/1.1\r\nHost: x\r\nAuthorization: PVEAPIToken=%s=%s\r\n\r\n",
		path, pvesim.TokenID, pvesim.TokenSecret); err != nil {
		return 0, true
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, true
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, true
	}
	return resp.StatusCode, resp.Close
}

// closed says whether the server has closed the connection.
func (c *conn) closed() bool {
	c.t.Helper()
	if err := c.net.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	_, err := c.in.ReadByte()
	return err != nil && !strings.Contains(err.Error(), "timeout")
}

func TestConnectionEndsAfter99Requests(t *testing.T) {
	c := dial(t, startCluster(t, nil).Node("pve1"))
	for i := 1; i <= 99; i++ {
		if status, last := c.get("/version"); status != http.StatusOK || last != (i == 99) {
			t.Fatalf("request %d: %d, last %v", i, status, last)
		}
	}
	if !c.closed() {
		t.Error("still open after 99 requests")
	}
}

func TestConnectionEndsAfterAnError(t *testing.T) {
	c := dial(t, startCluster(t, nil).Node("pve1"))
	if status, last := c.get("/nodes/pve1/qemu/999/config"); status != http.StatusInternalServerError || !last {
		t.Fatal(status, last)
	}
	if !c.closed() {
		t.Error("still open after a 500")
	}
}

func TestConnectionEndsWhenIdle(t *testing.T) {
	c := dial(t, startCluster(t, func(cfg *pvesim.Config) { cfg.IdleTimeout = 50 * time.Millisecond }).Node("pve1"))
	if status, last := c.get("/version"); status != http.StatusOK || last {
		t.Fatal(status, last)
	}
	if !c.closed() {
		t.Error("still open")
	}
}

func TestAuthentication(t *testing.T) {
	delay := 30 * time.Millisecond
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.AuthDelay = delay })
	for token, reason := range map[string]string{
		"":                                    "No ticket",
		pvesim.TokenID + "=wrong":             "Authentication failed!",
		"nobody@pve!x=" + pvesim.TokenSecret:  "Authentication failed!",
		"PVEAuthCookie=" + pvesim.TokenSecret: "Authentication failed!",
	} {
		cl := newClient(t, c, "pve1")
		cl.token = token
		began := time.Now()
		r := cl.do("GET /version", "")
		if r.Status != 401 || r.Reason != reason || r.Body != "" {
			t.Errorf("%q: %d %s %q, want 401 %s and no body", token, r.Status, r.Reason, r.Body, reason)
		}
		if time.Since(began) < delay {
			t.Errorf("%q: answered at once", token)
		}
	}
}

// login gets a ticket.
func (cl *client) login(user, password string) (ticket, csrf string) {
	cl.t.Helper()
	cl.token = ""
	var out struct{ Ticket, CSRFPreventionToken, Username string }
	r := cl.do("POST /access/ticket", url.Values{"username": {user}, "password": {password}}.Encode())
	if r.Status != http.StatusOK {
		cl.t.Fatalf("login: %d %s", r.Status, r.Body)
	}
	if err := json.Unmarshal(r.Data, &out); err != nil || out.Username != user {
		cl.t.Fatalf("login: %s: %v", r.Data, err)
	}
	return out.Ticket, out.CSRFPreventionToken
}

func (cl *client) withTicket(method, path, params, ticket, csrf string) reply {
	cl.t.Helper()
	req, err := http.NewRequestWithContext(cl.t.Context(), method, cl.base+"/api2/json"+path, strings.NewReader(params))
	if err != nil {
		cl.t.Fatal(err)
	}
	req.AddCookie(&http.Cookie{Name: "PVEAuthCookie", Value: url.QueryEscape(ticket)}) //nolint:gosec // of a client
	if params != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if csrf != "" {
		req.Header.Set("CSRFPreventionToken", csrf)
	}
	return cl.send(req)
}

func TestTicket(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	ticket, csrf := cl.login(pvesim.RootUser, pvesim.RootPassword)
	if r := cl.withTicket("GET", "/version", "", ticket, ""); r.Status != 200 {
		t.Errorf("GET: %d %s", r.Status, r.Reason)
	}
	const conf = "/nodes/pve1/qemu/100/config"
	for sent, want := range map[string]string{"": "Permission denied - invalid csrf token", "x": "Permission denied - invalid csrf token", csrf: "OK"} {
		// args is for root@pam with a ticket alone.
		if r := cl.withTicket("PUT", conf, "args=-no-hpet", ticket, sent); r.Reason != want {
			t.Errorf("PUT with CSRF token %q: %d %s, want %s", sent, r.Status, r.Reason, want)
		}
	}
	cl.base = c.Node("pve1").Daemon()
	if r := cl.withTicket("PUT", conf, "args=-no-hpet", ticket, ""); r.Status != 200 {
		t.Errorf("PUT to pvedaemon: %d %s", r.Status, r.Reason)
	}
	cl.base = c.Node("pve1").API()
	if r := cl.withTicket("GET", "/version", "", "PVE:root@pam:00000000::x", ""); r.Status != 401 {
		t.Errorf("forged ticket: %d %s", r.Status, r.Reason)
	}
	if r := cl.do("POST /access/ticket", "username=root@pam&password=no"); r.Status != 401 || r.Reason != "authentication failure" {
		t.Errorf("wrong password: %d %s", r.Status, r.Reason)
	}
	// A ticket renews itself.
	if again, _ := cl.login(pvesim.RootUser, ticket); again == "" {
		t.Error("no ticket for a ticket")
	}
}

func TestTicketExpires(t *testing.T) {
	c := startCluster(t, func(cfg *pvesim.Config) { cfg.TicketLife = time.Nanosecond })
	cl := newClient(t, c, "pve1")
	ticket, _ := cl.login(pvesim.User, pvesim.UserPassword)
	if r := cl.withTicket("GET", "/version", "", ticket, ""); r.Status != 401 || r.Reason != "Authentication failed!" {
		t.Errorf("%d %s", r.Status, r.Reason)
	}
}

func TestPrivileges(t *testing.T) {
	c := lab(t, nil)
	c.AddToken("virtrigaud@pve!none", "s", pvesim.ACL{})
	c.AddToken("virtrigaud@pve!audit", "s", pvesim.ACL{"/": {"VM.Audit", "Sys.Audit", "Datastore.Audit"}})
	c.AddToken("virtrigaud@pve!clone", "s", pvesim.ACL{"/vms": {"VM.Clone", "VM.Allocate", "VM.Audit"}, "/vms/901": {"VM.Audit"}})
	c.AddToken("virtrigaud@pve!space", "s", pvesim.ACL{"/vms": {"VM.Clone", "VM.Allocate"}, "/storage/local": {"Datastore.AllocateSpace"}})
	upid := newClient(t, c, "pve1").must("POST /nodes/pve1/qemu/100/status/stop", "").Data
	task := strings.Trim(string(upid), `"`)
	for _, tc := range []struct{ token, call, params, want string }{
		{"none", "GET " + vm100 + "/status/current", "", "Permission check failed (/vms/100, VM.Audit)"},
		{"none", "POST " + vm100 + "/status/start", "", "Permission check failed (/vms/100, VM.PowerMgmt)"},
		{"none", "GET /cluster/resources", "type=vm", "OK"},
		{"audit", "POST " + vm100 + "/status/start", "", "Permission check failed (/vms/100, VM.PowerMgmt)"},
		{"audit", "PUT " + vm100 + "/config", "memory=512", "Permission check failed (/vms/100, VM.Config.Disk|VM.Config.CDROM|VM.Config.CPU|VM.Config.Memory|VM.Config.Network|VM.Config.HWType|VM.Config.Options|VM.Config.Cloudinit)"},
		{"audit", "POST /nodes/pve1/qemu", "vmid=131&memory=128", "Permission check failed"},
		{"none", "GET /nodes/pve1/tasks/" + task + "/status", "", "Permission check failed (/nodes/pve1, Sys.Audit)"},
		{"audit", "GET /nodes/pve1/tasks/" + task + "/status", "", "OK"},
		{"clone", "POST /nodes/pve1/qemu/901/clone", "newid=120", "Permission check failed (/vms/901, VM.Clone)"},
		{"clone", "POST /nodes/pve1/qemu/900/clone", "newid=120", "Permission check failed (/storage/local, Datastore.AllocateSpace)"},
		{"space", "POST /nodes/pve1/qemu/900/clone", "newid=120", "Permission check failed (/sdn/zones/localnetwork/vmbr0, SDN.Use)"},
		{"none", "GET /nodes/pve1/storage/local/content", "", "Permission check failed (/storage/local, Datastore.Audit|Datastore.AllocateSpace)"},
	} {
		cl := newClient(t, c, "pve1")
		cl.token = "virtrigaud@pve!" + tc.token + "=s"
		r := cl.do(tc.call, tc.params)
		status := map[bool]int{true: 200, false: 403}[tc.want == "OK"]
		if r.Status != status || r.Reason != tc.want {
			t.Errorf("%s %s: %d %s, want %d %s", tc.token, tc.call, r.Status, r.Reason, status, tc.want)
		}
	}
	cl := newClient(t, c, "pve1")
	cl.token = "virtrigaud@pve!none=s"
	if r := cl.do("GET /cluster/resources", "type=vm"); string(r.Data) != "[]" {
		t.Errorf("resources without privilege: %s", r.Data)
	}
	if r := cl.do("GET /nodes/pve1/tasks", "vmid=100"); string(r.Data) != "[]" {
		t.Errorf("tasks of others: %s", r.Data)
	}
	cl.token = "virtrigaud@pve!clone=s"
	var perms map[string]map[string]int
	if err := json.Unmarshal(cl.do("GET /access/permissions", "").Data, &perms); err != nil {
		t.Fatal(err)
	}
	if perms["/vms"]["VM.Clone"] != 1 || perms["/vms/901"]["VM.Clone"] != 0 || perms["/"] != nil {
		t.Errorf("permissions: %v", perms)
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]struct{ resize, agent string }{
		"7.4": {"null", "VM.Monitor"},
		"8.4": {`"UPID:`, "VM.Monitor"},
		"9.1": {`"UPID:`, "VM.GuestAgent.Audit|VM.GuestAgent.Unrestricted"},
	} {
		c := startCluster(t, func(cfg *pvesim.Config) { cfg.Version = version })
		cl := newClient(t, c, "pve1")
		var v struct{ Release string }
		if err := json.Unmarshal(cl.do("GET /version", "").Data, &v); err != nil || v.Release != version {
			t.Errorf("%s: release %q %v", version, v.Release, err)
		}
		if r := cl.do("PUT /nodes/pve2/qemu/101/resize", "disk=scsi0&size=%2B1G"); !strings.HasPrefix(string(r.Data), want.resize) {
			t.Errorf("%s: resize %d %s, want %s", version, r.Status, r.Body, want.resize)
		}
		if r := cl.do("GET /nodes/pve2/qemu/101/config", ""); !strings.Contains(r.Body, `"agent":"1"`) {
			t.Errorf("%s: config %s", version, r.Body)
		}
		c.AddToken("x@pve!x", "s", pvesim.ACL{})
		cl.token = "x@pve!x=s"
		if r := cl.do("POST /nodes/pve1/qemu/100/agent/ping", ""); r.Reason != "Permission check failed (/vms/100, "+want.agent+")" {
			t.Errorf("%s: agent %d %s", version, r.Status, r.Reason)
		}
	}
}

func TestFaults(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	c.Fail(pvesim.Match("GET", "/nodes/*/qemu/*/config"), 500, "boom", 2)
	for i, want := range []int{500, 500, 200} {
		if r := cl.do("GET /nodes/pve1/qemu/100/config", ""); r.Status != want {
			t.Errorf("%d: %d, want %d", i, r.Status, want)
		}
	}
	c.Fail(pvesim.Match("", "/version"), 595, "Connection refused", 1)
	if r := cl.do("GET /version", ""); r.Status != 595 || r.Reason != "Connection refused" || r.Body != "" {
		t.Errorf("%d %s %s", r.Status, r.Reason, r.Body)
	}
	// The answer is lost, the work is done.
	c.FailAfter(pvesim.Match("PUT", "/nodes/*/qemu/*/config"), 0, "", 1)
	req, err := http.NewRequestWithContext(t.Context(), "PUT", cl.base+"/api2/json/nodes/pve1/qemu/100/config", strings.NewReader("tags=lost"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Authorization", "PVEAPIToken="+cl.token)
	if resp, err := cl.http.Do(req); err == nil {
		_ = resp.Body.Close()
		t.Errorf("got an answer: %s", resp.Status)
	}
	if conf, err := c.Config(100); err != nil || conf["tags"] != "lost" {
		t.Errorf("tags %q %v", conf["tags"], err)
	}
	if n := c.Requests()["GET /nodes/{node}/qemu/{vmid}/config"]; n != 1 {
		t.Errorf("%d configs counted, want 1", n)
	}
}

func TestOfflineNode(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	if !c.Running(102) {
		t.Fatal("VM 102 does not run")
	}
	if err := c.SetOnline("pve3", false); err != nil {
		t.Fatal(err)
	}
	if r := cl.do("GET /nodes/pve3/qemu/102/status/current", ""); r.Status != 595 || r.Reason != "No route to host" || r.Body != "" {
		t.Errorf("%d %s %q", r.Status, r.Reason, r.Body)
	}
	var d net.Dialer
	if conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(c.Node("pve3").API(), "https://")); err == nil {
		_ = conn.Close()
		t.Error("the offline node accepts connections")
	}
	var nodes []struct{ Node, Status string }
	if err := json.Unmarshal(cl.do("GET /nodes", "").Data, &nodes); err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(nodes, func(n struct{ Node, Status string }) bool { return n.Status == "offline" }); i < 0 || nodes[i].Node != "pve3" {
		t.Errorf("%+v", nodes)
	}
	if err := c.SetOnline("pve3", true); err != nil {
		t.Fatal(err)
	}
	if r := newClient(t, c, "pve3").do("GET /nodes/pve3/qemu/102/status/current", ""); r.Status != 200 || !strings.Contains(r.Body, `"stopped"`) {
		t.Errorf("back again: %d %s", r.Status, r.Body)
	}
}
