package e2e

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/pve-rigaud/pve-rigaud/agent"
	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// prepare prepares an image, whose answer has to be whole at once.
func (s *stage) prepare(name, image string) (*providerpb.ImagePrepareResponse, error) {
	return s.agent.Provider.ImagePrepare(s.ctx, &providerpb.ImagePrepareRequest{TargetName: name, ImageJson: image})
}

// images are those on record.
func (s *stage) images() map[string]record.Image {
	s.Helper()
	list, broken, err := record.NewImages(record.Config{Dir: s.rig.Dir + "/etc/pve/priv/pve-rigaud"}).List()
	if s.must(err); len(broken) > 0 {
		s.Fatal(broken)
	}
	all := map[string]record.Image{}
	for _, i := range list {
		all[i.Name] = i
	}
	return all
}

// TestImagePrepare: the first answer says all that the manager will ever hear, so it names the image, not a template.
func TestImagePrepare(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			r, err := s.prepare("ubuntu", `{"source":{"proxmox":{"templateName":"linux-template"}},"metadata":{"displayName":"Ubuntu 22.04"}}`)
			if err != nil || r.GetPreparedImageId() != "ubuntu" || r.GetPreparedImagePath() != "image:ubuntu" || r.GetTask().GetId() != "" {
				t.Errorf("got %v, %v", r, err)
			}
		})
	}
	wg.Wait()
	img := s.images()["ubuntu"]
	if len(s.images()) != 1 || img.Generation != 1 || img.Template != "linux-template" || img.Source != `templates named "linux-template": Ubuntu 22.04` ||
		len(img.Originals) != 1 || img.Originals[0].VMID != template {
		t.Errorf("on record: %+v", s.images())
	}
	s.create(request("by-id", from("ubuntu")))
	s.create(request("by-path", func(r *providerpb.CreateRequest) { r.ImageJson = `{"Path":"image:ubuntu","Format":"qcow2"}` }))
	// Rebuilt under another number: the id that the manager has means the new one.
	s.must(s.sim.SetConfig(template, map[string]string{"name": "old"}))
	s.add(9500, map[string]string{"name": "linux-template", "template": "1"})
	clones := s.watch("POST", "/nodes/*/qemu/*/clone")
	s.create(request("rebuilt", from("ubuntu")))
	if got := clones(); len(got) != 1 || !strings.Contains(got[0], "/qemu/9500/clone") {
		t.Errorf("cloned by %q, the template is 9500 now", got)
	}
	refused(t, s.tryCreate(request("nothing", func(r *providerpb.CreateRequest) { r.ImageJson = `{"Path":"image:debian"}` })), codes.NotFound, `"debian"`)
}

