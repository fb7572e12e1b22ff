package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/pve-rigaud/pve-rigaud/"
	self   = module + "agent/spec"
)

// waiting are the fields that nothing outside this package reads yet, by the reason. Who reads one takes it out:
// TestEveryFieldIsRead fails for a field that is missing here, and for one that is here for no reason.
var waiting = map[string]string{
	"a Clone that has them is refused as a whole": `
		Certificate.Data Certificate.Name Certificate.SecretKey Certificate.SecretRef Certificate.Store
		DomainJoin.Domain DomainJoin.OrganizationalUnit DomainJoin.Password DomainJoin.Username
		GuestCommand.Arguments GuestCommand.Command GuestCommand.RunAsUser GuestCommand.Stage GuestCommand.Timeout
		GuestCommand.WorkingDirectory Password.SecretKey Password.SecretRef Password.Value
	`,
	"what an image is fetched with is not needed for a template that is there": `
		Distribution.Family Distribution.Kernel Distribution.Name Distribution.Variant
		Distribution.Version HTTPAuthentication.BasicAuth HTTPAuthentication.Bearer
		HTTPAuthentication.ClientCert HTTPSource.Authentication HTTPSource.Checksum
		HTTPSource.ChecksumType HTTPSource.Headers HTTPSource.Timeout ImageMetadata.Annotations
		ImageMetadata.Architecture ImageMetadata.Description ImageMetadata.Tags ImageMetadata.Version
		ImagePrepare.Distribution Kernel.Type Kernel.Version LibvirtSource.Checksum
		LibvirtSource.ChecksumType LibvirtSource.Format LibvirtSource.StoragePool Prepare.OnMissing
		RegistrySource.Format RegistrySource.PullSecretRef SecretKeys.CertKey SecretKeys.KeyKey
		SecretKeys.PasswordKey SecretKeys.SecretRef SecretKeys.TokenKey SecretKeys.UsernameKey
		SecretRef.Name
	`,
}

// TestEveryFieldIsRead fails for a field of a wish that no code acts upon: what the manager writes is applied, or
// refused with a message that names it.
func TestEveryFieldIsRead(t *testing.T) {
	wished, read := fieldsReadOutside(t)
	waits := map[string]string{}
	for reason, fields := range waiting {
		for field := range strings.FieldsSeq(fields) {
			waits[field] = reason
		}
	}
	for _, field := range slices.Sorted(maps.Keys(wished)) {
		reason, waiting := waits[field]
		switch {
		case !read[field] && !waiting:
			t.Errorf("%s is read by nobody: apply it or refuse it", field)
		case read[field] && waiting:
			t.Errorf("%s is read now: take it out of the list of fields that wait (%s)", field, reason)
		}
	}
	for field := range waits {
		if !wished[field] {
			t.Errorf("%s waits, and is no field of a wish", field)
		}
	}
}

// wishes are the types that a decoder returns.
var wishes = []reflect.Type{reflect.TypeFor[Create](), reflect.TypeFor[Reconfigure](), reflect.TypeFor[Clone](), reflect.TypeFor[ImagePrepare]()}

// walk calls visit for every exported field of a struct of this package and of those below it, once per type.
func walk(t reflect.Type, seen map[reflect.Type]bool, visit func(owner reflect.Type, f reflect.StructField)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.PkgPath() != self || seen[t] {
		return
	}
	seen[t] = true
	for i := range t.NumField() {
		visit(t, t.Field(i))
		walk(t.Field(i).Type, seen, visit)
	}
}

// fieldsReadOutside returns the fields of the wishes as "Type.Field", and which of them the module's other packages
// select in what ships.
func fieldsReadOutside(t *testing.T) (wished, read map[string]bool) {
	wished, read = map[string]bool{}, map[string]bool{}
	seen := map[reflect.Type]bool{}
	for _, w := range wishes {
		walk(w, seen, func(owner reflect.Type, f reflect.StructField) { wished[owner.Name()+"."+f.Name] = true })
	}
	packages := listPackages(t)
	fset := token.NewFileSet()
	from := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(packages[path].Export) })
	spec, err := from.Import(self)
	if err != nil {
		t.Fatal(err)
	}
	names := fieldNames(spec)
	for _, p := range packages {
		if p.ImportPath == self || !strings.HasPrefix(p.ImportPath, module+"agent/") {
			continue
		}
		for _, v := range selected(t, fset, from, p) {
			read[names[v]] = true
		}
	}
	return wished, read
}

