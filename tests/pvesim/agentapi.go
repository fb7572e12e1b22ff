package pvesim

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"syscall"
)

func isBusy(err error) bool { return errors.Is(err, syscall.EAGAIN) }

// agentQueries are the agent's calls without arguments: API name to command.
var agentQueries = map[string]string{
	"ping": "guest-ping", "info": "guest-info", "get-host-name": "guest-get-host-name", "get-osinfo": "guest-get-osinfo",
	"network-get-interfaces": "guest-network-get-interfaces", "get-vcpus": "guest-get-vcpus", "get-time": "guest-get-time",
	"get-timezone": "guest-get-timezone", "get-users": "guest-get-users", "get-fsinfo": "guest-get-fsinfo",
	"get-memory-blocks": "guest-get-memory-blocks", "get-memory-block-info": "guest-get-memory-block-info",
}

func agentRoutes(c *Cluster, add adder) {
	for _, name := range sortedKeys(agentQueries) {
		method := get
		if name == "ping" {
			method = http.MethodPost
		}
		add(method, "/nodes/{node}/qemu/{vmid}/agent/"+name, agentPerm("VM.GuestAgent.Audit"), c.agentQuery(agentQueries[name]))
	}
	add(post, "/nodes/{node}/qemu/{vmid}/agent/shutdown", agentPerm("VM.PowerMgmt"), c.agentShutdownCall)
}

// agentReady makes sure that the agent can be asked; its refusals come in
// PVE's order.
func (c *Cluster) agentReady(ctx context.Context, rq *request) (*machine, error) {
	conf, err := c.loadConf(rq.node, rq.vmid())
	if err != nil {
		return nil, err
	}
	if !conf.Main.AgentEnabled() {
		return nil, dief("No QEMU guest agent configured")
	}
	m := c.machines.on(rq.node.Name, rq.vmid())
	if m == nil {
		return nil, dief("VM %d is not running", rq.vmid())
	}
	if !c.agentRuns(ctx, m, nil) {
		return nil, dief("QEMU guest agent is not running")
	}
	return m, nil
}

func (c *Cluster) agentQuery(command string) func(context.Context, *request) (any, error) {
	return func(ctx context.Context, rq *request) (any, error) {
		m, err := c.agentReady(ctx, rq)
		if err != nil {
			return nil, err
		}
		raw, err := c.agentCall(ctx, m, command, nil, true)
		var refused *agentError
		if errors.As(err, &refused) {
			return nil, dief("Agent error: %s", refused.desc)
		}
		if err != nil {
			return nil, dief("VM %d qga command '%s' failed - got timeout", m.vmid, command)
		}
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, dief("Agent error: %s", strings.TrimSpace(err.Error()))
		}
		return map[string]any{"result": v}, nil
	}
}

func (c *Cluster) agentShutdownCall(ctx context.Context, rq *request) (any, error) {
	m, err := c.agentReady(ctx, rq)
	if err != nil {
		return nil, err
	}
	return map[string]any{"result": nil}, c.agentShutdown(ctx, m)
}
