// Package payloads holds the JSON that the VirtRigaud manager puts into its requests, as its own types marshal it.
package payloads

import _ "embed" // the payloads are files of this directory

// The payloads of requests.
var (
	//go:embed class-json.json
	Class string // every field set: UEFI, hot-add, TPM
	//go:embed class-json-minimal-class.json
	MinimalClass string // 2 CPUs, 4096 MiB, nothing else
	//go:embed image-json-template.json
	Image string // TemplateName 9000
	//go:embed networks-json.json
	Networks string // two NICs, the first with a static address
	//go:embed networks-json-no-networks.json
	NoNetworks string // null
	//go:embed disks-json.json
	Disks string // one data disk
	//go:embed disks-json-no-disks.json
	NoDisks string // null
	//go:embed placement-json.json
	Placement string
	//go:embed desired-json.json
	Desired string // of Reconfigure
)

// Template is the TemplateName in Image.
const Template = "9000"
