package nodepb_test

import (
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/nodepb"
)

// TestGeneratedFromSource fails when node.proto was edited without running
// `make proto`, or the generated code without editing node.proto.
func TestGeneratedFromSource(t *testing.T) {
	compiler := protocompile.Compiler{
		Resolver: &protocompile.SourceResolver{ImportPaths: []string{"../.."}},
	}
	files, err := compiler.Compile(t.Context(), "agent/nodepb/node.proto")
	if err != nil {
		t.Fatal(err)
	}
	source := protoutil.ProtoFromFileDescriptor(files[0])
	generated := protodesc.ToFileDescriptorProto(nodepb.File_agent_nodepb_node_proto)
	if diff := cmp.Diff(source, generated, protocmp.Transform()); diff != "" {
		t.Errorf("node.proto and the generated code differ, run `make proto` (-source +generated):\n%s", diff)
	}
}
