package pve

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestParseUPID(t *testing.T) {
	got, err := ParseUPID("UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:virtrigaud@pve!agent:")
	want := TaskID{Node: "pve1", PID: 12410, PStart: 258147, Start: time.Unix(1795330003, 0), Type: "qmstart", ID: "100", User: "virtrigaud@pve!agent"}
	if err != nil || got != want {
		t.Errorf("%+v %v", got, err)
	}
	for _, s := range []string{
		"UPID:pve1:0000307A:0003F063:6B028FD3:aptupdate::root@pam:",
		"UPID:pve1:0000307A:10003F063:6B028FD3:qmstart:100:root@pam:", // up for 500 days
		"UPID:a:0000307A:0003F063:6B028FD3:qmmove:777-unused0>901-scsi1:root@pam:",
		"UPID:node-2:ffffffff:0003f063:6b028fd3:vncproxy:100:user@my-realm!t.1:",
	} {
		if _, err := ParseUPID(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{
		"", "UPID", "garbage", "null",
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:root@pam",      // no colon at the end
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:root@pam::",    //
		"UPID:pve1:307A:0003F063:6B028FD3:qmstart:100:root@pam:",         // short
		"UPID:pve1:0000307A:0003F06:6B028FD3:qmstart:100:root@pam:",      // short
		"UPID:pve1:0000307A:0003F0630000:6B028FD3:qmstart:100:root@pam:", // long
		"UPID:pve1:0000307G:0003F063:6B028FD3:qmstart:100:root@pam:",     // not hex
		"UPID:pve1:0000307A:0003F063:+B028FD3:qmstart:100:root@pam:",     //
		"UPID:-pve:0000307A:0003F063:6B028FD3:qmstart:100:root@pam:",     // no node name
		"UPID:pve1.lan:0000307A:0003F063:6B028FD3:qmstart:100:root@pam:", //
		"UPID::0000307A:0003F063:6B028FD3:qmstart:100:root@pam:",         //
		"UPID:pve1:0000307A:0003F063:6B028FD3::100:root@pam:",            // no type
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100::",             // no user
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:1 0:root@pam:",     // blank
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:../x:root@pam:",    // slash
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:root@pam:\n",   //
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:\x00:root@pam:",    //
		" UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:100:root@pam:",    //
		"UPID:pve1:0000307A:0003F063:6B028FD3:qmstart:" + strings.Repeat("1", 600) + ":root@pam:",
	} {
		if got, err := ParseUPID(s); err == nil || got != (TaskID{}) {
			t.Errorf("%q was read as %+v", s, got)
		}
	}
}

func FuzzParseUPID(f *testing.F) {
	f.Add(string(testUPID))
	f.Add("UPID:a:00000000:000000000:00000000:t::u:")
	f.Add("UPID:pve1:0000307a:0003f063:6b028fd3:qmmove:777-unused0>901-scsi1:root@pam:")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseUPID(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(s, "/ \n\t\x00") {
			t.Errorf("%q was read", s)
		}
		// What was read says it all: written again it is the same but for the case of hex digits and a zero before pstart.
		again, err := ParseUPID(string(id.UPID()))
		if err != nil || again != id {
			t.Errorf("%q became %q: %+v, not %+v (%v)", s, id.UPID(), again, id, err)
		}
		if _, err := taskPath(UPID(s), "status"); err != nil {
			t.Errorf("%q has no path: %v", s, err)
		}
	})
}

func TestIsHARequest(t *testing.T) {
	for typ, want := range map[string]bool{"hastart": true, "hastop": true, "hamigrate": true, "qmstart": false, "qmigrate": false} {
		u := UPID("UPID:pve1:0000307A:0003F063:6B028FD3:" + typ + ":100:root@pam:")
		if IsHARequest(u) != want {
			t.Errorf("%s: %v", typ, !want)
		}
	}
	if IsHARequest("") || IsHARequest("hastart") {
		t.Error("what is no UPID is no request")
	}
}

func TestFlexibleNumbers(t *testing.T) {
	for in, want := range map[string]Int{
		"5": 5, `"5"`: 5, "-5": -5, "5.0": 5, `"5.9"`: 5, "1e3": 1000, "true": 1, "false": 0, "null": 7, `""`: 0,
		"9223372036854775807": 9223372036854775807,
	} {
		n := Int(7)
		if err := json.Unmarshal([]byte(in), &n); err != nil || n != want {
			t.Errorf("%s is %d, want %d (%v)", in, n, want, err)
		}
	}
	for _, in := range []string{`"x"`, "[]", "{}", `"1 2"`, "1e30", "-1e30", `"NaN"`, `"Inf"`} {
		if err := new(Int).UnmarshalJSON([]byte(in)); err == nil {
			t.Errorf("%s is a whole number", in)
		}
		if err := new(Bool).UnmarshalJSON([]byte(in)); err == nil {
			t.Errorf("%s is a truth value", in)
		}
	}
	for in, want := range map[string]Bool{"1": true, `"1"`: true, "0": false, `"0"`: false, "true": true, "false": false, "2": true, `""`: false} {
		b := !want
		if err := json.Unmarshal([]byte(in), &b); err != nil || b != want {
			t.Errorf("%s is %v (%v)", in, b, err)
		}
	}
	for in, want := range map[string]Float{"0.5": 0.5, `"0.5"`: 0.5, "2": 2, "null": 7} {
		f := Float(7)
		if err := json.Unmarshal([]byte(in), &f); err != nil || f != want {
			t.Errorf("%s is %v (%v)", in, f, err)
		}
	}
	if err := new(Float).UnmarshalJSON([]byte(`"x"`)); err == nil {
		t.Error("x is a number")
	}
}

func FuzzInt(f *testing.F) {
	for _, s := range []string{"5", `"5"`, "5.0", "1e9", "null", "true", `"`, `""5`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		var v struct {
			I Int
			B Bool
			F Float
		}
		_ = v.I.UnmarshalJSON(b)
		_ = v.B.UnmarshalJSON(b)
		_ = v.F.UnmarshalJSON(b)
	})
}