// TestImagePrepareRefuses names the field, and says what works.
func TestImagePrepareRefuses(t *testing.T) {
	t.Parallel()
	s := start(t, setting{sim: func(c *pvesim.Config) { c.Nodes = 2 }})
	s.add(500, map[string]string{"name": "no-template"})
	_, err := s.prepare("taken", `{"source":{"proxmox":{"templateID":9000}}}`)
	s.must(err)
	_, err = s.prepare("linux-template", `{"source":{"proxmox":{"storage":"local","format":"qcow2","fullClone":true}}}`)
	s.must(err)
	for _, x := range []struct {
		name, image string
		code        codes.Code
		says        []string
	}{
		{"ubuntu", `{"source":{"proxmox":{"templateName":"no-such"}}}`, codes.NotFound, []string{"templateName", "no-such"}},
		{"ubuntu", `{"source":{"proxmox":{"templateID":9999}}}`, codes.NotFound, []string{"templateID", "9999"}},
		{"ubuntu", `{"source":{"proxmox":{"templateID":500}}}`, codes.FailedPrecondition, []string{"templateID", "qm template 500"}},
		{"ubuntu", `{"source":{"proxmox":{"templateID":9000,"templateName":"other"}}}`, codes.FailedPrecondition, []string{"templateName", "linux-template"}},
		{"ubuntu", `{"source":{"proxmox":{"templateID":9000,"node":"pve2"}}}`, codes.FailedPrecondition, []string{"node", "pve1"}},
		{"ubuntu", `{"source":{"proxmox":{"templateName":"linux-template","node":"pve2"}}}`, codes.NotFound, []string{"linux-template", "pve2"}},
		{"ubuntu", `{"source":{"proxmox":{"templateName":"linux-template","node":"pve9"}}}`, codes.NotFound, []string{"node", "pve9"}},
		{"ubuntu", `{"source":{"proxmox":{"templateName":"linux-template","storage":"ceph"}}}`, codes.NotFound, []string{"storage", "ceph"}},
		{"ubuntu", `{"source":{"proxmox":{"templateName":"linux-template","fullClone":false}}}`, codes.FailedPrecondition, []string{"fullClone"}},
		{"ubuntu", `{"source":{"proxmox":{}}}`, codes.NotFound, []string{"proxmox", "ubuntu", "templateName"}},
		{"ubuntu", `{"source":{"proxmox":{},"http":{"url":"https://example.com/a.qcow2"}}}`, codes.FailedPrecondition, []string{"source.http.url", "ubuntu"}},
		{"ubuntu", `{"source":{"http":{"url":"https://example.com/a.qcow2"}}}`, codes.FailedPrecondition, []string{"source.http.url", "templateName"}},
		{"ubuntu", `{"source":{"libvirt":{"url":"https://example.com/a.qcow2"}}}`, codes.FailedPrecondition, []string{"source.libvirt.url"}},
		{"ubuntu", `{"source":{"registry":{"image":"quay.io/a"}}}`, codes.FailedPrecondition, []string{"source.registry.image"}},
		{"ubuntu", `{"source":{}}`, codes.InvalidArgument, []string{"source", "templateName"}},
		{"taken", `{"source":{"proxmox":{"templateID":9001}}}`, codes.AlreadyExists, []string{"target_name", "taken", "prepare.force"}},
		{"linux-template-shared", `{"source":{"proxmox":{"templateName":"linux-template"}}}`, codes.AlreadyExists, []string{"target_name", "linux-template-shared", "name the VMImage otherwise"}},
		{"linux-template", `{"source":{"proxmox":{"templateName":"linux-template-shared"}}}`, codes.AlreadyExists, []string{"target_name", "linux-template"}},
	} {
		_, err := s.prepare(x.name, x.image)
		refused(t, err, x.code, x.says...)
	}
	if got := len(s.images()); got != 2 {
		t.Errorf("%d images on record: %v", got, s.images())
	}
	_, err = s.prepare("taken", `{"source":{"proxmox":{"templateID":9001}},"prepare":{"force":true}}`)
	s.must(err)
	if got := s.images()["taken"]; got.Template != "9001" {
		t.Errorf("replaced by request: %+v", got)
	}
}

// replicas makes agents keep each image on all nodes.
var replicas = setting{
	flags:   []string{"--placement-image-replicas=all"},
	options: []agent.Option{agent.WithReplicasEvery(50 * time.Millisecond)},
	sim:     func(c *pvesim.Config) { c.RealDisks = true },
}

// TestImageReplicas: the first VM made of a template has the other nodes make replicas, whose disks are what the template's are.
func TestImageReplicas(t *testing.T) {
	t.Parallel()
	c := assemble(t, replicas, secure)
	c.must(c.sim.SetConfig(template, map[string]string{"tags": "golden", "description": "from here: 100%", "sockets": "2"}))
	c.fillTemplate("some data")
	c.create(request("web-01"))
	c.eventually("a replica on each node", func() bool { return len(c.images()["linux-template"].Replicas) == 2 })
	for _, r := range c.images()["linux-template"].Replicas {
		conf, err := c.sim.Config(r.VMID)
		c.must(err)
		owner, _ := c.sim.Owner(r.VMID)
		if owner != r.Node || owner == "pve1" || conf["template"] != "1" || conf["name"] != "linux-template" || conf["tags"] != "golden" ||
			conf["sockets"] != "2" || conf["smbios1"] != "uuid="+r.UUID || conf["agent"] != "1" || !strings.Contains(conf["net0"], "bridge=vmbr0") {
			t.Errorf("on %s: %+v, of %v", owner, conf, r)
		}
		if sum := fmt.Sprintf("sha256:%x", sha256.Sum256(c.diskBytes("pve1", template))); r.Checksums["scsi0"] != sum {
			t.Errorf("checksum %s, the template has %s", r.Checksums["scsi0"], sum)
		}
		c.sameContent(c.diskPath("pve1", template), c.diskPath(owner, r.VMID))
		if left := glob(t, filepath.Join(c.rig.Dir, owner, "vz", "import", "*")); len(left) > 0 {
			t.Errorf("staged and not removed: %v", left)
		}
	}
	id := c.at["pve2"].create(request("web-02", from("linux-template"), placed("pve2")))
	c.owned(vmid(t, id), "pve2") // from the replica there
}

