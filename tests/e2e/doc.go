// Package e2e holds tests of whole agents: assembled as the program assembles them, called over gRPC with what the
// manager sends, on a simulated PVE cluster.
package e2e
