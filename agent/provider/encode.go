package provider

import (
	"errors"
	"maps"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/guest"
	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// statusCodes is the one table from reasons to gRPC codes. Ten Unavailable, DeadlineExceeded, Internal or Unknown
// answers in a row open the manager's circuit breaker for every VM behind this endpoint, so these stand only for
// troubles of the endpoint itself.
var statusCodes = map[fault.Reason]codes.Code{
	fault.Invalid:      codes.InvalidArgument,
	fault.NotFound:     codes.NotFound,
	fault.Exists:       codes.AlreadyExists,
	fault.Precondition: codes.FailedPrecondition,
	fault.Permission:   codes.PermissionDenied,
	fault.Aborted:      codes.Aborted,
	fault.Exhausted:    codes.ResourceExhausted,
	fault.Unavailable:  codes.Unavailable,
	fault.Internal:     codes.Internal,
	fault.Moved:        codes.Aborted,
}

// Status turns an error into the status a client gets. One of reason Moved is for the agent that asks.
func Status(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); !ok {
		return status.Error(codes.Internal, err.Error())
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Reason == fault.Moved {
		if lack, ok := errors.AsType[*fault.Error](f.Err); ok && lack.Reason == fault.Exhausted {
			return forward.Full(lack.Msg, err.Error())
		}
		return forward.Elsewhere(f.Node, err.Error())
	}
	code, known := statusCodes[fault.Of(err)]
	if !known { // from the journal of another version; the zero code would mean success
		code = codes.FailedPrecondition
	}
	return status.Error(code, err.Error())
}

func powerText(on bool) string {
	if on {
		return "On"
	}
	return "Off"
}

// bytesPerGiB rounds sizes up: a disk of 2.2 GiB needs 3.
const bytesPerGiB = 1 << 30

func vmInfo(l guest.Listing) *providerpb.VMInfo {
	info := &providerpb.VMInfo{
		Id: l.ID, Name: l.Name, PowerState: powerText(l.On), Ips: l.IPs,
		Cpu: int32(min(l.VCPUs, 1<<30)), MemoryMib: l.MemoryMiB, ProviderRaw: maps.Clone(l.Raw),
	}
	for _, d := range l.Disks {
		info.Disks = append(info.Disks, &providerpb.DiskInfo{
			Id: d.Key, Path: d.Volume, Format: d.Format, SizeGib: int32((d.Bytes + bytesPerGiB - 1) / bytesPerGiB),
		})
	}
	for i, n := range l.NICs {
		nic := &providerpb.NetworkInfo{Name: n.Key, Mac: n.MAC}
		if i == 0 && len(l.IPs) > 0 {
			nic.IpAddress = l.IPs[0]
		}
		info.Networks = append(info.Networks, nic)
	}
	return info
}

// capabilities names what the code of this package does, and nothing else. Disk types are those that are configured.
func capabilities(diskTypes []string) *providerpb.GetCapabilitiesResponse {
	return &providerpb.GetCapabilitiesResponse{
		SupportsReconfigureOnline:   true,
		SupportsDiskExpansionOnline: true,
		SupportsSnapshots:           true,
		SupportsMemorySnapshots:     true,
		SupportsLinkedClones:        true,
		SupportedDiskTypes:          diskTypes,
		SupportedNetworkTypes:       slices.Clone(spec.NICModels),
	}
}