func twoNodes(c *pvesim.Config) { c.Nodes = 2 }

// TestImageRebuilt: replicas of a template that was rebuilt are replaced; one whose disks VMs share stays for those.
func TestImageRebuilt(t *testing.T) {
	t.Parallel()
	s := raise(t, setting{sim: twoNodes})
	with := setting{flags: replicas.flags, options: replicas.options}
	s.startAgent(with)
	s.startAgentOn("pve2", with)
	s.create(request("web-01"))
	first := s.replicaOn("pve2")
	var c *providerpb.CloneResponse
	s.eventually("a VM that shares its disks, when every node knows it", func() (done bool) {
		var err error
		c, err = s.agent.Provider.Clone(s.ctx, copyOf(fmt.Sprint(first.VMID), "shares", linked))
		return err == nil
	})
	if failure := s.outcome(c.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	rebuild := func(uuid string) {
		s.must(s.sim.SetConfig(template, map[string]string{"smbios1": "uuid=" + uuid}))
	}
	rebuild("11111111-89ab-cdef-0123-456789abcdef")
	s.eventually("a replica of the new one", func() bool { return len(s.images()["linux-template"].Replicas) == 2 })
	second := s.images()["linux-template"].Replicas[1]
	if second.Of == first.Of || second.VMID == first.VMID {
		t.Errorf("second %+v, first %+v", second, first)
	}
	stale := s.watch("POST", fmt.Sprintf("/nodes/*/qemu/%d/clone", first.VMID))
	s.create(request("web-02", from(fmt.Sprint(first.VMID)))) // a number of one means the image
	if got := stale(); len(got) != 0 {
		t.Errorf("made of what is out of date: %q", got)
	}
	rebuild("22222222-89ab-cdef-0123-456789abcdef")
	s.eventually("the second is replaced, the first stays", func() bool {
		r := s.images()["linux-template"].Replicas
		return len(r) == 2 && r[0].VMID == first.VMID && r[1].VMID != second.VMID
	})
	if _, there := s.sim.Owner(second.VMID); there {
		t.Errorf("template %d is still there", second.VMID)
	}
	s.must(s.delete(c.GetTargetVmId()))
	s.eventually("the first goes with the last VM that shares its disks", func() bool { return len(s.images()["linux-template"].Replicas) == 1 })
	if _, there := s.sim.Owner(first.VMID); there {
		t.Errorf("template %d is still there", first.VMID)
	}
	if _, there := s.sim.Owner(template); !there {
		t.Error("the administrator's template is gone")
	}
}

// TestImageOnDemand: VMs that come to a node without a replica wait for one, all for the same; the image's list tells of it.
func TestImageOnDemand(t *testing.T) {
	t.Parallel()
	with := setting{flags: append(slices.Clone(replicas.flags), "--sync-wait=30s", "--sync-waits-per-client=20"), options: []agent.Option{agent.WithReplicasEvery(time.Hour)}}
	s := assemble(t, setting{sim: twoNodes}, with)
	for _, name := range []string{"local", "shared"} { // as before PVE 8.4: what is staged lies among the disks
		s.must(s.sim.ChangeStorage(name, func(x *pvesim.Storage) { x.Content = []string{"images", "iso", "snippets"} }))
	}
	imported := s.watch("POST", "/nodes/pve2/qemu")
	_, err := s.root("pve2").Cordon(s.ctx, &nodepb.CordonRequest{Node: "pve1"})
	s.must(err)
	s.eventually("pve1 knows its cordon", func() bool {
		resp, err := s.root("pve1").Members(s.ctx, &nodepb.MembersRequest{})
		s.must(err)
		return resp.GetMembers()[0].GetCapacity().GetCordoned()
	})
	var wg sync.WaitGroup
	for n := range 10 {
		through := s.at[[]string{"pve1", "pve2"}[n%2]]
		wg.Go(func() {
			through.create(request(fmt.Sprintf("web-%02d", n), from("linux-template")))
		})
	}
	wg.Wait()
	made := s.images()["linux-template"].Replicas
	if len(made) != 1 || made[0].Node != "pve2" {
		t.Fatalf("replicas: %+v", made)
	}
	for _, id := range s.sim.VMIDs() {
		if owner, _ := s.sim.Owner(id); id >= 10000 && owner != "pve2" {
			t.Errorf("VM %d was made on %s, which is cordoned", id, owner)
		}
	}
	vmid := made[0].VMID
	if got := imported(); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf("import-from=local:%d/vm-%[1]d-disk-90.qcow2", vmid)) {
		t.Errorf("imported by %q", got)
	}
	if left := glob(t, filepath.Join(s.rig.Dir, "pve2", "vz", "images", fmt.Sprint(vmid), "*-disk-9*")); len(left) > 0 {
		t.Errorf("staged and not removed: %v", left)
	}
	if n := len(s.sim.VMIDs()); n != 2+1+10 {
		t.Errorf("%d VMs and templates: %v", n, s.sim.VMIDs())
	}
	resp, err := s.root("pve1").Images(s.ctx, &nodepb.ImagesRequest{Name: "linux-template"})
	s.must(err)
	var told []string
	for _, r := range resp.GetImages()[0].GetReplicas() {
		told = append(told, fmt.Sprintf("%s %d %s", r.GetNode(), r.GetVmid(), r.GetState()))
	}
	if want := []string{"pve1 9000 ready", fmt.Sprintf("pve2 %d ready", made[0].VMID)}; !slices.Equal(told, want) || resp.GetImages()[0].GetWanted() != 2 {
		t.Errorf("told %q, want %q: %v", told, want, resp)
	}
	_, err = s.root("pve1").Images(s.ctx, &nodepb.ImagesRequest{Name: "none"})
	refused(t, err, codes.NotFound, "none")
}

