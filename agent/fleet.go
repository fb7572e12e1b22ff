package agent

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/config"
	"github.com/pve-rigaud/pve-rigaud/agent/cordon"
	"github.com/pve-rigaud/pve-rigaud/agent/gossip"
	"github.com/pve-rigaud/pve-rigaud/agent/guest/status"
	"github.com/pve-rigaud/pve-rigaud/agent/image"
	"github.com/pve-rigaud/pve-rigaud/agent/mtls"
	"github.com/pve-rigaud/pve-rigaud/agent/node"
	"github.com/pve-rigaud/pve-rigaud/agent/peer"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/provider"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/route"
	"github.com/pve-rigaud/pve-rigaud/cluster"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// localClient owns what is created over a connection without certificates.
const localClient = "local"

// clientIdentity returns who asks: the client of a forwarded request is that of the agent which forwards it.
func clientIdentity(ctx context.Context) string {
	if id, ok := forward.Client(ctx); ok {
		return id
	}
	return callerIdentity(ctx)
}

// callerIdentity returns who is at the other end of the connection.
func callerIdentity(ctx context.Context) string {
	if id, ok := mtls.Peer(ctx); ok {
		return id
	}
	return localClient
}

// fleet is the agents of the cluster, as this one deals with them.
type fleet struct {
	self    cluster.Member // without address
	watcher *pmxcfs.Watcher
	holder  *mtls.Holder // nil: plaintext
	gossip  *gossip.Gossip
	forward *forward.Forwarder
}

// newFleet wires what is heard of other agents. Requests go to them after connect.
func (a *Agent) newFleet(watcher *pmxcfs.Watcher, holder *mtls.Holder, o options) *fleet {
	self := cluster.Member{Name: a.cfg.Node, Version: o.version, Protocol: o.protocol}
	return &fleet{self: self, watcher: watcher, holder: holder, gossip: a.newGossip(watcher, o)}
}

// connect wires what sends requests to other nodes.
func (f *fleet) connect(network Network, records *record.Store, places placer, log *slog.Logger) {
	f.forward = forward.New(forward.Config{
		Node: f.self.Name, Services: []string{providerpb.Provider_ServiceDesc.ServiceName},
		Router: route.New(route.Config{
			Node: f.self.Name, Watcher: f.watcher, Records: records, Client: clientIdentity, Place: places.place, Placed: places.scheduler.Answered,
			Quorate: f.gossip.Quorate, Stranger: f.gossip.Stranger, Status: provider.Status,
		}),
		Address: f.gossip.Address, Credentials: f.credentials, Peer: f.peer, Client: callerIdentity,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) { return network.Dial(ctx, "tcp", addr) },
		Log:  log,
	})
}

// clusterName is the name of the cluster, "" while it is not known.
func clusterName(watcher *pmxcfs.Watcher) string {
	world, _ := watcher.Latest()
	if world == nil {
		return ""
	}
	return world.Members.Cluster
}

// credentials are those of the connection to a node's agent.
func (f *fleet) credentials(node string) credentials.TransportCredentials {
	if f.holder == nil {
		return insecure.NewCredentials()
	}
	return credentials.NewTLS(f.holder.PeerConfig(node, clusterName(f.watcher)))
}

// peer returns the node whose agent calls: its certificate says so, and the cluster has that node. Without certificates,
// where everybody may do everything anyway, the caller's word is taken.
func (f *fleet) peer(ctx context.Context) (string, bool) {
	world, _ := f.watcher.Latest() // who belongs to the cluster does not change while /etc/pve cannot be read
	if world == nil {
		return "", false
	}
	node, ok := mtls.PeerNode(ctx, world.Members.Cluster)
	if f.holder == nil {
		node, ok = forward.Claimed(ctx)
	}
	_, member := world.Members.Nodes[node]
	return node, ok && member
}

// knownAgents refuses what an agent forwards that cannot be recognized now as one of this cluster, because /etc/pve tells
// of no cluster while pmxcfs restarts. Taken for an ordinary client's, its request would be made in that agent's own name,
// and make a second VM of a name that is taken. The service for agents refuses strangers by itself.
func (f *fleet) knownAgents(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if node, forwarded := forward.Claimed(ctx); forwarded && !peer.Private(info.FullMethod) && mtls.IsAgent(ctx) {
		if _, known := f.peer(ctx); !known {
			return nil, grpcstatus.Errorf(codes.FailedPrecondition, "%s: node %s cannot tell now whether the agent that forwards it for node %s is one of its cluster (no such node in .members)",
				info.FullMethod, f.self.Name, node)
		}
	}
	return handler(ctx, req)
}

