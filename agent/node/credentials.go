package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// peerProtocol names how a peer was recognized: by what the kernel says about the other end of a unix socket.
const peerProtocol = "peercred"

// PeerInfo is what the kernel says about the process that connected (SO_PEERCRED). A call's peer.Peer has it.
type PeerInfo struct {
	credentials.CommonAuthInfo
	UID, GID uint32
	PID      int32
}

// AuthType names the kind of PeerInfo.
func (PeerInfo) AuthType() string { return peerProtocol }

// errClient says that these credentials are a server's.
var errClient = errors.New("peer credentials are for servers")

// peerCredentials lets root and our own user in, and nobody else. It adds no bytes to a connection: a client uses none.
type peerCredentials struct{ log *slog.Logger }

// ServerHandshake looks at who connected.
func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := peerOf(conn)
	if err != nil {
		return nil, nil, err
	}
	if cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		c.log.Warn("a process was refused on the node socket", "uid", cred.Uid, "pid", cred.Pid)
		return nil, nil, fmt.Errorf("uid %d may not use this socket", cred.Uid)
	}
	info := PeerInfo{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}
	info.SecurityLevel = credentials.PrivacyAndIntegrity // it never leaves this machine
	return conn, info, nil
}

// ClientHandshake fails: these are a server's credentials.
func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errClient
}

// Info describes the credentials.
func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: peerProtocol}
}

// Clone returns a copy.
func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: there is no name.
func (peerCredentials) OverrideServerName(string) error { return nil }

// peerOf asks the kernel who is at the other end.
func peerOf(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("see who connected: %T is no unix socket", conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("see who connected: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("see who connected: %w", err)
	}
	return cred, nil
}
