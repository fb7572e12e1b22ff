package peerpb_test

import (
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/peerpb"
)

// TestGeneratedFromSource fails when peer.proto was edited without running
// `make proto`, or the generated code without editing peer.proto.
func TestGeneratedFromSource(t *testing.T) {
	compiler := protocompile.Compiler{
		Resolver: &protocompile.SourceResolver{ImportPaths: []string{"../.."}},
	}
	files, err := compiler.Compile(t.Context(), "agent/peerpb/peer.proto")
	if err != nil {
		t.Fatal(err)
	}
	source := protoutil.ProtoFromFileDescriptor(files[0])
	generated := protodesc.ToFileDescriptorProto(peerpb.File_agent_peerpb_peer_proto)
	if diff := cmp.Diff(source, generated, protocmp.Transform()); diff != "" {
		t.Errorf("peer.proto and the generated code differ, run `make proto` (-source +generated):\n%s", diff)
	}
}
