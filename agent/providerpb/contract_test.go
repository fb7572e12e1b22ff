package providerpb_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
)

// table is the shape of testdata/provider-v1.json: the manager's contract as
// data. File and go_package are not in it, they are ours to choose.
type table struct {
	Package  string    `json:"package"`
	Syntax   string    `json:"syntax"`
	Enums    []enum    `json:"enums"`
	Messages []message `json:"messages"`
	Services []service `json:"services"`
}

type enum struct {
	Name   string  `json:"name"`
	Values []value `json:"values"`
}

type value struct {
	Name   string `json:"name"`
	Number int32  `json:"number"`
}

type message struct {
	Name   string  `json:"name"`
	Fields []field `json:"fields"`
}

type field struct {
	Name     string `json:"name"`
	Number   int32  `json:"number"`
	Type     string `json:"type"`
	Label    string `json:"label"`
	JSONName string `json:"json_name"`
	KeyType  string `json:"key_type"`
	Packed   bool   `json:"packed"`
}

type service struct {
	Name string `json:"name"`
	RPCs []rpc  `json:"rpcs"`
}

type rpc struct {
	Name            string `json:"name"`
	FullMethod      string `json:"full_method"`
	Request         string `json:"request"`
	Response        string `json:"response"`
	ClientStreaming bool   `json:"client_streaming"`
	ServerStreaming bool   `json:"server_streaming"`
}

// TestDescriptorEqualsTable compares the generated code with the contract in
// both directions: nothing missing, nothing added, the order included.
func TestDescriptorEqualsTable(t *testing.T) {
	data, err := os.ReadFile("testdata/provider-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var want table
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	if got := len(want.Services[0].RPCs); got != 18 {
		t.Fatalf("the table has %d RPCs, the contract has 18", got)
	}
	got := tableOf(providerpb.File_agent_providerpb_provider_proto)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("generated code differs from the contract (-contract +generated):\n%s", diff)
	}
}

func tableOf(f protoreflect.FileDescriptor) table {
	return table{
		Package: string(f.Package()),
		Syntax:  f.Syntax().String(),
		Enums:   each(f.Enums(), enumOf),
		Messages: each(f.Messages(), func(m protoreflect.MessageDescriptor) message {
			return message{Name: string(m.Name()), Fields: each(m.Fields(), fieldOf)}
		}),
		Services: each(f.Services(), serviceOf),
	}
}

// each applies of to every element of one of protoreflect's lists.
func each[D, R any](list interface {
	Len() int
	Get(int) D
}, of func(D) R,
) []R {
	out := make([]R, list.Len())
	for i := range out {
		out[i] = of(list.Get(i))
	}
	return out
}

func enumOf(e protoreflect.EnumDescriptor) enum {
	return enum{
		Name: string(e.Name()),
		Values: each(e.Values(), func(v protoreflect.EnumValueDescriptor) value {
			return value{Name: string(v.Name()), Number: int32(v.Number())}
		}),
	}
}

func fieldOf(f protoreflect.FieldDescriptor) field {
	out := field{
		Name:     string(f.Name()),
		Number:   int32(f.Number()),
		Type:     typeOf(f),
		Label:    "singular",
		JSONName: f.JSONName(),
		Packed:   f.IsPacked(),
	}
	switch {
	case f.IsMap():
		out.Label, out.KeyType, out.Type = "map", typeOf(f.MapKey()), typeOf(f.MapValue())
	case f.IsList():
		out.Label = "repeated"
	case f.ContainingOneof() != nil:
		// "optional" is a oneof with one member; the contract has neither.
		out.Label = "oneof " + string(f.ContainingOneof().Name())
	}
	return out
}

// typeOf names a type as the table does: scalars by kind, others in full.
func typeOf(f protoreflect.FieldDescriptor) string {
	switch {
	case f.Message() != nil:
		return string(f.Message().FullName())
	case f.Enum() != nil:
		return string(f.Enum().FullName())
	}
	return f.Kind().String()
}

func serviceOf(s protoreflect.ServiceDescriptor) service {
	return service{
		Name: string(s.FullName()),
		RPCs: each(s.Methods(), func(m protoreflect.MethodDescriptor) rpc {
			return rpc{
				Name:            string(m.Name()),
				FullMethod:      "/" + string(s.FullName()) + "/" + string(m.Name()),
				Request:         string(m.Input().Name()),
				Response:        string(m.Output().Name()),
				ClientStreaming: m.IsStreamingClient(),
				ServerStreaming: m.IsStreamingServer(),
			}
		}),
	}
}

// TestServiceDescriptorEqualsTable looks at the other generated file, which
// holds the method names that really go over the wire.
func TestServiceDescriptorEqualsTable(t *testing.T) {
	declared := providerpb.File_agent_providerpb_provider_proto.Services().Get(0)
	var want, got []string
	for _, r := range serviceOf(declared).RPCs {
		want = append(want, r.FullMethod)
	}
	desc := providerpb.Provider_ServiceDesc
	for _, m := range desc.Methods {
		got = append(got, "/"+desc.ServiceName+"/"+m.MethodName)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("methods of the gRPC service (-descriptor +service):\n%s", diff)
	}
	if len(desc.Streams) != 0 {
		t.Errorf("the contract has no streams, the service has %d", len(desc.Streams))
	}
}
