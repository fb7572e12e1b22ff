package pve

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestNewRefuses(t *testing.T) {
	good := Config{Endpoint: "https://127.0.0.1:8006", TokenID: testToken, TokenSecret: testSecret}
	garbage := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(garbage, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no endpoint":         {func(c *Config) { c.Endpoint = "" }, "https://host:8006"},
		"no scheme":           {func(c *Config) { c.Endpoint = "127.0.0.1:8006" }, "endpoint"},
		"ftp":                 {func(c *Config) { c.Endpoint = "ftp://127.0.0.1" }, "neither"},
		"plain to a name":     {func(c *Config) { c.Endpoint = "http://pve1:85" }, "this machine"},
		"plain to an address": {func(c *Config) { c.Endpoint = "http://10.77.0.11:85" }, "this machine"},
		"plain to everywhere": {func(c *Config) { c.Endpoint = "http://0.0.0.0:85" }, "this machine"},
		"a path":              {func(c *Config) { c.Endpoint = "https://127.0.0.1:8006/api2/json" }, "https://host:8006"},
		"a user":              {func(c *Config) { c.Endpoint = "https://root:" + testSecret + "@127.0.0.1" }, "https://host:8006"},
		"not a URL":           {func(c *Config) { c.Endpoint = "https://%zz" + testSecret }, "not a URL"},
		"no credentials":      {func(c *Config) { c.TokenID = "" }, "no credentials"},
		"bad token id":        {func(c *Config) { c.TokenID = "root@pam" }, "user@realm!name"},
		"token with newline":  {func(c *Config) { c.TokenID = testToken + "\n" }, "user@realm!name"},
		"no secret":           {func(c *Config) { c.TokenSecret = "" }, "no secret"},
		"bad user":            {func(c *Config) { c.TokenID, c.Username = "", "root" }, "user@realm"},
		"no password":         {func(c *Config) { c.TokenID, c.Username = "", "root@pam" }, "no password"},
		"no CA file":          {func(c *Config) { c.CAFile = "/nonexistent/ca.pem" }, "/nonexistent/ca.pem"},
		"garbage CA file":     {func(c *Config) { c.CAFile = garbage }, "no certificate"},
		"garbage CA":          {func(c *Config) { c.CAPEM = []byte("x") }, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			c, err := New(cfg)
			if err == nil {
				c.Close()
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), testSecret) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	for in, want := range map[string]string{
		"https://127.0.0.1":      "https://127.0.0.1:8006/api2/json",
		"https://pve1.lan:443/":  "https://pve1.lan:443/api2/json",
		"https://[fd00::1]":      "https://[fd00::1]:8006/api2/json",
		"http://127.0.0.1":       "http://127.0.0.1:85/api2/json",
		"http://localhost:85":    "http://localhost:85/api2/json",
		"http://[::1]:85":        "http://[::1]:85/api2/json",
		"http://127.8.9.1:8085/": "http://127.8.9.1:8085/api2/json",
	} {
		c := client(t, in, func(c *Config) {
			if strings.HasPrefix(in, "http:") {
				c.CAFile = "/nonexistent/ca.pem" // not needed, so not missed
			}
		})
		if c.base != want {
			t.Errorf("%s: %s, want %s", in, c.base, want)
		}
	}
}

// tlsServer is an API with a certificate of its own CA for example.com and 127.0.0.1.
func tlsServer(t *testing.T) (endpoint string, ca []byte) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { ok(w, versionBody) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are what is tested
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
}

func TestTLSIsVerified(t *testing.T) {
	endpoint, ca := tlsServer(t)
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join("testdata", "other-ca.pem")
	for name, tc := range map[string]struct {
		with func(*Config)
		want []string // in the error; none: it works
	}{
		"its CA, in memory": {func(c *Config) { c.CAPEM = ca }, nil},
		"its CA, in a file": {func(c *Config) { c.CAFile = file }, nil},
		"its other name":    {func(c *Config) { c.CAFile, c.ServerName = file, "example.com" }, nil},
		"skipped":           {func(c *Config) { c.InsecureSkipVerify = true }, nil},
		"the system's CAs":  {func(*Config) {}, []string{"the system's certificates", "unknown authority"}},
		"another CA":        {func(c *Config) { c.CAFile = other }, []string{other, "/etc/pve/pve-root-ca.pem", "unknown authority"}},
		"a name it has not": {func(c *Config) { c.CAFile, c.ServerName = file, "pve1" }, []string{file, "pve1"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := client(t, endpoint, tc.with)
			_, err := c.Version(t.Context())
			if len(tc.want) == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			_, changed := c.Start(t.Context(), "pve1", 100)
			if KindOf(err) != KindTLS || KindOf(changed) != KindTLS || Uncertain(changed) {
				t.Errorf("%v is %q; %v", err, KindOf(err), changed)
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestTLSToAPlainServer(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	c := client(t, strings.Replace(srv.URL, "http:", "https:", 1))
	if _, err := c.Version(t.Context()); KindOf(err) != KindTLS {
		t.Errorf("%v is %q", err, KindOf(err))
	}
}

func TestOtherCAIsOne(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("testdata", "other-ca.pem"))
	if err != nil || !x509.NewCertPool().AppendCertsFromPEM(raw) {
		t.Fatal(err)
	}
	cfg := Config{CAPEM: raw}
	conf, err := cfg.tlsConfig()
	if err != nil || conf.MinVersion != tls.VersionTLS12 || conf.InsecureSkipVerify || conf.RootCAs == nil {
		t.Errorf("%+v %v", conf, err)
	}
}
