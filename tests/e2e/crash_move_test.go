package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

// moveCrash is a pair of nodes: pve1, whose agent is killed, has a template on shared storage, and pve2 is to have the VMs.
type moveCrash struct {
	*stage
	life *crashLife
	args []string
}

// moveRow is one way to die.
type moveRow struct {
	point crashPoint
	alone bool // nobody repeats the request
	slow  bool // the migration goes on until the next agent lives
}

// TestCrashMoves kills the agent that makes a VM for another node. The next one takes it up: there is one VM, on that node,
// and PVE was asked once to clone and once to move it.
func TestCrashMoves(t *testing.T) {
	t.Parallel()
	c := &moveCrash{stage: raise(t, setting{sim: twoNodes})}
	c.args = []string{"--config=" + c.sim.Node("pve1").AgentYAML, "--watch=100ms", "--sync-wait=5ms", "--tasks-poll-min=5ms", "--tasks-poll-max=100ms"}
	c.agent = c.startAgentOn("pve2")
	c.live()
	made, err := c.ask(c.life.provider, "discovered")
	c.must(err)
	if failure := c.outcome(made.GetTask()); failure != "" {
		t.Fatal(failure)
	}
	c.must(c.life.arm(crashPoint{})) // by then it has told of all its writes
	writes := c.life.writes(0)
	begin, end := crashWrite(t, writes, "begin move"), crashWrite(t, writes, "end move")
	for i, p := range crashMoments(writes) {
		near := p.Write >= begin-1 && p.Write <= end+1
		if crashStride > 1 && (!near || i%2 == 0 && p.Write != begin) {
			continue
		}
		text := p.text(writes)
		c.die(fmt.Sprintf("row-%d", i), text, moveRow{point: p})
		if crashStride == 1 {
			c.die(fmt.Sprintf("alone-%d", i), text+", not repeated", moveRow{point: p, alone: true})
		}
	}
	task := crashPoint{Write: crashWrite(t, writes, "task move"), After: true}
	c.die("slow", "while it moves", moveRow{point: task, slow: true})
	c.die("slow-alone", "while it moves, not repeated", moveRow{point: task, slow: true, alone: true})
	c.must(c.life.stop())
}

// live starts the agent of pve1.
func (c *moveCrash) live() {
	c.Helper()
	life, err := crashBorn(c.ctx, c.args, crashPoint{})
	c.must(err)
	c.life = life
	c.Cleanup(func() { life.kill() })
}

func (c *moveCrash) ask(p providerpb.ProviderClient, name string) (*providerpb.CreateResponse, error) {
	return p.Create(c.ctx, request(name, shared, placed("pve2"), class(smallClass), func(r *providerpb.CreateRequest) {
		r.UserData = []byte("#cloud-config\nhostname: " + name + "\n")
	}))
}

// die sends a request of which the agent dies, sees the next one bring it to its end, and looks at what there is.
func (c *moveCrash) die(name, text string, row moveRow) {
	c.Helper()
	clones, moves := c.sim.TaskCount("qmclone"), c.sim.TaskCount("qmigrate")
	release := func() {}
	if row.slow {
		release = c.sim.HoldTasks("qmigrate")
		defer release()
	}
	c.must(c.life.arm(row.point))
	if _, err := c.ask(c.life.provider, name); err != nil && status.Code(err) != codes.Unavailable {
		c.Fatalf("%s: the first answer: %v", text, err)
	}
	select {
	case <-c.life.over:
	case <-time.After(c.patience):
		c.Fatalf("%s: the agent lives", text)
	}
	c.must(c.life.bury())
	c.live()
	release()
	if !row.alone {
		c.again(name, text)
	}
	c.eventually(text+": the end of all operations", func() bool {
		n, err := c.life.running(context.WithoutCancel(c.ctx))
		return err == nil && n == 0
	})
	if row.alone && row.point == (crashPoint{Write: 1}) {
		if made := c.made(name); len(made) > 0 {
			c.Errorf("%s: made %v, though nobody asks for it", text, made)
		}
		return
	}
	c.look(name, text)
	if n, m := c.sim.TaskCount("qmclone")-clones, c.sim.TaskCount("qmigrate")-moves; n != 1 || m != 1 {
		c.Errorf("%s: %d clones, %d migrations", text, n, m)
	}
}

// again repeats the request, by way of the other node.
func (c *moveCrash) again(name, text string) {
	c.Helper()
	c.eventually(text+": an answer to the repeat", func() bool {
		made, err := c.ask(c.agent.Provider, name)
		if code := status.Code(err); code == codes.Aborted || code == codes.FailedPrecondition && strings.Contains(err.Error(), "does not answer") {
			return false
		}
		if err != nil {
			c.Fatalf("%s: the repeat: %v", text, err)
		}
		if failure := c.outcome(made.GetTask()); failure != "" {
			c.Errorf("%s: %s", text, failure)
		}
		return true
	})
}

// look checks the one VM of a name.
func (c *moveCrash) look(name, text string) {
	c.Helper()
	made := c.made(name)
	if len(made) != 1 {
		c.Errorf("%s: VMs %v", text, made)
		return
	}
	conf, err := c.sim.Config(made[0])
	c.must(err)
	owner, _ := c.sim.Owner(made[0])
	if owner != "pve2" || conf["lock"] != "" || conf["memory"] != "512" {
		c.Errorf("%s: on %s, %v", text, owner, conf)
	}
	list, err := record.New(record.Config{Dir: c.rig.Dir + "/etc/pve/priv/pve-rigaud"}).List()
	c.must(err)
	at := slices.IndexFunc(list.Records, func(r record.Record) bool { return r.Name == name })
	if at < 0 || list.Records[at].State != record.Ready || !strings.Contains(conf["smbios1"], list.Records[at].UUID) {
		c.Errorf("%s: records %+v, the VM is %v", text, list.Records, conf)
		return
	}
	id := list.Records[at].ID().String()
	if _, user, ok := strings.Cut(conf["cicustom"], "user="+pvesim.StorageLocal+":"); ok {
		file, _, _ := strings.Cut(user, ",")
		c.eventually(text+": pve2 has the VM's cloud-init data", func() bool { return len(glob(c, c.rig.Dir+"/pve2/vz/"+file)) == 1 })
	}
	if err := c.delete(id); err != nil {
		c.Errorf("%s: delete: %v", text, err)
	}
}
