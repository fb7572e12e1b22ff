package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is written by the program and read by the test.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// runIn runs the program until use has had it.
func runIn(t *testing.T, dir string, use func(env map[string]string), args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out output
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, append([]string{"--dir", dir, "--qemu", "fake", "--vms", "2", "--auth-delay", "-1s"}, args...), &out, &out)
	}()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
			break
		}
		select {
		case err := <-done:
			return out.String(), err
		case <-tick.C:
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[k] = strings.Trim(v, "'")
	}
	use(env)
	cancel()
	err = <-done
	return out.String(), err
}

func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "pr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func status(t *testing.T, url, token string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "PVEAPIToken="+token)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func TestRunTwice(t *testing.T) {
	dir := tempDir(t)
	for range 2 {
		out, err := runIn(t, dir, func(env map[string]string) {
			for token, want := range map[string]int{
				pvesim.TokenID + "=" + pvesim.TokenSecret: 200, "x@pve!all=s1": 200, "x@pve!few=s2": 403, "x@pve!none=s3": 401,
			} {
				if got := status(t, env["PVE2_DAEMON"]+"/api2/json/nodes/pve2/status", token); got != want {
					t.Errorf("%s: %d, want %d", token, got, want)
				}
			}
		}, "--token", "x@pve!all=s1", "--token", "x@pve!few=s2=/vms:VM.Audit,VM.PowerMgmt;/storage:Datastore.Audit")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"virtual machines: fake", "/etc/pve: dir", "schema: requests are", "pve3: api https://127."} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in:\n%s", want, out)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "ready")); err == nil {
		t.Error("still called ready after the end")
	}
}

// TestOtherNetworks: nodes whose addresses are in networks of their own, with their API and the control API here.
func TestOtherNetworks(t *testing.T) {
	out, err := runIn(t, tempDir(t), func(env map[string]string) {
		if env["PVE2_GRPC"] != "10.99.0.2:9443" || env["PVE3_GOSSIP"] != "10.99.0.3:7946" || !strings.HasPrefix(env["PVE1_API"], "https://127.0.0.1:") {
			t.Errorf("%v", env)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, env["PVESIM_CONTROL"]+"/do", strings.NewReader("node pve2 off\n"))
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != 200 {
			t.Errorf("%d %v", resp.StatusCode, err)
		}
	}, "--addresses", "10.99.0.1,10.99.0.2,10.99.0.3", "--api-host", "127.0.0.1")
	if err != nil || !strings.Contains(out, "control: http://127.0.0.1:") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestSchemaErrorsFailTheRun(t *testing.T) {
	if os.Getenv("PVE_API_SCHEMA") == "" {
		t.Skip("skipped: needs PVE's call schema; enable with: export PVE_API_SCHEMA=<directory>/9.1.json")
	}
	_, err := runIn(t, tempDir(t), func(env map[string]string) {
		if got := status(t, env["PVE1_DAEMON"]+"/api2/json/nodes/pve1/qemu?nosuch=1", pvesim.TokenID+"="+pvesim.TokenSecret); got != 400 {
			t.Errorf("%d", got)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "1 requests did not fit the schema") {
		t.Errorf("%v", err)
	}
}

func TestBadFlags(t *testing.T) {
	full := tempDir(t)
	if err := os.WriteFile(filepath.Join(full, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		args []string
		want string
	}{
		{[]string{}, "no directory given"},
		{[]string{"--dir", full}, "is not empty"},
		{[]string{"--dir", "/tmp/x", "more"}, `unexpected argument "more"`},
		{[]string{"--dir", "/tmp/x", "--memory", "lots"}, `size "lots"`},
		{[]string{"--dir", "/tmp/x", "--pve-version", "6.4"}, "want 7.x, 8.x or 9.x"},
		{[]string{"--dir", "/tmp/x", "--schema", "/nonexistent"}, "no such file"},
		{[]string{"--dir", "/tmp/x", "--token", "nonsense"}, "want user@realm!name=secret"},
		{[]string{"--dir", "/tmp/x", "--user", "nobody=x"}, "want user@realm=password"},
		{[]string{"--dir", "/tmp/x", "--first-vmid", "8950"}, "are the templates'"},
		{[]string{"--dir", "/tmp/x", "--qemu", "maybe"}, `qemu "maybe"`},
		{[]string{"--dir", "/tmp/x", "--addresses", "10.0.0.1,here"}, "--addresses: "},
		{[]string{"--dir", "/tmp/x", "--addresses", "10.0.0.1,10.0.0.2"}, "2 addresses for 3 nodes"},
		{[]string{"--dir", "/tmp/x", "--api-host", "here"}, "--api-host: "},
		{[]string{"--dir", "/tmp/x", "--pmxcfs", "nfs"}, `pmxcfs "nfs"`},
	} {
		var out output
		if err := run(t.Context(), tc.args, &out, &out); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.args, err, tc.want)
		}
	}
}