// replicaOn waits for the replica of a node.
func (s *stage) replicaOn(node string) (r record.Replica) {
	s.Helper()
	s.eventually("a replica on "+node, func() bool {
		for _, r = range s.images()["linux-template"].Replicas {
			if r.Node == node {
				return true
			}
		}
		return false
	})
	return r
}

// fillTemplate writes into the template's disk.
func (s *stage) fillTemplate(text string) {
	s.Helper()
	raw := filepath.Join(s.TempDir(), "raw")
	s.must(os.WriteFile(raw, []byte(strings.Repeat(text, 1<<16)), 0o600))
	s.must(os.Truncate(raw, 64<<20))
	out, err := exec.CommandContext(s.ctx, "qemu-img", "convert", "-O", "qcow2", raw, s.diskPath("pve1", template)).CombinedOutput()
	if err != nil {
		s.Fatalf("%v: %s", err, out)
	}
}

// diskPath is the file of a template's first disk.
func (s *stage) diskPath(node string, id int) string {
	s.Helper()
	conf, err := s.sim.Config(id)
	s.must(err)
	volume, _, _ := strings.Cut(conf["scsi0"], ",")
	return filepath.Join(s.rig.Dir, node, "vz", "images", strings.TrimPrefix(volume, "local:"))
}

func (s *stage) diskBytes(node string, id int) []byte {
	s.Helper()
	b, err := os.ReadFile(s.diskPath(node, id))
	s.must(err)
	return b
}

// sameContent compares what guests see of two images.
func (s *stage) sameContent(a, b string) {
	s.Helper()
	if out, err := exec.CommandContext(s.ctx, "qemu-img", "compare", "-s", a, b).CombinedOutput(); err != nil {
		s.Errorf("%s and %s: %v: %s", a, b, err, out)
	}
}

func glob(t testing.TB, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}
