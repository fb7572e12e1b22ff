package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// withUserData makes a VM from the template on shared storage, which can be moved.
func withUserData(name string) *providerpb.CreateRequest {
	return request(name, from("9001"), func(r *providerpb.CreateRequest) { r.UserData = []byte("#cloud-config\nhostname: " + name + "\n") })
}

// having returns the nodes that have all of these volumes of local.
func (s *stage) having(volumes ...string) string {
	var nodes []string
	for _, n := range s.sim.Nodes() {
		lacks := func(volume string) bool {
			_, err := os.Stat(filepath.Join(s.rig.Dir, n.Name, "vz", strings.TrimPrefix(volume, "local:")))
			return err != nil
		}
		if len(volumes) > 0 && !slices.ContainsFunc(volumes, lacks) {
			nodes = append(nodes, n.Name)
		}
	}
	return strings.Join(nodes, " ")
}

// snippets are the volumes that a value of cicustom names.
func snippets(custom string) (volumes []string) {
	for part := range strings.SplitSeq(custom, ",") {
		if _, volume, ok := strings.Cut(part, "="); ok {
			volumes = append(volumes, volume)
		}
	}
	return volumes
}

// namings returns, for each request from now on that makes a config name snippets, who has them at that moment.
func (s *stage) namings() func() []string {
	var mu sync.Mutex // guards seen
	var seen []string
	s.sim.BeforeRequest(func(_ string, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/config") || r.Method == http.MethodGet {
			return
		}
		body, err := io.ReadAll(r.Body)
		s.check(err)
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, err := url.ParseQuery(string(body))
		s.check(err)
		if custom := form.Get("cicustom"); custom != "" {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, s.having(snippets(custom)...))
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

// TestSnippetsAreOnAllNodes before a config names them, so that the VM starts wherever it is; and no client gets at them.
func TestSnippetsAreOnAllNodes(t *testing.T) {
	t.Parallel()
	c := assemble(t, secure)
	namings := c.namings()
	id := c.at["pve2"].create(withUserData("web-01"))
	if got := namings(); !slices.Equal(got, []string{"pve1 pve2 pve3"}) {
		t.Errorf("when the config came to name them, these had them: %q", got)
	}
	c.isSnippet(c.snippet(id, "user"), []byte("#cloud-config\nhostname: web-01\n"))
	c.must(c.sim.MoveVM(10000, "pve3"))
	c.at["pve1"].on(id)

	volume := c.snippet(id, "user")
	forged := metadata.AppendToOutgoingContext(c.ctx, "pve-rigaud-forwarded-by", "pve2", "pve-rigaud-client-bin", "somebody-else")
	client := peerpb.NewPeerClient(c.agent.Conn)
	for _, ctx := range []struct {
		name string
		put  func() error
		get  func() (*peerpb.GetSnippetResponse, error)
	}{
		{"a client", func() error {
			_, err := client.PutSnippet(c.ctx, &peerpb.PutSnippetRequest{Volume: volume})
			return err
		}, func() (*peerpb.GetSnippetResponse, error) {
			return client.GetSnippet(c.ctx, &peerpb.GetSnippetRequest{Volume: volume})
		}},
		{"one that claims to be an agent", func() error {
			_, err := client.PutSnippet(forged, &peerpb.PutSnippetRequest{Volume: volume})
			return err
		}, func() (*peerpb.GetSnippetResponse, error) {
			return client.GetSnippet(forged, &peerpb.GetSnippetRequest{Volume: volume})
		}},
	} {
		refused(t, ctx.put(), codes.PermissionDenied)
		got, err := ctx.get()
		if refused(t, err, codes.PermissionDenied); len(got.GetContent()) > 0 {
			t.Errorf("%s gets what is secret", ctx.name)
		}
	}
}

// TestNodesThatMissSnippets: one without agent, and one that is down. Both have all when their agents are ready.
func TestNodesThatMissSnippets(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 3 }})
	s.startAgent()
	second := s.startAgentOn("pve2")
	first := s.create(withUserData("web-01")) // pve3 is online and has no agent
	files := snippets(s.config(first)["cicustom"])
	if got := s.having(files...); got != "pve1 pve2" {
		t.Errorf("without an agent on pve3 these have them: %s", got)
	}
	s.startAgentOn("pve3")
	if got := s.having(files...); got != "pve1 pve2 pve3" {
		t.Errorf("when the agent of pve3 is ready, these have them: %s", got)
	}
	s.must(second.Stop())
	s.must(s.sim.KillNode("pve2"))
	s.eventually("pve2 is offline", func() bool { return regexp.MustCompile(`"online": ?0`).Match(s.file("pve1", "own", ".members")) })
	id := s.create(withUserData("web-02"))
	files = snippets(s.config(id)["cicustom"])
	if got := s.having(files...); got != "pve1 pve3" {
		t.Errorf("without pve2 these have them: %s", got)
	}
	s.must(s.sim.ReviveNode("pve2"))
	s.startAgentOn("pve2")
	if got := s.having(files...); got != "pve1 pve2 pve3" {
		t.Errorf("when pve2 is back, these have them: %s", got)
	}
	s.must(s.sim.MoveVM(vmid(s, id), "pve2"))
	s.on(id)
}

// TestANodeThatCannotWriteSnippets fails the create, which names it and leaves nothing.
func TestANodeThatCannotWriteSnippets(t *testing.T) {
	t.Parallel()
	c := assemble(t)
	dir := filepath.Join(c.rig.Dir, "pve2", "vz", "snippets")
	c.must(os.Remove(dir))
	c.must(os.WriteFile(dir, nil, 0o600))
	before := c.inventory()
	refused(t, c.tryCreate(withUserData("web-01")), codes.FailedPrecondition, "web-01", "pve2", "local", "not a directory")
	c.nothingLeft(before)
	c.must(os.Remove(dir))
	c.create(withUserData("web-01"))
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}
