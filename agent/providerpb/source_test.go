package providerpb_test

import (
	"testing"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// TestGeneratedFromSource fails when provider.proto was edited without running
// `make proto`, or the generated code without editing provider.proto.
func TestGeneratedFromSource(t *testing.T) {
	compiler := protocompile.Compiler{
		Resolver: &protocompile.SourceResolver{ImportPaths: []string{"../.."}},
	}
	files, err := compiler.Compile(t.Context(), "agent/providerpb/provider.proto")
	if err != nil {
		t.Fatal(err)
	}
	source := protoutil.ProtoFromFileDescriptor(files[0])
	generated := protodesc.ToFileDescriptorProto(providerpb.File_agent_providerpb_provider_proto)
	if diff := cmp.Diff(source, generated, protocmp.Transform()); diff != "" {
		t.Errorf("provider.proto and the generated code differ, run `make proto` (-source +generated):\n%s", diff)
	}
}
