package guest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/agent/fault"
	"github.com/pve-rigaud/pve-rigaud/agent/pmxcfs"
	"github.com/pve-rigaud/pve-rigaud/agent/record"
	"github.com/pve-rigaud/pve-rigaud/agent/spec"
)

func TestUnlikeMade(t *testing.T) {
	image, networks := spec.Image{TemplateName: "9000"}, []spec.Network{{Name: "lan"}}
	rec := record.Record{Name: "web-01", Made: madeOf(image, networks, spec.Placement{}, []byte("#cloud-config"), nil)}
	same := spec.Reconfigure{Name: "web-01", Image: image, Networks: networks, UserData: []byte("#cloud-config")}
	for want, change := range map[string]func(*spec.Reconfigure){
		"":                     func(*spec.Reconfigure) {},
		"name":                 func(w *spec.Reconfigure) { w.Name = "web-02" },
		"image":                func(w *spec.Reconfigure) { w.Image.TemplateName = "9001" },
		"networks":             func(w *spec.Reconfigure) { w.Networks = nil },
		"placement":            func(w *spec.Reconfigure) { w.Placement.Datastore = "fast" },
		"meta data, user data": func(w *spec.Reconfigure) { w.UserData, w.MetaData = []byte("#!/bin/sh"), []byte("a: b") },
	} {
		wish := same
		change(&wish)
		if got := strings.Join(unlikeMade(rec, wish), ", "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := unlikeMade(record.Record{Name: "web-01"}, spec.Reconfigure{Name: "other"}); got != nil {
		t.Errorf("of a VM of which nothing is known: %q", got)
	}
	if none, empty := madeOf(image, nil, spec.Placement{}, nil, nil), madeOf(image, []spec.Network{}, spec.Placement{}, []byte{}, nil); none["networks"] != empty["networks"] || none["user data"] != empty["user data"] {
		t.Error("nothing and nothing differ")
	}
	for _, hash := range rec.Made {
		if len(hash) != 16 || strings.Contains(hash, "cloud") {
			t.Errorf("kept: %q", hash)
		}
	}
}

func TestNextStartText(t *testing.T) {
	for config, want := range map[string]string{
		"memory: 512\n": "",
		"memory: 512\n\n[PENDING]\nmemory: 1024\nnuma: 1\n":                          "memory becomes 1024 (now 512), numa becomes 1",
		"cipassword: a\nballoon: 256\n\n[PENDING]\ncipassword: b\ndelete: balloon\n": "cipassword changes, balloon goes",
	} {
		conf, err := pmxcfs.ParseConf("100.conf", []byte(config))
		if err != nil {
			t.Fatal(err)
		}
		if got := nextStartText(conf); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		keys := strings.FieldsFunc(pendingText(conf), func(c rune) bool { return c == ',' })
		if slices.Contains(keys, "delete") || len(keys) != strings.Count(want, " becomes ")+strings.Count(want, " changes")+strings.Count(want, " goes") {
			t.Errorf("keys %q", keys)
		}
	}
}

func TestSummary(t *testing.T) {
	full, refused := fault.New(fault.Exhausted, "scsi1: full"), fault.New(fault.Precondition, "cpu: kept")
	for _, tc := range []struct {
		done   []string
		failed []error
		reason fault.Reason
		want   string
	}{
		{nil, []error{full}, fault.Exhausted, "reconfigure VM 100: scsi1: full; nothing was changed"},
		{[]string{"cpu: 2 vCPUs", "memory: x"}, []error{full, refused}, fault.Precondition, "reconfigure VM 100: scsi1: full; cpu: kept; done: cpu: 2 vCPUs; memory: x"},
		{nil, []error{errors.New("odd")}, fault.Internal, "reconfigure VM 100: odd; nothing was changed"},
	} {
		if err := summary(100, tc.done, tc.failed); !fault.Is(err, tc.reason) || err.Error() != tc.want {
			t.Errorf("got %v (%s), want %s (%s)", err, fault.Of(err), tc.want, tc.reason)
		}
	}
	if err := summary(100, []string{"all"}, nil); err != nil {
		t.Errorf("without failures: %v", err)
	}
}
