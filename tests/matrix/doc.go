// Package matrix holds, for every field of the manager's payloads and for each of Create, Clone and Reconfigure, which
// calls of PVE it causes, as text: testdata/<rpc>.txt. The tests ask a real agent in front of a simulated PVE, whose calls
// are checked against the schemas of all versions of PVE that are at hand.
package matrix
