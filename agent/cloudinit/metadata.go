package cloudinit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

// metadata is a YAML mapping in the order of its keys.
type metadata struct{ node *yaml.Node }

// MetaPart returns the meta-data for a snippet: what was given, with this VM's instance-id, and with its host name
// unless one was given. It is nil where PVE's own says enough. On a config drive it is JSON.
func (w Wish) MetaPart() ([]byte, error) {
	meta, err := w.given()
	if err != nil {
		return nil, err
	}
	user, err := w.UserPart()
	if err != nil {
		return nil, err
	}
	// With user-data of ours or of the template, the meta-data alone tells the guest its name.
	if user == nil && !w.ownUserPart() && len(meta.node.Content) == 0 {
		return nil, nil
	}
	id := w.InstanceID
	if id == "" {
		id = w.Name
	}
	meta.set("instance-id", id)
	if !meta.has("local-hostname") {
		meta.set("local-hostname", w.wantedName(meta.hostname()).fqdn)
	}
	content, err := []byte(nil), error(nil)
	if w.Format == ConfigDrive {
		content, err = w.configDriveMeta(meta, id)
	} else if content, err = encode(meta.node); err == nil && !meta.survives(content) {
		err = w.Dialect.MetaDataError(0, "cannot be written anew as YAML; write it in a plainer way")
	}
	if err == nil && len(content) > spec.MaxUserData {
		err = w.Dialect.MetaDataError(0, fmt.Sprintf("%d bytes, at most %d fit", len(content), spec.MaxUserData))
	}
	if err != nil {
		return nil, err
	}
	return content, nil
}

// given reads the meta-data of the request. The manager puts two texts behind one another, so that the last of several
// equal keys counts, as cloud-init itself has it.
func (w Wish) given() (metadata, error) {
	empty := metadata{&yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}}
	var doc, more yaml.Node
	dec := yaml.NewDecoder(strings.NewReader(string(w.MetaData)))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return empty, nil
	} else if err != nil {
		return metadata{}, w.yamlError(err)
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return metadata{}, w.Dialect.MetaDataError(more.Line, "is a second YAML document; one is read")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" {
		return empty, nil
	}
	if root.Kind != yaml.MappingNode {
		return metadata{}, w.Dialect.MetaDataError(root.Line, "is no YAML mapping (key: value)")
	}
	if line, problem := tidy(root); problem != "" {
		return metadata{}, w.Dialect.MetaDataError(line, problem)
	}
	return metadata{root}, nil
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// yamlError takes the line out of what the YAML reader says.
func (w Wish) yamlError(err error) error {
	text, line := err.Error(), 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	return w.Dialect.MetaDataError(line, "is not valid YAML: "+strings.TrimPrefix(text, "yaml: "))
}

// plainTags are the tags of YAML that every reader knows.
var plainTags = []string{"!!str", "!!int", "!!float", "!!bool", "!!null", "!!seq", "!!map", "!!timestamp", "!!binary", "!!merge"}

// tidy removes all but the last of equal keys, and comments, which the YAML writer does not always put back where they
// may stand. It says what cloud-init's reader would not take.
func tidy(n *yaml.Node) (line int, problem string) {
	n.HeadComment, n.LineComment, n.FootComment = "", "", ""
	if n.Kind != yaml.AliasNode && !slices.Contains(plainTags, n.ShortTag()) {
		return n.Line, fmt.Sprintf("has the YAML tag %.40q, which cloud-init does not read", n.Tag)
	}
	if n.Kind == yaml.MappingNode {
		if line = lastOfEqual(n); line > 0 {
			return line, "has a key that is no plain text"
		}
	}
	for _, c := range n.Content {
		if line, problem := tidy(c); problem != "" {
			return line, problem
		}
	}
	return 0, ""
}

