package cloudinit

import (
	"bytes"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// cloudConfig is what PVE's own generation says, and what we say in its place.
type cloudConfig struct {
	Hostname       string          `yaml:"hostname"`
	FQDN           string          `yaml:"fqdn"`
	ManageEtcHosts bool            `yaml:"manage_etc_hosts"`
	User           string          `yaml:"user,omitempty"`
	DisableRoot    *bool           `yaml:"disable_root,omitempty"`
	Password       string          `yaml:"password,omitempty"`
	Keys           []string        `yaml:"ssh_authorized_keys,omitempty"`
	Chpasswd       map[string]bool `yaml:"chpasswd"`
	Users          []string        `yaml:"users,omitempty"`
	PackageUpgrade bool            `yaml:"package_upgrade"`
	TimeZone       string          `yaml:"timezone,omitempty"`
}

// UserPart returns the user-data for a snippet: what was given, byte for byte; or nil, and PVE's own stands; or ours
// where PVE's would contradict the wish.
func (w Wish) UserPart() ([]byte, error) {
	if len(w.UserData) > 0 {
		return w.UserData, nil
	}
	meta, err := w.given()
	if err != nil {
		return nil, err
	}
	wanted := w.wantedName(meta.hostname())
	if w.ownUserPart() || (wanted == w.builtinName() && w.TimeZone == "") {
		return nil, nil
	}
	c := cloudConfig{
		Hostname: wanted.host, FQDN: wanted.fqdn, ManageEtcHosts: true,
		User: w.Source["ciuser"], Password: w.Source["cipassword"], Keys: sshKeys(w.Source["sshkeys"]),
		Chpasswd: map[string]bool{"expire": false}, PackageUpgrade: w.Source["ciupgrade"] != "0", TimeZone: w.TimeZone,
	}
	if c.User == "root" {
		c.DisableRoot = new(bool)
	} else {
		c.Users = []string{"default"}
	}
	body, err := encode(c)
	return append([]byte(cloudConfigHead+"\n"), body...), err
}

const cloudConfigHead = "#cloud-config"

// sshKeys reads PVE's sshkeys, whose value is percent-encoded.
func sshKeys(value string) []string {
	text, err := url.PathUnescape(value)
	if err != nil {
		text = value
	}
	var keys []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	return keys
}

// encode writes YAML as the rest of the world indents it.
func encode(value any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(value); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return b.Bytes(), enc.Close()
}

// builtinUser says what PVE's own keys carry of the user-data: of a plain cloud-config, the few things that PVE
// generates itself.
func (w Wish) builtinUser() (params map[string]string, lost []string) {
	params = map[string]string{}
	if w.TimeZone != "" {
		lost = append(lost, "the time zone "+w.TimeZone)
	}
	if len(w.UserData) == 0 {
		return params, lost
	}
	if first, _, _ := bytes.Cut(w.UserData, []byte("\n")); strings.TrimSpace(string(first)) != cloudConfigHead {
		return params, append(lost, "user_data: it is no plain #cloud-config")
	}
	var config map[string]yaml.Node
	if err := yaml.Unmarshal(w.UserData, &config); err != nil {
		return params, append(lost, "user_data: it is no YAML")
	}
	params["ciupgrade"] = "0" // what is not asked is not done; PVE would upgrade
	for _, key := range slices.Sorted(maps.Keys(config)) {
		value := config[key]
		if !w.builtinKey(params, key, &value) {
			lost = append(lost, "user_data: "+key)
		}
	}
	return params, lost
}

// builtinKey carries one key of a cloud-config, if PVE's keys can.
func (w Wish) builtinKey(params map[string]string, key string, value *yaml.Node) bool {
	switch key {
	case "user":
		return carryText(params, "ciuser", value)
	case "password":
		return carryText(params, "cipassword", value)
	case "ssh_authorized_keys":
		var keys []string
		if value.Decode(&keys) != nil {
			return false
		}
		params["sshkeys"] = percentEncode(strings.Join(keys, "\n"))
		return true
	case "package_upgrade":
		if truth(value, true) {
			delete(params, "ciupgrade")
		}
		return truth(value, true) || truth(value, false)
	}
	return w.builtinAnyway(key, value)
}

func carryText(params map[string]string, key string, value *yaml.Node) bool {
	if value.Kind != yaml.ScalarNode || value.Value == "" {
		return false
	}
	params[key] = value.Value
	return true
}

// builtinAnyway reports whether PVE's own generation says the same.
func (w Wish) builtinAnyway(key string, value *yaml.Node) bool {
	name := w.builtinName()
	switch key {
	case "hostname":
		return value.Value == name.host
	case "fqdn":
		return value.Value == name.fqdn
	case "manage_etc_hosts":
		return truth(value, true)
	case "chpasswd":
		var c map[string]yaml.Node
		if value.Decode(&c) != nil {
			return false
		}
		expire := c["expire"]
		return len(c) == 1 && truth(&expire, false)
	case "users":
		var users []string
		return value.Decode(&users) == nil && slices.Equal(users, []string{"default"})
	}
	return false
}

// truth reports whether a node is this truth value.
func truth(node *yaml.Node, want bool) bool {
	var is bool
	return node.Kind == yaml.ScalarNode && node.Decode(&is) == nil && is == want
}

// percentEncode writes a value as PVE keeps sshkeys.
func percentEncode(text string) string { return strings.ReplaceAll(url.QueryEscape(text), "+", "%20") }
