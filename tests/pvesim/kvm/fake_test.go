package kvm

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/qmp/qmptest"
)

func TestFakeGuest(t *testing.T) {
	t.Parallel()
	m := start(t, NewFake(FakeConfig{}), Spec{
		Agent: true, GuestIP: "10.0.0.5", Hostname: "web-one",
		NICs: []NIC{{Key: "net0", Model: "virtio", MAC: "BC:24:11:00:00:01"}},
	})
	agent, err := qga.Open(t.Context(), m.spec.path("qga"), qga.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if name, err := agent.HostName(t.Context()); err != nil || name != "web-one" {
		t.Errorf("hostname %q, %v", name, err)
	}
	nics, err := agent.NetworkInterfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(nics); !strings.Contains(got, "bc:24:11:00:00:01") || !strings.Contains(got, "10.0.0.5/24") {
		t.Errorf("interfaces %s", got)
	}
	if os, err := agent.OSInfo(t.Context()); err != nil || os.PrettyName == "" {
		t.Errorf("os %+v, %v", os, err)
	}
}

func TestFakePowerdown(t *testing.T) {
	t.Parallel()
	m := start(t, NewFake(FakeConfig{PowerdownDelay: time.Millisecond}), Spec{})
	if err := m.Powerdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data := m.await(t, "SHUTDOWN"); !strings.Contains(data, "guest-shutdown") {
		t.Errorf("down by %s", data)
	}
	if got := m.status(t); got != "shutdown" {
		t.Errorf("the process must stay in shutdown, is %s", got)
	}
	if err := m.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}

	m = start(t, NewFake(FakeConfig{GuestIgnoresPowerdown: true}), Spec{})
	if err := m.Powerdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.await(t, "POWERDOWN")
	if got := m.status(t); got != "running" {
		t.Errorf("the guest ignores the button, but is %s", got)
	}
}

func TestFakeTune(t *testing.T) {
	t.Parallel()
	h := NewFake(FakeConfig{Tune: func(spec Spec, cfg *qmptest.Config) { cfg.Package = "tuned-" + strconv.Itoa(spec.VMID) }})
	m := start(t, h, Spec{VMID: 7})
	if reply, err := m.Execute(t.Context(), "query-version", nil); err != nil || !strings.Contains(string(reply), "tuned-7") {
		t.Errorf("%s, %v", reply, err)
	}
	fake, ok := m.Process.(*FakeProcess)
	if !ok {
		t.Fatalf("is a %T", m.Process)
	}
	fake.QEMU().SetRunstate("paused")
	if got := m.status(t); got != "paused" {
		t.Errorf("is %s", got)
	}
}

func TestManyFakes(t *testing.T) {
	t.Parallel()
	h, dir := NewFake(FakeConfig{}), shortDir(t)
	began := time.Now()
	machines := make([]*machine, 500)
	for i := range machines {
		machines[i] = start(t, h, Spec{VMID: 1000 + i, RunDir: dir, Agent: true})
	}
	t.Logf("%d started in %v", len(machines), time.Since(began))
	for _, m := range machines {
		if err := m.Quit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("and ended after %v", time.Since(began))
	assertGone(t, machines[0])
}
