package route

import (
	"context"
	"fmt"
	"path"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/ops"
	pb "github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
	"github.com/pve-rigaud/pve-rigaud/cluster/forward"
)

// finder returns the node of a request's subject.
type finder func(ctx context.Context, r *Router, req any) (forward.Way, error)

// subjects says of each RPC what it is about. Nil: about nothing that has a node; whoever is asked answers.
var subjects = map[string]finder{
	pb.Provider_Validate_FullMethodName:        nil,
	pb.Provider_GetCapabilities_FullMethodName: nil,
	pb.Provider_ListVMs_FullMethodName:         anywhere,

	pb.Provider_Delete_FullMethodName:          at(byID),
	pb.Provider_Power_FullMethodName:           at(byID),
	pb.Provider_Reconfigure_FullMethodName:     at(byID),
	pb.Provider_HardwareUpgrade_FullMethodName: at(byID),
	pb.Provider_Describe_FullMethodName:        at(byID),

	pb.Provider_SnapshotCreate_FullMethodName: at(byVM),
	pb.Provider_SnapshotDelete_FullMethodName: at(byVM),
	pb.Provider_SnapshotRevert_FullMethodName: at(byVM),
	pb.Provider_ExportDisk_FullMethodName:     at(byVM),
	pb.Provider_GetDiskInfo_FullMethodName:    at(byVM),

	// PVE clones on the node of the source. A repeat meets its earlier request there, unless the source has moved:
	// then it meets the record of the name.
	pb.Provider_Clone_FullMethodName: of(bySource),

	pb.Provider_TaskStatus_FullMethodName: at(byTask),

	pb.Provider_Create_FullMethodName:       of(byName),
	pb.Provider_ImagePrepare_FullMethodName: anywhere, // what is recorded is in /etc/pve
	pb.Provider_ImportDisk_FullMethodName:   at(byTarget),
}

// anywhere needs quorum and nothing else.
func anywhere(_ context.Context, r *Router, _ any) (forward.Way, error) {
	return forward.Way{Node: r.cfg.Node}, nil
}

// of makes a finder out of one for requests of one type.
func of[T any](find func(ctx context.Context, r *Router, req T) (forward.Way, error)) finder {
	return func(ctx context.Context, r *Router, req any) (forward.Way, error) {
		q, ok := req.(T)
		if !ok {
			return forward.Way{}, fault.New(fault.Internal, "a request of type %T has not the subject that its method should have", req)
		}
		return find(ctx, r, q)
	}
}

// at is of for what is on a node already: nothing is chosen.
func at[T any](find func(ctx context.Context, r *Router, req T) (string, error)) finder {
	return of(func(ctx context.Context, r *Router, req T) (forward.Way, error) {
		node, err := find(ctx, r, req)
		return forward.Way{Node: node}, err
	})
}

func byID(ctx context.Context, r *Router, req interface{ GetId() string }) (string, error) {
	return r.vm(ctx, req.GetId())
}

func byVM(ctx context.Context, r *Router, req interface{ GetVmId() string }) (string, error) {
	return r.vm(ctx, req.GetVmId())
}

func bySource(ctx context.Context, r *Router, req *pb.CloneRequest) (forward.Way, error) {
	if node, held, err := r.holder(ctx, req.GetTargetName()); held || err != nil {
		return forward.Way{Node: node}, err
	}
	return r.place(ctx, req)
}

func byTask(_ context.Context, r *Router, req *pb.TaskStatusRequest) (string, error) {
	return r.task(req.GetTask().GetId()), nil
}

func byName(ctx context.Context, r *Router, req *pb.CreateRequest) (forward.Way, error) {
	if node, held, err := r.holder(ctx, req.GetName()); held || err != nil {
		return forward.Way{Node: node}, err
	}
	return r.place(ctx, req)
}

// byTarget is for what makes something under a name out of what is not in the cluster yet.
func byTarget(ctx context.Context, r *Router, req interface{ GetTargetName() string }) (string, error) {
	node, held, err := r.holder(ctx, req.GetTargetName())
	if !held && err == nil {
		node = r.cfg.Node
	}
	return node, err
}

// about names the subject of a request, for people.
func about(method string, req any) string {
	name := path.Base(method)
	switch q := req.(type) {
	case *pb.TaskStatusRequest:
		return name + " " + q.GetTask().GetId()
	case *pb.CreateRequest:
		if image, err := spec.DecodeImage(q.GetImageJson()); err == nil && image.TemplateName != "" {
			return fmt.Sprintf("%s %s from %s", name, q.GetName(), image.TemplateName)
		}
		return name + " " + q.GetName()
	case *pb.CloneRequest:
		return fmt.Sprintf("%s of VM %s to %s", name, q.GetSourceVmId(), q.GetTargetName())
	case interface{ GetId() string }:
		return fmt.Sprintf("%s of VM %s", name, q.GetId())
	case interface{ GetVmId() string }:
		return fmt.Sprintf("%s of VM %s", name, q.GetVmId())
	case interface{ GetTargetName() string }:
		return name + " " + q.GetTargetName()
	}
	return name
}

// taskKind returns the kind of operation a request polls, "" for other requests.
func taskKind(req any) ops.Kind {
	q, ok := req.(*pb.TaskStatusRequest)
	if !ok {
		return ""
	}
	ref, err := ops.ParseRef(q.GetTask().GetId())
	if err != nil {
		return ""
	}
	return ref.Kind
}
