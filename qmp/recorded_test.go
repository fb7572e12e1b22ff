package qmp_test

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func TestRecordedConversation(t *testing.T) {
	script, err := qmptest.RecordedQMP().Select("query-status", "query-version", "query-hotpluggable-cpus",
		"query-machines-not-a-command", "balloon", "device_add", "device_del", "query-balloon", "query-blockstats")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(shortDir(t), "100.qmp")
	replay, err := qmptest.NewReplay(path, script)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, path, patient)
	if got := s.Version().String() + " " + s.Version().Package; got != "10.0.13 pve-qemu-kvm_10.0.2-4-lab" {
		t.Errorf("version %q", got)
	}
	mon := s.Raw()
	status, err := mon.QueryStatus()
	if err != nil || !status.Running {
		t.Errorf("status %+v, %v", status, err)
	}
	if v, err := mon.QueryVersion(); err != nil || v.Package != "pve-qemu-kvm_10.0.2-4-lab" {
		t.Errorf("version %+v, %v", v, err)
	}
	if cpus, err := mon.QueryHotpluggableCpus(); err != nil || len(cpus) != 2 {
		t.Errorf("cpus %+v, %v", cpus, err)
	}
	wantRefusal(t, s.Execute(t.Context(), "query-machines-not-a-command", nil, nil), qmp.ClassCommandNotFound)
	if err := mon.Balloon(402653184); err != nil {
		t.Error(err)
	}
	// Three events come before the reply.
	wantRefusal(t, s.Execute(t.Context(), "device_add", map[string]any{
		"driver": "qemu64-x86_64-cpu", "id": "cpu9", "socket-id": 7, "core-id": 0, "thread-id": 0,
	}, nil), "GenericError")
	wantRefusal(t, mon.DeviceDel("cpu9"), qmp.ClassDeviceNotFound)
	if b, err := mon.QueryBalloon(); err != nil || b.Actual != 805306368 {
		t.Errorf("balloon %+v, %v", b, err)
	}
	if stats, err := mon.QueryBlockstats(nil); err != nil || len(stats) != 2 {
		t.Errorf("blockstats %+v, %v", stats, err)
	}
	s.Close()
	if err := replay.Close(); err != nil {
		t.Error(err)
	}
}

func wantRefusal(t *testing.T, err error, class string) {
	t.Helper()
	var refused *qmp.Error
	if !errors.As(err, &refused) || refused.Class != class {
		t.Errorf("%v, want a %s", err, class)
	}
}

// TestNonsense has QEMU say things that are no QMP.
func TestNonsense(t *testing.T) {
	greeting := qmptest.RecordedQMP()[0]
	negotiation := []qmptest.Line{{Dir: ">", Text: `{"execute": "qmp_capabilities"}`}, {Dir: "<", Text: `{"return": {}}`}}
	ask := qmptest.Line{Dir: ">", Text: `{"execute": "query-status"}`}
	say := func(text string) qmptest.Conversation { return qmptest.Conversation{{Dir: "<", Text: text}} }
	talk := func(text ...string) qmptest.Conversation {
		c := slices.Concat(qmptest.Conversation{greeting}, negotiation, qmptest.Conversation{ask})
		for _, line := range text {
			c = append(c, say(line)...)
		}
		return c
	}
	for name, test := range map[string]struct {
		script qmptest.Conversation
		want   error // nil: the status is read
	}{
		"greeting is an HTTP answer": {say("HTTP/1.1 400 Bad Request"), qmp.ErrProtocol},
		"greeting is a number":       {say(`42`), qmp.ErrProtocol},
		"greeting has a bad version": {say(`{"QMP": {"version": "10"}}`), qmp.ErrProtocol},
		"reply is garbage":           {talk(`%%%`), qmp.ErrProtocol},
		"reply is an array":          {talk(`[1, 2]`), qmp.ErrProtocol},
		"reply is an empty object":   {talk(`{}`), qmp.ErrProtocol},
		"reply of another":           {talk(`{"return": {"status": "theirs"}, "id": "somebody"}`, `{"error": {"class": "a", "desc": "b"}, "id": 7}`, `{"return": {"status": "ours"}}`), nil},
		"reply within events":        {talk(`{"event": "STOP"}`, `{"return": {"status": "ours"}}`), nil},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(shortDir(t), "100.qmp")
			replay, err := qmptest.NewReplay(path, test.script)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := replay.Close(); err != nil {
					t.Error(err)
				}
			}()
			s, err := qmp.Open(t.Context(), path, patient)
			var reply struct{ Status string }
			if err == nil {
				defer s.Close()
				err = s.Execute(t.Context(), "query-status", nil, &reply)
			}
			if err == nil && reply.Status != "ours" {
				t.Errorf("reply %+v is another's", reply)
			}
			if !errors.Is(err, test.want) || test.want == nil && err != nil {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}
