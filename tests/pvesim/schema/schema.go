// Package schema checks requests against Proxmox VE's own call schema, with
// PVE's words for what is wrong.
package schema

// Checker holds one version's schema.
type Checker struct{}