// Others returns the other nodes of the cluster.
func (f *fleet) Others() []string {
	world, err := f.watcher.World()
	if err != nil {
		return nil
	}
	var names []string
	for name := range world.Members.Nodes {
		if name != f.self.Name {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// ListVMs asks the agent of a node for its VMs.
func (f *fleet) ListVMs(ctx context.Context, node string) (*providerpb.ListVMsResponse, error) {
	var resp providerpb.ListVMsResponse
	err := f.forward.Call(ctx, node, providerpb.Provider_ListVMs_FullMethodName, &providerpb.ListVMsRequest{}, &resp)
	return &resp, err
}

// Asked reports whether another agent asks for this node's part of the list.
func (f *fleet) Asked(ctx context.Context) bool { return forward.Part(ctx) }

// newNodeService wires what commands ask. They are shown what is known, however old.
func (f *fleet) newNodeService(records *record.Store, tracker *status.Tracker, images *image.Images, places placer, drainer node.Maintenance, cordons *cordon.Store) *node.Service {
	return node.New(node.Config{
		Self: f.self, World: f.watcher.Latest, Records: records, Peers: f.gossip.Peers, Links: f.forward.Links, Images: images.Overview,
		Scheduler: places, Maintenance: drainer,
		Cordoned: func(node string) (cordoned, draining bool) {
			c, is := cordons.Of(node)
			return is, c.Draining
		},
		Power: func(ctx context.Context, vm *pmxcfs.VM) string {
			st, err := tracker.State(ctx, vm.ID, status.Want{Lock: vm.Conf.Lock()})
			if err != nil {
				return ""
			}
			return strings.ToLower(string(st.Power))
		},
	})
}

// newNodeServer serves the node service to commands.
func newNodeServer(socket string, service *node.Service, log *slog.Logger) *node.Server {
	options := []grpc.ServerOption{grpc.ChainUnaryInterceptor(recoverPanics(log))}
	return node.NewServer(node.ServerConfig{Socket: socket, Options: options, Log: log, Service: service})
}

// newGossip wires what this node tells the others and hears of them.
func (a *Agent) newGossip(watcher *pmxcfs.Watcher, o options) *gossip.Gossip {
	cfg := gossip.Config{
		Node: a.cfg.Node, Version: o.version, Protocol: o.protocol, Watcher: watcher,
		Bind: a.cfg.Gossip.Bind, Advertise: a.cfg.Gossip.Advertise, Join: a.cfg.Gossip.Join, KeyFile: a.cfg.Gossip.KeyFile,
		Service: a.serviceAddr(), ServiceAdvertise: a.cfg.Listen.Advertise,
		Digest: a.capacity.Digest, Facts: a.capacity.Facts, Now: o.now, Log: a.log,
	}
	if o.virtual {
		cfg.Transport = func(ctx context.Context, bind netip.AddrPort) (cluster.Transport, error) {
			return cluster.NewTransport(ctx, o.network, bind)
		}
	}
	return gossip.New(cfg)
}

// serviceAddr is where the provider service listens: the configured host with the real port.
func (a *Agent) serviceAddr() string {
	host, _, err := net.SplitHostPort(a.cfg.Listen.GRPC)
	_, port, perr := net.SplitHostPort(a.grpc.Addr().String())
	if err != nil || perr != nil {
		return a.cfg.Listen.GRPC
	}
	return net.JoinHostPort(host, port)
}

// mtlsConfig names the files and whose calls are taken: those of clients, and of the other nodes' agents.
func mtlsConfig(l config.Listen, watcher *pmxcfs.Watcher, log *slog.Logger) mtls.Config {
	return mtls.Config{
		Cert: l.Cert, Key: l.Key, CA: l.CA, AllowedSANs: l.AllowedSANs, Log: log,
		Cluster: func() string { return clusterName(watcher) },
	}
}