// lastOfEqual removes all but the last of a mapping's equal keys, unless something else may refer to what goes. It
// returns the line of a key that is no scalar.
func lastOfEqual(mapping *yaml.Node) (line int) {
	seen, kept := map[string]bool{}, make([]*yaml.Node, 0, len(mapping.Content))
	for i := len(mapping.Content) - 2; i >= 0; i -= 2 {
		key, value := mapping.Content[i], mapping.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			return key.Line
		}
		if id := key.ShortTag() + " " + key.Value; !seen[id] || !anchorless(key) || !anchorless(value) {
			seen[id] = true
			kept = append(kept, value, key)
		}
	}
	slices.Reverse(kept)
	mapping.Content = kept
	return 0
}

// anchorless reports whether nothing in the node can be referred to from elsewhere.
func anchorless(n *yaml.Node) bool {
	return n.Anchor == "" && !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return !anchorless(c) })
}

func (m metadata) value(key string) *yaml.Node {
	for i := 0; i+1 < len(m.node.Content); i += 2 {
		if m.node.Content[i].Value == key {
			return m.node.Content[i+1]
		}
	}
	return nil
}

func (m metadata) has(key string) bool { return m.value(key) != nil }

// hostname is the host name that was given, or "".
func (m metadata) hostname() string {
	for _, key := range []string{"local-hostname", "hostname"} {
		if v := m.value(key); v != nil && v.Kind == yaml.ScalarNode && v.ShortTag() != "!!null" {
			return v.Value
		}
	}
	return ""
}

func (m metadata) set(key, value string) {
	v := &yaml.Node{}
	v.SetString(value)
	v.Style = yaml.DoubleQuotedStyle // "on" is a truth value in the YAML that guests read
	if old := m.value(key); old != nil {
		v.Anchor = old.Anchor // something else may refer to it
		*old = *v
		return
	}
	m.node.Content = append(m.node.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, v)
}

// survives reports whether what was written reads as what was meant.
func (m metadata) survives(content []byte) bool {
	var doc yaml.Node
	if yaml.Unmarshal(content, &doc) != nil || len(doc.Content) != 1 {
		return false
	}
	return equal(m.node, doc.Content[0])
}

func equal(a, b *yaml.Node) bool {
	return a.Kind == b.Kind && a.Value == b.Value && a.ShortTag() == b.ShortTag() && slices.EqualFunc(a.Content, b.Content, equal)
}

// configDriveMeta writes meta_data.json. It names the file that PVE puts the network's settings into, which PVE's own
// would name; and what PVE tells Windows there.
func (w Wish) configDriveMeta(meta metadata, id string) ([]byte, error) {
	all := map[string]any{}
	if err := meta.node.Decode(&all); err != nil {
		return nil, w.yamlError(err)
	}
	fill := func(key string, value any) {
		if _, given := all[key]; !given {
			all[key] = value
		}
	}
	all["uuid"] = id
	fill("hostname", all["local-hostname"])
	fill("network_config", map[string]string{"content_path": "/content/0000"})
	if keys := sshKeys(w.Source["sshkeys"]); len(keys) > 0 {
		named := map[string]string{}
		for i, k := range keys {
			named["key-"+strconv.Itoa(i)] = k
		}
		fill("public_keys", named)
	}
	if p := w.Source["cipassword"]; p != "" && windows(w.Source["ostype"]) {
		fill("admin_pass", p)
	}
	content, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return nil, w.Dialect.MetaDataError(0, "cannot be written as the JSON that a config drive holds: "+strings.TrimPrefix(err.Error(), "json: "))
	}
	return append(content, '\n'), nil
}

// builtinMeta names what PVE's own keys do not carry of the meta-data and the name.
func (w Wish) builtinMeta() (lost []string, err error) {
	meta, err := w.given()
	if err != nil {
		return nil, err
	}
	if wanted := w.wantedName(meta.hostname()); wanted.host != w.builtinName().host {
		lost = append(lost, fmt.Sprintf("the host name %s (PVE takes it from the VM's name, %s)", wanted.host, w.Name))
	}
	for i := 0; i < len(meta.node.Content); i += 2 {
		switch key := meta.node.Content[i].Value; key {
		case "instance-id", "local-hostname", "hostname": // PVE has an id of its own; names are above
		default:
			lost = append(lost, "meta_data: "+key)
		}
	}
	return lost, nil
}
