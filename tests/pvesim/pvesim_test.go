package pvesim_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startCluster starts a small cluster of stand-ins without waiting times.
func startCluster(t *testing.T, change func(*pvesim.Config)) *pvesim.Cluster {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	cfg := pvesim.Config{
		Dir: dir, VMs: 4, QEMU: pvesim.Fake, Version: "9.1", AuthDelay: -1, AgentWait: 200 * time.Millisecond,
		PollUnit: 50 * time.Millisecond, HADelay: time.Millisecond, Scan: 20 * time.Millisecond,
	}
	if change != nil {
		change(&cfg)
	}
	c, err := pvesim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// client speaks HTTP to one node.
type client struct {
	t     *testing.T
	c     *pvesim.Cluster
	base  string
	http  *http.Client
	token string
}

func newClient(t *testing.T, c *pvesim.Cluster, node string) *client {
	t.Helper()
	pem, err := os.ReadFile(c.CAFile())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	t.Cleanup(tr.CloseIdleConnections)
	return &client{
		t: t, c: c, base: c.Node(node).API(), http: &http.Client{Transport: tr},
		token: pvesim.TokenID + "=" + pvesim.TokenSecret,
	}
}

// reply is an answer of the API.
type reply struct {
	Status  int
	Reason  string
	Body    string
	Data    json.RawMessage   `json:"data"`
	Total   int               `json:"total"`
	Message string            `json:"message"`
	Errors  map[string]string `json:"errors"`
	Header  http.Header
}

// do sends a request: "PUT /nodes/pve1/qemu/100/config", "cores=2&name=x".
func (cl *client) do(call, params string) reply {
	cl.t.Helper()
	method, path, _ := strings.Cut(call, " ")
	u := cl.base + "/api2/json" + path
	var body io.Reader
	if method == http.MethodGet || method == http.MethodDelete {
		if params != "" {
			u += "?" + params
		}
	} else {
		body = strings.NewReader(params)
	}
	req, err := http.NewRequestWithContext(cl.t.Context(), method, u, body)
	if err != nil {
		cl.t.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	if cl.token != "" {
		req.Header.Set("Authorization", "PVEAPIToken="+cl.token)
	}
	return cl.send(req)
}

func (cl *client) send(req *http.Request) reply {
	cl.t.Helper()
	resp, err := cl.http.Do(req)
	if err != nil {
		cl.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		cl.t.Fatal(err)
	}
	r := reply{Status: resp.StatusCode, Body: string(b), Header: resp.Header}
	r.Reason = strings.TrimPrefix(resp.Status, strings.Fields(resp.Status)[0]+" ")
	if len(b) > 0 {
		if err := json.Unmarshal(b, &r); err != nil {
			cl.t.Fatalf("%s: %s: %v", req.URL, b, err)
		}
	}
	return r
}

// task sends a request, waits for its task and returns the exit status and log.
func (cl *client) task(call, params string) (exit string, log []string) {
	cl.t.Helper()
	r := cl.do(call, params)
	if r.Status != http.StatusOK {
		cl.t.Fatalf("%s %s: %d %s", call, params, r.Status, r.Body)
	}
	var upid string
	if err := json.Unmarshal(r.Data, &upid); err != nil {
		cl.t.Fatalf("%s: %s", call, r.Data)
	}
	return cl.wait(upid)
}

func (cl *client) wait(upid string) (exit string, log []string) {
	cl.t.Helper()
	for _, task := range cl.c.Tasks() {
		if task.UPID == upid {
			<-task.Done()
		}
	}
	path := "/nodes/" + strings.Split(upid, ":")[1] + "/tasks/" + url.PathEscape(upid)
	var st struct{ Status, Exitstatus string }
	if err := json.Unmarshal(cl.do("GET "+path+"/status", "").Data, &st); err != nil {
		cl.t.Fatal(err)
	}
	if st.Status != "stopped" {
		cl.t.Fatalf("%s: %+v", upid, st)
	}
	var lines []struct{ T string }
	if err := json.Unmarshal(cl.do("GET "+path+"/log", "limit=500").Data, &lines); err != nil {
		cl.t.Fatal(err)
	}
	for _, l := range lines {
		log = append(log, l.T)
	}
	return st.Exitstatus, log
}

func TestLife(t *testing.T) {
	c := startCluster(t, nil)
	cl := newClient(t, c, "pve1")
	for _, step := range []struct{ call, params, exit string }{
		{"POST /nodes/pve1/qemu/9000/clone", "newid=120&name=web", "OK"},
		{"POST /nodes/pve1/qemu/120/status/start", "", "OK"},
		{"POST /nodes/pve1/qemu/120/status/start", "", "VM 120 already running"},
		{"POST /nodes/pve1/qemu/120/status/shutdown", "", "OK"},
		{"POST /nodes/pve1/qemu/120/status/stop", "", "OK"},
		{"PUT /nodes/pve1/qemu/120/resize", "disk=scsi0&size=1G", "OK"},
		{"DELETE /nodes/pve1/qemu/120", "purge=1", "OK"},
	} {
		if exit, log := cl.task(step.call, step.params); exit != step.exit {
			t.Errorf("%s: %s, want %s\n%s", step.call, exit, step.exit, strings.Join(log, "\n"))
		}
	}
	if r := cl.do("GET /nodes/pve1/qemu/120/config", ""); r.Status != 500 {
		t.Errorf("config of a destroyed VM: %d %s", r.Status, r.Body)
	}
}
