//go:build every && !race

package e2e

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// copying is a cluster of two nodes in the middle of a copy of a large template to pve2.
type copying struct {
	*stage
	second *rig.Agent
}

// bigDisk is what the template's disk has, in MiB.
const bigDisk = 400

func startCopying(t *testing.T) *copying {
	t.Helper()
	two := setting{sim: twoNodes}
	s := raise(t, two, replicas)
	s.startAgent(two, replicas)
	raw := filepath.Join(t.TempDir(), "raw")
	content := make([]byte, bigDisk<<20)
	rand.Read(content)
	s.must(os.WriteFile(raw, content, 0o600))
	out, err := exec.CommandContext(s.ctx, "qemu-img", "convert", "-O", "qcow2", raw, s.diskPath("pve1", template)).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s.must(s.sim.SetConfig(template, map[string]string{"scsi0": "local:9000/base-9000-disk-0.qcow2,size=" + strconv.Itoa(bigDisk) + "M"}))
	_, err = s.prepare("linux-template", `{"source":{"proxmox":{"templateID":9000}}}`)
	s.must(err)
	c := &copying{stage: s}
	c.second = s.startAgentOn("pve2", replicas)
	c.eventually("a good part is copied", func() bool { return c.staged() > 24 })
	return c
}

// staged is how many MiB of the copy are on pve2's disk.
func (c *copying) staged() int {
	for _, path := range glob(c, filepath.Join(c.rig.Dir, "pve2", "vz", "import", "*")) {
		if info, err := os.Stat(path); err == nil {
			return int(info.Sys().(*syscall.Stat_t).Blocks * 512 >> 20)
		}
	}
	return 0
}

// replica waits for the replica on pve2 and checks it.
func (c *copying) replica() record.Replica {
	c.Helper()
	c.eventually("the replica", func() bool { return len(c.images()["linux-template"].Replicas) == 1 })
	r := c.images()["linux-template"].Replicas[0]
	c.owned(r.VMID, "pve2")
	c.sameContent(c.diskPath("pve1", template), c.diskPath("pve2", r.VMID))
	c.eventually("what was staged is removed", func() bool { return c.staged() == 0 })
	return r
}

// neverLess watches that what is copied stays until f is done, and then whether it was begun anew.
func (c *copying) neverLess(f func()) {
	c.Helper()
	before, done, least := c.staged(), make(chan struct{}), make(chan int, 1)
	go func() {
		low := before
		for {
			select {
			case <-done:
				least <- low
				return
			case <-time.After(time.Millisecond):
				if n := c.staged(); n > 0 { // when it is whole it is removed
					low = min(low, n)
				}
			}
		}
	}()
	f()
	close(done)
	if low := <-least; low < before {
		c.Errorf("of %d MiB that were copied %d were left: it was begun anew", before, low)
	}
}

// TestReplicaWhoseSourceFallsSilent goes on where it was when the source's agent is back.
func TestReplicaWhoseSourceFallsSilent(t *testing.T) {
	t.Parallel()
	c := startCopying(t)
	c.stop()
	got := c.staged()
	if got > bigDisk-50 {
		t.Fatalf("%d MiB were copied before the agent was stopped", got)
	}
	time.Sleep(time.Second) // it tries, and gets no answer
	c.neverLess(func() {
		c.startAgent(replicas)
		c.replica()
	})
}

// TestReplicaWhoseTargetIsKilled goes on where the journal says it was.
func TestReplicaWhoseTargetIsKilled(t *testing.T) {
	t.Parallel()
	c := startCopying(t)
	c.must(c.second.Stop())
	if got := c.staged(); got > bigDisk-50 || got == 0 {
		t.Fatalf("%d MiB were copied before the agent was stopped", got)
	}
	c.neverLess(func() {
		c.second = c.startAgentOn("pve2", replicas)
		c.replica()
	})
}

// TestReplicaWhoseSourceGoes leaves nothing behind, and is made again when there is a template again.
func TestReplicaWhoseSourceGoes(t *testing.T) {
	t.Parallel()
	c := startCopying(t)
	before, err := c.sim.Config(template)
	c.must(err)
	path := c.diskPath("pve1", template)
	c.must(os.Rename(path, path+".away"))
	c.must(c.sim.SetConfig(template, map[string]string{"template": "0"}))
	c.eventually("the copy is removed", func() bool { return c.staged() == 0 })
	for _, id := range c.sim.VMIDs() {
		if owner, _ := c.sim.Owner(id); owner == "pve2" {
			t.Errorf("VM %d is left", id)
		}
	}
	if n := len(c.images()["linux-template"].Replicas); n != 0 {
		t.Errorf("%d replicas on record", n)
	}
	c.must(os.Rename(path+".away", path))
	c.must(c.sim.SetConfig(template, map[string]string{"template": before["template"]}))
	c.replica()
}

// TestReplicaThatPVERefuses leaves nothing, and is tried again, with another number.
func TestReplicaThatPVERefuses(t *testing.T) {
	t.Parallel()
	c := startCopying(t)
	c.sim.FailTask("qmcreate", 0, "no space left on device")
	c.eventually("a second attempt", func() bool {
		names := glob(c, filepath.Join(c.rig.Dir, "pve2", "vz", "import", "*10001*"))
		return len(names) > 0
	})
	if names := glob(c, filepath.Join(c.rig.Dir, "pve2", "vz", "import", "*10000*")); len(names) > 0 {
		t.Errorf("left of the first: %v", names)
	}
	if r := c.replica(); r.VMID == 10000 || strings.HasPrefix(r.Checksums["scsi0"], "sha256:") == false {
		t.Errorf("got %+v", r)
	}
}
