package main

import (
	"context"
	"net"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// constantServer answers at once, with what the agent answers: as fast as gRPC itself is.
type constantServer struct {
	providerpb.UnimplementedProviderServer
	validate *providerpb.ValidateResponse
	describe *providerpb.DescribeResponse
}

func (s *constantServer) Validate(context.Context, *providerpb.ValidateRequest) (*providerpb.ValidateResponse, error) {
	return s.validate, nil
}

func (s *constantServer) Describe(context.Context, *providerpb.DescribeRequest) (*providerpb.DescribeResponse, error) {
	return s.describe, nil
}

// serveConstant serves until ctx ends, on the address given as the second argument.
func serveConstant(ctx context.Context) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", os.Args[2])
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	providerpb.RegisterProviderServer(server, &constantServer{
		validate: &providerpb.ValidateResponse{Ok: true},
		describe: &providerpb.DescribeResponse{
			Exists: true, PowerState: "On", Ips: []string{"10.77.0.100"},
			ConsoleUrl:      "https://127.0.0.1:8006/?console=kvm&node=pve1&novnc=1&vmid=100&vmname=vm-100",
			ProviderRawJson: `{"cpus":"1","cpus_max":"1","hostname":"vm-100","memory_mib":"512","name":"vm-100","node":"pve1","os":"Debian","status":"running","vmid":"100"}`,
		},
	})
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, server.Stop)()
	return server.Serve(l)
}

// freeAddress returns a loopback address nobody listens on.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
