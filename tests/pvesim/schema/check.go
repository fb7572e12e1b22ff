package schema

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var (
	integerText = regexp.MustCompile(`^[+-]?\d+$`)
	numberText  = regexp.MustCompile(`^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$`)
)

// checkAll checks a parameter that may have come more than once.
func (p *prop) checkAll(path string, values []string, errs errorMap) {
	if p.Type == "array" {
		for i, v := range values {
			if p.Items != nil {
				p.Items.check(fmt.Sprintf("%s[%d]", path, i), v, errs)
			}
		}
		return
	}
	if len(values) != 1 {
		errs.add(path, fmt.Sprintf("type check ('%s') failed - got ARRAY", p.Type))
		return
	}
	p.check(path, values[0], errs)
}

// check checks one value, in PVE's order: the first trouble is told.
func (p *prop) check(path, v string, errs errorMap) {
	if !p.typeOK(v) {
		errs.add(path, fmt.Sprintf("type check ('%s') failed - got '%s'", p.Type, v))
		return
	}
	if text := p.checkFormat(path, v); text != "" {
		errs.add(path, "invalid format - "+text+"\n")
		return
	}
	if p.pattern != nil && !p.pattern.MatchString(v) {
		errs.add(path, "value does not match the regex pattern")
		return
	}
	if p.MaxLength != nil && len([]rune(v)) > int(*p.MaxLength) {
		errs.add(path, fmt.Sprintf("value may only be %d characters long", int(*p.MaxLength)))
		return
	}
	if p.MinLength != nil && len([]rune(v)) < int(*p.MinLength) {
		errs.add(path, fmt.Sprintf("value must be at least %d characters long", int(*p.MinLength)))
		return
	}
	if text := p.outOfRange(v); text != "" {
		errs.add(path, text)
		return
	}
	if len(p.Enum) > 0 && !slices.Contains(p.Enum, v) {
		errs.add(path, fmt.Sprintf("value '%s' does not have a value in the enumeration '%s'", v, strings.Join(p.Enum, ", ")))
	}
}

func (p *prop) typeOK(v string) bool {
	switch p.Type {
	case "boolean":
		return v == "0" || v == "1"
	case "integer":
		return integerText.MatchString(v)
	case "number":
		return numberText.MatchString(v)
	}
	return true
}

func (p *prop) outOfRange(v string) string {
	n, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return ""
	}
	if p.Maximum != nil && n > float64(*p.Maximum) {
		return "value must have a maximum value of " + plain(*p.Maximum)
	}
	if p.Minimum != nil && n < float64(*p.Minimum) {
		return "value must have a minimum value of " + plain(*p.Minimum)
	}
	return ""
}

func plain(n number) string { return strconv.FormatFloat(float64(n), 'f', -1, 64) }

// checkFormat checks a named format or a property string.
func (p *prop) checkFormat(path, v string) string {
	if p.object != nil {
		return p.checkObject(path, v)
	}
	name, isList := strings.CutSuffix(p.format, "-list")
	name, isOpt := strings.CutSuffix(name, "-opt")
	f := formats[name]
	switch {
	case f == nil, isOpt && v == "":
		return ""
	case isList:
		for _, item := range splitList(v) {
			if text := f(item); text != "" {
				return text
			}
		}
		return ""
	}
	return f(v)
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool {
		return r == ',' || r == ';' || r == ' ' || r == '\t' || r == '\n' || r == 0
	})
}

// checkObject checks a property string ("virtio=<MAC>,bridge=vmbr0").
func (p *prop) checkObject(path, text string) string {
	schema := p.object
	values, trouble := splitObject(schema, text)
	if trouble != "" {
		return trouble
	}
	errs := errorMap{}
	for _, key := range slices.Sorted(maps.Keys(schema)) {
		p := schema[key]
		v, ok := values[key]
		switch {
		case p.Alias != "":
		case ok:
			p.check(path+"."+key, v, errs)
			if _, has := values[p.Requires]; p.Requires != "" && !has {
				errs.add(path+"."+p.Requires, "missing property required by '"+path+"."+key+"'")
			}
		case !bool(p.Optional):
			errs.add(path+"."+key, "property is missing and it is not optional")
		}
	}
	if len(errs) == 0 {
		if p.validate != nil {
			return p.validate(values)
		}
		return ""
	}
	lines := []string{"format error"}
	for _, key := range slices.Sorted(maps.Keys(errs)) {
		lines = append(lines, key+": "+errs[key])
	}
	return strings.Join(lines, "\n")
}

func splitObject(schema map[string]*prop, text string) (values map[string]string, trouble string) {
	out := map[string]string{}
	for _, part := range strings.Split(text, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		key, v, ok := strings.Cut(part, "=")
		if !ok {
			key, v = defaultKey(schema), part
			if key == "" {
				return nil, "value without key, but schema does not define a default key"
			}
		} else if key == "" || v == "" {
			return nil, "missing key in comma-separated list property"
		}
		if trouble := putKey(schema, out, key, v); trouble != "" {
			return nil, trouble
		}
	}
	return out, ""
}

func defaultKey(schema map[string]*prop) string {
	for key, p := range schema {
		if p.DefaultKey {
			return key
		}
	}
	return ""
}

func putKey(schema map[string]*prop, out map[string]string, key, v string) (trouble string) {
	if _, ok := out[key]; ok {
		return "duplicate key in comma-separated list property: " + key
	}
	p := schema[key]
	if p != nil && p.Alias != "" {
		if p.KeyAlias != "" {
			if _, ok := out[p.KeyAlias]; ok {
				return "key alias '" + p.KeyAlias + "' is already defined"
			}
			out[p.KeyAlias] = key
		}
		key = p.Alias
		p = schema[key]
		if _, ok := out[key]; ok {
			return "key '" + key + "' is already defined (via alias)"
		}
	}
	if p == nil {
		return "invalid key in comma-separated list property: " + key
	}
	if p.Type == "boolean" {
		v = truth(v)
	}
	out[key] = v
	return ""
}

// truth turns the words that property strings allow into 1 and 0.
func truth(v string) string {
	switch strings.ToLower(v) {
	case "1", "on", "yes", "true":
		return "1"
	case "0", "off", "no", "false":
		return "0"
	}
	return v
}
