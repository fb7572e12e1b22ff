package e2e

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// TestWithoutQuorumAnotherNodeIsAsked: this node sees what was, the others what is.
func TestWithoutQuorumAnotherNodeIsAsked(t *testing.T) {
	t.Parallel()
	c := assemble(t, fuse)
	id := c.create(request("web-01"))
	c.eventually("gossip tells who has quorum", func() bool {
		return len(c.at["pve1"].agents()) == 3 && len(c.at["pve3"].agents()) == 3
	})
	c.must(c.sim.Partition([][]string{{"pve3"}, {"pve1", "pve2"}}))
	c.eventually("pve3 has no quorum", func() bool { return c.at["pve3"].validate() != "" })
	if d, err := c.at["pve3"].describe(id); err != nil || !d.GetExists() {
		t.Errorf("described through the node without quorum: %v, %v", d, err)
	}
	if other := c.at["pve3"].create(request("web-02")); other == id {
		t.Errorf("two VMs with the id %s", id)
	}
	if d, err := c.at["pve3"].describe("77777"); err != nil || d.GetExists() {
		t.Errorf("a VM that does not exist, through the node without quorum: %v, %v", d, err)
	}
	if n := len(c.at["pve3"].list()); n != 2 {
		t.Errorf("%d VMs listed through the node without quorum", n)
	}
	c.must(c.sim.Heal())
	c.at["pve3"].healthy()
}

// agents are the nodes whose agents an agent knows to be alive.
func (s *stage) agents() []string {
	s.Helper()
	var names []string
	for _, m := range s.members() {
		if m.GetAgent().GetAlive() {
			names = append(names, m.GetName())
		}
	}
	return names
}

// members asks the agent as a command of its node does.
func (s *stage) members() []*nodepb.Member {
	s.Helper()
	conn, err := grpc.NewClient("unix:"+s.agent.Config.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	defer func() { s.must(conn.Close()) }()
	resp, err := nodepb.NewNodeClient(conn).Members(s.ctx, &nodepb.MembersRequest{})
	s.must(err)
	return resp.GetMembers()
}
