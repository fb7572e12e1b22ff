package config

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// arguments is what the command line says.
type arguments struct {
	file        string
	fileGiven   bool
	printConfig bool
	settings    []setting
}

// newFlags makes the flags of all keys; parsing fills a.
func newFlags(a *arguments) *pflag.FlagSet {
	fs := pflag.NewFlagSet("pve-rigaud", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {} // the caller prints FlagUsages
	fs.StringVar(&a.file, "config", DefaultFile, "configuration `file`")
	fs.BoolVar(&a.printConfig, "print-config", false, "print the effective settings with their origins, without secrets, and exit")
	for _, k := range keys {
		v := &flagValue{key: k, to: &a.settings}
		f := fs.VarPF(v, k.flagName(), "", strings.ReplaceAll(k.doc, "`", ""))
		if v.Type() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	return fs
}

// FlagUsages describes all flags, for --help.
func FlagUsages() string {
	return newFlags(new(arguments)).FlagUsagesWrapped(100)
}

// A flagValue collects settings; they are converted later with all others.
type flagValue struct {
	key *key
	to  *[]setting
}

// Set is called once for each time the flag is given. A list grows, the rest
// takes the last value.
func (v *flagValue) Set(text string) error {
	s := setting{key: v.key, source: "--" + v.key.flagName(), texts: []string{text}}
	if kind := v.Type(); kind == "strings" || kind == "entry" {
		if kind == "strings" {
			s.texts = splitList(text)
		}
		for i := range *v.to {
			if old := &(*v.to)[i]; old.key == v.key {
				old.texts = append(old.texts, s.texts...)
				return nil
			}
		}
	}
	*v.to = append(*v.to, s)
	return nil
}

// String is the default that usage shows.
func (v *flagValue) String() string {
	if v.key == nil { // pflag makes a zero value to compare defaults with
		return ""
	}
	return v.key.def
}

// Type is the word that usage shows for the value.
func (v *flagValue) Type() string {
	switch v.key.field(new(Config)).(type) {
	case *bool:
		return "bool"
	case *int:
		return "int"
	case table:
		return "entry"
	case *ratio:
		return "float"
	case *[]string:
		return "strings"
	}
	return "string"
}

// parseArguments reads the command line.
func parseArguments(args []string) (*arguments, error) {
	a := new(arguments)
	fs := newFlags(a)
	err := fs.Parse(args)
	var unknown *pflag.NotExistError
	switch {
	case errors.As(err, &unknown):
		return nil, unknownFlag(fs, unknown.GetSpecifiedName())
	case err != nil:
		return nil, fmt.Errorf("parse flags: %w", err)
	case fs.NArg() > 0:
		return nil, fmt.Errorf("parse flags: unexpected argument %q", printable(fs.Arg(0)))
	}
	a.fileGiven = fs.Changed("config")
	return a, nil
}

// unknownFlag says which flag may be meant, and where secrets go instead.
func unknownFlag(fs *pflag.FlagSet, name string) error {
	flag := "--" + printable(name)
	switch name {
	case "pve-token-secret", "pve-password", "token-secret", "password":
		return fmt.Errorf("parse flags: %s: every user of the machine can read command lines; "+
			"put the secret into a file of mode 0600 and name it with --pve-%s-file", flag, strings.TrimPrefix(name, "pve-"))
	}
	for _, k := range keys {
		if strings.ReplaceAll(k.name, ".", "-") == name {
			return fmt.Errorf("parse flags: unknown flag %s, did you mean --%s?", flag, k.flagName())
		}
	}
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := nearest(name, names); near != "" {
		return fmt.Errorf("parse flags: unknown flag %s, did you mean --%s?", flag, near)
	}
	return fmt.Errorf("parse flags: unknown flag %s", flag)
}

// environment reads the documented variables. An empty one counts as unset:
// that is how an optional Secret key arrives in a container.
func environment(lookup func(string) (string, bool)) []setting {
	var settings []setting
	for _, k := range keys {
		if k.env == "" || lookup == nil {
			continue
		}
		text, _ := lookup(k.env)
		if text == "" {
			continue
		}
		s := setting{key: k, source: "env " + k.env, env: true, texts: []string{text}}
		if _, ok := k.field(new(Config)).(*[]string); ok {
			s.texts = splitList(text)
		}
		settings = append(settings, s)
	}
	return settings
}

// splitList splits at commas and drops white space and empty parts.
func splitList(text string) []string {
	var list []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			list = append(list, part)
		}
	}
	return list
}
