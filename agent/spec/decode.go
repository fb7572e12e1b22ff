package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"
)

// decode reads one JSON payload and returns the keys in it that nothing here knows, with their paths. Absent and
// null leave the value as it is, unless the payload is required.
func decode(p place, text string, required bool, into any) ([]string, error) {
	text = strings.TrimSpace(text)
	if text == "" || text == "null" {
		if required {
			return nil, p.err("", "is empty, an object is needed")
		}
		return nil, nil
	}
	strict := json.NewDecoder(strings.NewReader(text))
	strict.DisallowUnknownFields()
	err := strict.Decode(into)
	if err == nil {
		if _, err := strict.Token(); !errors.Is(err, io.EOF) {
			return nil, p.err("", "has more text after its JSON value")
		}
		return nil, nil
	}
	if isUnknownField(err) { // which hides what else may be wrong
		err = json.Unmarshal([]byte(text), into)
	}
	if err != nil {
		return nil, decodeError(p, err)
	}
	var tree any
	if err := json.Unmarshal([]byte(text), &tree); err != nil {
		return nil, decodeError(p, err)
	}
	return unknown(nil, p.payload, reflect.TypeOf(into), tree), nil
}

// isUnknownField knows the error of a strict decoder, which has no type.
func isUnknownField(err error) bool { return strings.HasPrefix(err.Error(), "json: unknown field ") }

func decodeError(p place, err error) error {
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return p.err(wrongType.Field, "expected %s, got %s", expected(wrongType.Type), wrongType.Value)
	}
	return p.err("", "is not valid JSON: %s", strings.TrimPrefix(err.Error(), "json: "))
}

// expected names a type for people.
func expected(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[quantity]():
		return "a quantity such as 4Gi"
	case reflect.TypeFor[Duration]():
		return "a duration such as 30m0s"
	}
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	}
	return "a " + t.String()
}

// unknown adds the paths of the keys in a decoded value that a type has no field for. As in encoding/json, the case
// of keys does not matter, and what decodes itself is not looked into.
func unknown(paths []string, path string, t reflect.Type, value any) []string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(reflect.TypeFor[json.Unmarshaler]()) {
		return paths
	}
	switch v := value.(type) {
	case []any:
		if t.Kind() == reflect.Slice {
			for i, e := range v {
				paths = unknown(paths, fmt.Sprintf("%s[%d]", path, i), t.Elem(), e)
			}
		}
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return paths
		}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if f, ok := fieldFor(t, key); ok {
				paths = unknown(paths, path+"."+key, f, v[key])
			} else {
				paths = append(paths, path+"."+key)
			}
		}
	}
	return paths
}

// fieldFor returns the type of the field that a key is decoded into.
func fieldFor(t reflect.Type, key string) (reflect.Type, bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			name = f.Name
		}
		if name != "-" && f.IsExported() && strings.EqualFold(name, key) {
			return f.Type, true
		}
	}
	return nil, false
}