// The recorded config shows what PVE kept of the keys: the inner encoding.
func TestEncodeSSHKeys(t *testing.T) {
	const keys = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1f3v3p7Gm5xQmTn2vZ8b1pQh5sQG2n7m4Y0m4t0abc lab@test"
	const kept = "ssh-ed25519%20AAAAC3NzaC1lZDI1NTE5AAAAIJ1f3v3p7Gm5xQmTn2vZ8b1pQh5sQG2n7m4Y0m4t0abc%20lab%40test"
	if got := EncodeSSHKeys(keys); got != kept {
		t.Errorf("%q", got)
	}
	if got := EncodeSSHKeys("a+b/c=\nd ü~(*)'!_.-"); got != "a%2Bb%2Fc%3D%0Ad%20%C3%BC~(*)'!_.-" {
		t.Errorf("%q", got)
	}
	form := url.Values{"sshkeys": {EncodeSSHKeys(keys)}}.Encode()
	if !strings.Contains(form, "ssh-ed25519%2520AAAA") || strings.Contains(form, "+") {
		t.Errorf("%q is not encoded twice", form)
	}
	back, err := url.PathUnescape(kept)
	if err != nil || back != keys {
		t.Errorf("%q %v", back, err)
	}
}

func TestPathTemplate(t *testing.T) {
	for in, want := range map[string]string{
		"/version":                                       "/version",
		"/cluster/ha/resources":                          "/cluster/ha/resources",
		"/cluster/ha/resources/vm:100":                   "/cluster/ha/resources/{id}",
		"/nodes":                                         "/nodes",
		"/nodes/qemu/qemu/100/config":                    "/nodes/{node}/qemu/{vmid}/config",
		"/nodes/pve1/capabilities/qemu/machines":         "/nodes/{node}/capabilities/qemu/machines",
		"/nodes/pve1/qemu/100/snapshot/s1/rollback":      "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback",
		"/nodes/n/lxc/100":                               "/nodes/{node}/lxc/{vmid}",
		"/nodes/n/qemu/100/snapshot/s1/rollback":         "/nodes/{node}/qemu/{vmid}/snapshot/{snapname}/rollback",
		"/nodes/n/qemu/100/agent/network-get-interfaces": "/nodes/{node}/qemu/{vmid}/agent/network-get-interfaces",
		"/nodes/n/storage/s/content":                     "/nodes/{node}/storage/{storage}/content",
		"/nodes/n/storage/s/content/s:1/x.qcow2":         "/nodes/{node}/storage/{storage}/content/{volume}",
		"/nodes/n/tasks/" + string(testUPID) + "/status": "/nodes/{node}/tasks/{upid}/status",
		"/access/users/root@pam":                         "/access/users/{id}",
	} {
		if got := PathTemplate(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
