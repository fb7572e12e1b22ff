package scenario

import (
	"context"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// World is a simulated PVE cluster with an agent on each node, and a client that can call each of them.
type World interface {
	// Nodes are the names of the nodes, in order.
	Nodes() []string
	// Dir is the directory of the simulated cluster, in which one can see what is really there.
	Dir() string
	// Do carries out a verb of the simulated cluster ("node pve2 off") and returns what it says.
	Do(ctx context.Context, line string) (string, error)

	// StartAgent starts the agent of a node and returns when it is ready. One that runs already is left alone.
	StartAgent(ctx context.Context, node string) error
	// StopAgent ends it as SIGTERM does, KillAgent as SIGKILL does. None that runs is no error.
	StopAgent(ctx context.Context, node string) error
	KillAgent(ctx context.Context, node string) error
	// Dial connects to the agent of a node. The connection is made when it is used.
	Dial(node string) (providerpb.ProviderClient, func() error, error)

	// CutGossip cuts or restores what agents tell each other between two nodes, and nothing else.
	CutGossip(ctx context.Context, a, b string, cut bool) error
	// Lose makes a share of the packets between two nodes disappear.
	Lose(ctx context.Context, a, b string, percent int) error
	// SetClock makes the wall clock of a node's agent that much fast.
	SetClock(ctx context.Context, node string, ahead time.Duration) error
	// RotateGossipKey gives all agents a new key to encrypt with, as an operator does it.
	RotateGossipKey(ctx context.Context) error
	// Heal repairs what CutGossip, Lose and SetClock have done, and what the simulated cluster's verbs have.
	Heal(ctx context.Context) error

	// Wait lets time go by.
	Wait(ctx context.Context, d time.Duration) error
}

// Versions is a World that has agents of several versions.
type Versions interface {
	// StartOther is StartAgent for an agent of another version, which speaks other versions of the protocol.
	StartOther(ctx context.Context, node, version string, minimum, maximum uint32) error
}

// Journals is a World that can kill agents when they write their journal.
type Journals interface {
	// KillAtWrite makes the agent of a node die right before the nth write of its journal from now on.
	KillAtWrite(ctx context.Context, node string, write int) error
}
