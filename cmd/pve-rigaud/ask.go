package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

const (
	// defaultSocket is where an agent serves unless its configuration says otherwise. The commands do not read that:
	// it may be somebody else's to read, or broken.
	defaultSocket = "/run/pve-rigaud/agent.sock"
	askTimeout    = 10 * time.Second
	maxAnswer     = 64 << 20 // bytes; gRPC's own limit, 4 MiB, is about 20000 guests
)

// question is a command that asks the agent of this node and prints what it says.
type question struct {
	name    string
	summary string
	socket  string
	json    bool
	// Of vms only.
	node      string
	snapshots bool
	image     string // of images only: the argument
	// Of explain only: the argument. Of place only: what the VM is to be.
	vm           string
	place        nodepb.PlaceRequest
	memory, disk string
	check        func(q *question) error       // of the command line; nil: there is nothing to check
	argument     func(q *question, arg string) // takes the one argument there may be; nil: there may be none
	// ask returns the answer in its two forms: an object for JSON, and a function that writes it for people.
	ask func(ctx context.Context, client nodepb.NodeClient, q *question) (object any, table func(io.Writer) error, err error)
}

// questions are the commands of that kind.
func questions() map[string]*question {
	return map[string]*question{
		"explain": {
			name: "explain", ask: askExplain, check: checkExplain, argument: func(q *question, arg string) { q.vm = arg },
			summary: "explain VM: why a VM was made where it is, or was refused: what was found of each node. VM is a name, a number or an id",
		},
		"place": {
			name: "place", ask: askPlace, check: checkPlace,
			summary: "say where a VM would be made now, and what is found of each node",
		},
		"images": {
			name: "images", ask: askImages, argument: func(q *question, arg string) { q.image = arg },
			summary: "list what VMs are made from: which image is where, how large and old, and how many VMs share its disks; images NAME: that one",
		},
		"members": {
			name: "members", ask: askMembers,
			summary: "list the nodes of the cluster: who is in, and how old each one's capacity is",
		},
		"vms": {
			name: "vms", ask: askVMs,
			summary: "list the guests of the cluster, where they are, and who made them",
		},
	}
}

// flags are the command's flags, bound to q.
func (q *question) flags() *pflag.FlagSet {
	f := pflag.NewFlagSet(q.name, pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&q.json, "json", false, "print one JSON object")
	f.StringVar(&q.socket, "socket", defaultSocket, "the agent's unix `PATH`")
	if q.name == "place" {
		placeFlags(f, q)
	}
	if q.name == "vms" {
		f.StringVar(&q.node, "node", "", "only the guests of `NODE`")
		f.BoolVar(&q.snapshots, "snapshots", false, "the snapshots of each VM instead")
	}
	return f
}

func (q *question) run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := q.flags()
	err := flags.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		say(stdout, fmt.Sprintf("pve-rigaud %s: %s\n\nFlags:\n%s", q.name, q.summary, flags.FlagUsages()))
		return exitOK
	}
	if err == nil && flags.NArg() == 1 && q.argument != nil {
		q.argument(q, flags.Arg(0))
	} else if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err == nil && q.check != nil {
		err = q.check(q)
	}
	if err != nil {
		say(stderr, fmt.Sprintf("pve-rigaud %s: %v\nSee: pve-rigaud %s --help\n", q.name, err, q.name))
		return exitUsage
	}
	if err := q.answer(ctx, stdout); err != nil {
		say(stderr, fmt.Sprintf("pve-rigaud %s: %v\n", q.name, err))
		return exitFailed
	}
	return exitOK
}

// answer asks and prints.
func (q *question) answer(ctx context.Context, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := dial(ctx, q.socket)
	if err != nil {
		return err
	}
	object, table, err := q.ask(ctx, nodepb.NewNodeClient(conn), q)
	if err := errors.Join(explain(err), conn.Close()); err != nil {
		return err
	}
	if !q.json {
		return table(stdout)
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(object)
}

// dial connects to the agent at once, so that the reason is known when it cannot be reached.
func dial(ctx context.Context, socket string) (*grpc.ClientConn, error) {
	var d net.Dialer
	first, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, unreachable(socket, err)
	}
	conns := make(chan net.Conn, 1)
	conns <- first
	conn, err := grpc.NewClient("passthrough:///agent",
		grpc.WithTransportCredentials(insecure.NewCredentials()), // the socket is root's, and only root's
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			select {
			case c := <-conns:
				return c, nil
			default:
				return d.DialContext(ctx, "unix", socket)
			}
		}))
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return conn, nil
}

// unreachable says what to look at when nobody answers on the socket.
func unreachable(socket string, err error) error {
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err // without the path once more
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("cannot reach the agent on %s: %w\nOnly root may use the socket", socket, err)
	}
	return fmt.Errorf("cannot reach the agent on %s: %w\nIs the service running? See: systemctl status pve-rigaud", socket, err)
}

// explain takes gRPC's wrapping off an error of the agent.
func explain(err error) error {
	if err == nil {
		return nil
	}
	s := status.Convert(err)
	return fmt.Errorf("the agent answers %s: %s", s.Code(), s.Message())
}

// view is the beginning of every JSON answer: who answered, and how far it can be believed.
type view struct {
	Node       string   `json:"node"`        // that answered
	Cluster    string   `json:"cluster"`     // "" on a node without a cluster
	Version    string   `json:"version"`     // of the agent that answered
	Quorate    bool     `json:"quorate"`     // the node has quorum
	ReadAt     *string  `json:"read_at"`     // when /etc/pve was last seen to be like this, RFC 3339 in UTC; null: never
	AgeSeconds *float64 `json:"age_seconds"` // how long ago that was
	Stale      string   `json:"stale"`       // why the answer may be out of date; "" if it is not
}

func viewOf(v *nodepb.View) view {
	out := view{Node: v.GetNode(), Cluster: v.GetCluster(), Version: v.GetVersion(), Quorate: v.GetQuorate(), Stale: v.GetStale()}
	if ms := v.GetReadAtUnixMs(); ms != 0 {
		at, age := time.UnixMilli(ms).UTC().Format(time.RFC3339Nano), seconds(v.GetAgeMs())
		out.ReadAt, out.AgeSeconds = &at, &age
	}
	return out
}

func seconds(ms int64) float64 { return float64(ms) / 1000 }
