package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// plugCrash is a VM whose agent is killed while it changes it.
type plugCrash struct {
	*stage
	life *crashLife
	args []string
	id   string
	qemu *qmptest.QEMU
	fuse atomic.Pointer[plugFuse]
	died int
}

// plugFuse kills the agent at the nth command or request of a kind, before or after it has its effect.
type plugFuse struct {
	what  string
	after bool
	left  atomic.Int32
}

// TestCrashWhilePlugging kills the agent at each step of a change of vCPUs and of memory. The next one makes the config
// say what runs, and brings the change to its end, whether it is asked again or not.
func TestCrashWhilePlugging(t *testing.T) {
	t.Parallel()
	c := startPlugCrash(t)
	type row struct {
		what  string
		nth   int32
		after bool
	}
	var rows []row
	for _, what := range []string{"device_add", "device_del", "balloon", "PUT"} {
		for nth := int32(1); nth <= 2; nth++ {
			rows = append(rows, row{what, nth, false}, row{what, nth, true})
		}
	}
	for i, r := range rows {
		c.crash(fmt.Sprintf("at the %d. %s, after it: %v", r.nth, r.what, r.after), i%2 == 0, func() {
			f := &plugFuse{what: r.what, after: r.after}
			f.left.Store(r.nth)
			c.fuse.Store(f)
		})
	}
	for write := 1; write <= 9; write += 2 {
		p := crashPoint{Write: write, After: write%4 == 1}
		c.crash(fmt.Sprintf("at write %d of the journal, after it: %v", p.Write, p.After), write%3 == 0, func() { c.must(c.life.arm(p)) })
	}
	c.crashAndBackup()
	c.must(c.life.stop())
	if c.died < len(rows) {
		t.Errorf("the agent has died %d times only", c.died)
	}
}

func startPlugCrash(t *testing.T) *plugCrash {
	t.Helper()
	c := &plugCrash{stage: raise(t)}
	c.args = []string{
		"--config=" + c.sim.Node("pve1").AgentYAML, "--listen-grpc=127.0.0.1:0", "--metrics=127.0.0.1:0",
		"--watch=100ms", "--tasks-poll-min=5ms", "--tasks-poll-max=100ms",
	}
	c.sim.BeforeRequest(func(_ string, rq *http.Request) { c.request(rq, false) })
	c.sim.AfterRequest(func(_ string, rq *http.Request) { c.request(rq, true) })
	c.live()
	made, err := c.life.provider.Create(c.ctx, request("web-01", class(hot(1, 2048))))
	c.must(err)
	c.id = made.GetId()
	c.eventually("the VM is made", func() bool { // a task of it may be under way
		d, err := c.life.provider.Describe(c.ctx, &providerpb.DescribeRequest{Id: c.id})
		return err == nil && d.GetExists() && c.config(c.id)["smbios1"] != "" && !strings.Contains(d.GetProviderRawJson(), "creating")
	})
	c.must(c.sim.StartVM(vmid(c, c.id)))
	q, ok := c.sim.QEMU(vmid(c, c.id))
	if !ok {
		t.Fatal("no stand-in")
	}
	c.qemu = q
	for _, command := range []string{"device_add", "device_del", "balloon"} {
		c.handle(command)
	}
	return c
}

// handle watches a command that the stand-in is given.
func (c *plugCrash) handle(command string) {
	c.qemu.Handle(command, func(args json.RawMessage) (any, error) {
		c.perhaps(command, false)
		defer c.perhaps(command, true)
		switch command {
		case "device_add":
			c.qemu.SetVCPUs(c.qemu.VCPUs() + 1)
		case "device_del":
			c.qemu.SetVCPUs(c.qemu.VCPUs() - 1)
		case "balloon":
			var target struct{ Value int64 }
			if err := json.Unmarshal(args, &target); err != nil {
				return nil, err
			}
			c.qemu.SetBalloon(target.Value)
		}
		return struct{}{}, nil
	})
}