// fieldNames says what each field of the package's types is called.
func fieldNames(pkg *types.Package) map[types.Object]string {
	names := map[types.Object]string{}
	for _, name := range pkg.Scope().Names() {
		if s, ok := pkg.Scope().Lookup(name).Type().Underlying().(*types.Struct); ok {
			for f := range s.Fields() {
				names[f] = name + "." + f.Name()
			}
		}
	}
	return names
}

// selected returns the fields of this package that another one selects.
func selected(t *testing.T, fset *token.FileSet, from types.Importer, p listed) []types.Object {
	t.Helper()
	var files []*ast.File
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Selections: map[*ast.SelectorExpr]*types.Selection{}}
	if _, err := (&types.Config{Importer: from}).Check(p.ImportPath, fset, files, info); err != nil {
		t.Fatal(err)
	}
	var fields []types.Object
	for _, s := range info.Selections {
		if s.Kind() == types.FieldVal && s.Obj().Pkg() != nil && s.Obj().Pkg().Path() == self {
			fields = append(fields, s.Obj())
		}
	}
	return fields
}

type listed struct {
	ImportPath, Dir, Export string
	GoFiles, Imports        []string
}

// listPackages returns the packages of the program, with their export data: what nobody calls does not count.
func listPackages(t *testing.T) map[string]listed {
	t.Helper()
	all := map[string]listed{}
	for _, p := range goList(t, "-deps", "-export", module+"cmd/pve-rigaud") {
		all[p.ImportPath] = p
	}
	return all
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Dir,Export,GoFiles,Imports"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, &stderr)
	}
	var list []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// TestPayloadsOfTheTestsAreWhole: every field of the wishes has a value in what the golden files are made of, so that
// a key that is not decoded is seen.
func TestPayloadsOfTheTestsAreWhole(t *testing.T) {
	created, err := DecodeCreate(CreateInput{
		Name: "web-01", ClassJSON: seed("create-class.json"), ImageJSON: `{"TemplateName":"a","Path":"b","URL":"c","Format":"raw","Checksum":"d","ChecksumType":"md5"}`,
		NetworksJSON: `[{"Name":"a","Portgroup":"b","NetworkName":"c","Bridge":"vmbr0","VLAN":1,"Model":"virtio","MacAddress":"02:00:00:00:00:01","IPPolicy":"static",` +
			`"StaticIP":"192.0.2.1","Prefix":24,"Gateway":"192.0.2.2","DNS":"192.0.2.3","PCISlotNumber":192}]`,
		DisksJSON: `[{"SizeGiB":1,"Type":"ssd","Name":"d"}]`, PlacementJSON: `{"Datastore":"a","StoragePod":"b","Cluster":"c","Folder":"d","Host":"e"}`,
		UserData: []byte("#!/bin/sh\n"), MetaData: []byte("a: b\n"), Tags: []string{"t"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, wish := range []any{created, fullClone(t), fullImage(t)} {
		for _, field := range zeroes(reflect.ValueOf(wish), reflect.TypeOf(wish).Name()) {
			t.Errorf("%s has no value", field)
		}
	}
}

// elsewhere are fields that one wish alone leaves empty.
var elsewhere = []string{
	"Create.Unknown", "Clone.Unknown", "ImagePrepare.Unknown",
	// The resources of a clone's networks have no such keys, or the second network has them.
	"Clone.Networks[0].Portgroup", "Clone.Networks[0].NetworkName", "Clone.Networks[0].Bridge", "Clone.Networks[0].VLAN", "Clone.Networks[0].Model",
	"Clone.Networks[0].IPPolicy", "Clone.Networks[0].PCISlotNumber",
	"Create.Class.DiskDefaults.IOPS", "Create.Class.DiskDefaults.StorageClass",
}

func zeroes(v reflect.Value, path string) []string {
	if slices.Contains(elsewhere, path) {
		return nil
	}
	if v.IsZero() {
		return []string{path}
	}
	var found []string
	switch v.Kind() {
	case reflect.Pointer:
		return zeroes(v.Elem(), path)
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Struct { // the first element is the whole one
			return zeroes(v.Index(0), path+"[0]")
		}
	case reflect.Struct:
		for i := range v.NumField() {
			// Keys of three kinds of Secret share a type, each with its own.
			if v.Type() == reflect.TypeFor[SecretKeys]() {
				continue
			}
			found = append(found, zeroes(v.Field(i), path+"."+v.Type().Field(i).Name)...)
		}
	}
	return found
}