func (c *plugCrash) request(rq *http.Request, after bool) {
	if pvesim.Match(http.MethodPut, "/nodes/*/qemu/*/config")(rq) {
		c.perhaps("PUT", after)
	}
}

func (c *plugCrash) perhaps(what string, after bool) {
	if f := c.fuse.Load(); f != nil && f.what == what && f.after == after && f.left.Add(-1) == 0 {
		c.life.kill()
	}
}

// live starts an agent. What an earlier one was at is settled by the time it is asked anything.
func (c *plugCrash) live() {
	c.Helper()
	life, err := crashBorn(c.ctx, c.args, crashPoint{})
	c.must(err)
	c.life = life
	c.Cleanup(func() { life.kill() })
}

// crash lets the agent die in the middle of a change of everything, and of the change back.
func (c *plugCrash) crash(name string, repeat bool, arm func()) {
	c.Helper()
	small, large := desired(hot(1, 2048)), desired(hot(3, 1024))
	for _, change := range []struct {
		to         string
		vcpus, mib int
	}{{large, 3, 1024}, {small, 1, 2048}} {
		arm()
		_, err := c.life.provider.Reconfigure(c.ctx, &providerpb.ReconfigureRequest{Id: c.id, DesiredJson: change.to})
		c.fuse.Store(nil)
		if err != nil {
			c.died++
			select {
			case <-c.life.over:
			case <-time.After(c.patience):
				c.Fatalf("%s: %v, and the agent lives", name, err)
			}
			c.must(c.life.bury())
			c.live()
			c.settle(name, repeat || strings.Contains(name, "write 1 "), change.to, change.vcpus, change.mib)
		}
		c.runs(c.id, change.vcpus, change.mib)
		if got := c.config(c.id)["vcpus"]; got != strconv.Itoa(change.vcpus) {
			c.Errorf("%s: the config says %s vCPUs, want %d", name, got, change.vcpus)
		}
	}
}

// crashAndBackup lets the agent die between QEMU and the config, and a backup begin: the next agent writes down what runs
// all the same, and does the rest when the backup is over.
func (c *plugCrash) crashAndBackup() {
	c.Helper()
	c.must(c.life.arm(crashPoint{})) // what is left of another row
	f := &plugFuse{what: "device_add", after: true}
	f.left.Store(1)
	c.fuse.Store(f)
	wish := &providerpb.ReconfigureRequest{Id: c.id, DesiredJson: desired(hot(3, 2048))}
	if _, err := c.life.provider.Reconfigure(c.ctx, wish); err == nil {
		c.Fatal("the agent lives")
	}
	<-c.life.over
	c.must(c.life.bury())
	c.must(c.sim.SetConfig(vmid(c, c.id), map[string]string{"lock": "backup"}))
	if got := c.config(c.id)["vcpus"]; got != "1" {
		c.Fatalf("the config says %s vCPUs: it was killed too late", got)
	}
	c.live()
	c.eventually("the config says what runs", func() bool { return c.config(c.id)["vcpus"] == "2" })
	c.runs(c.id, 2, 2048)
	c.must(c.sim.SetConfig(vmid(c, c.id), map[string]string{"lock": ""}))
	_, err := c.life.provider.Reconfigure(c.ctx, wish)
	c.must(err)
	c.runs(c.id, 3, 2048)
}

// settle waits for the end of what the agent has taken up again, or asks once more.
func (c *plugCrash) settle(name string, repeat bool, wish string, vcpus, mib int) {
	c.Helper()
	if !repeat {
		c.eventually(name+": the change comes to its end by itself", func() bool {
			return c.qemu.VCPUs() == vcpus && c.qemu.Balloon()>>20 == int64(mib) && c.config(c.id)["vcpus"] == strconv.Itoa(vcpus) &&
				slices.Contains(c.life.writes(0), "succeeded")
		})
	}
	if _, err := c.life.provider.Reconfigure(c.ctx, &providerpb.ReconfigureRequest{Id: c.id, DesiredJson: wish}); err != nil {
		c.Errorf("%s: asked again: %v", name, err)
	}
}
