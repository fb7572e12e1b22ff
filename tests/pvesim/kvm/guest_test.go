package kvm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/qmp"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/disk"
)

// linux is a running Linux guest in real QEMU.
type linux struct{ *machine }

// boot starts a Linux guest with a cloud-init drive and waits for its agent.
func boot(t *testing.T, spec Spec, seed map[string][]byte) *linux {
	t.Helper()
	logs := t.TempDir()
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	r := newReal(t, RealConfig{ConsoleDir: logs, Log: log})
	image, err := guestimage.Find(t.Context(), guestimage.Config{})
	if missing := (*guestimage.MissingError)(nil); errors.As(err, &missing) {
		t.Skipf("skipped: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	images, err := disk.NewQemuImg()
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	dir := t.TempDir()
	drive, root := filepath.Join(dir, "vm-100-cloudinit.qcow2"), filepath.Join(dir, "vm-100-disk-0.qcow2")
	if err := errors.Join(images.CloudInit(t.Context(), drive, seed), images.Create(t.Context(), root, disk.QCOW2, 64<<20)); err != nil {
		t.Fatal(err)
	}
	spec.Agent, spec.Serial, spec.Args = true, true, image.Args()
	spec.Disks = []Disk{{Key: "scsi0", Path: root, Format: disk.QCOW2}, {Key: "ide2", Path: drive, Format: disk.QCOW2, CDROM: true}}
	t.Cleanup(func() {
		if log, err := os.ReadFile(filepath.Join(logs, "100.log")); err == nil && t.Failed() {
			t.Logf("console:\n%s", log)
		}
	})
	began := time.Now()
	g := &linux{start(t, r, spec)}
	g.greet(t)
	t.Logf("the guest agent answers after %v", time.Since(began))
	return g
}

// greet waits for the guest agent.
func (g *linux) greet(t *testing.T) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		return g.ask(ctx, 500*time.Millisecond, func(*qga.Session) error { return nil })
	})
}

// ask has one conversation with an agent that answers within patience.
func (g *linux) ask(ctx context.Context, patience time.Duration, f func(*qga.Session) error) error {
	agent, err := qga.Open(ctx, g.spec.path("qga"), qga.Options{Sync: patience, Command: patience})
	if err != nil {
		return err
	}
	defer agent.Close()
	return f(agent)
}

// execute runs one command of an agent that is up.
func (g *linux) execute(ctx context.Context, command string, args, out any) error {
	return g.ask(ctx, 30*time.Second, func(agent *qga.Session) error { return agent.Execute(ctx, command, args, out) })
}

// eventually tries until it works, for two minutes at most: TCG on a busy
// machine is slow.
func eventually(t *testing.T, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}

// run runs a program in the guest and returns what it said.
func (g *linux) run(ctx context.Context, path string, args ...string) (string, error) {
	var started struct {
		PID int `json:"pid"`
	}
	exec := map[string]any{"path": path, "arg": args, "capture-output": true}
	if err := g.execute(ctx, "guest-exec", exec, &started); err != nil {
		return "", err
	}
	for {
		var status struct {
			Exited bool   `json:"exited"`
			Code   int    `json:"exitcode"`
			Out    string `json:"out-data"`
		}
		if err := g.execute(ctx, "guest-exec-status", map[string]int{"pid": started.PID}, &status); err != nil {
			return "", err
		}
		if !status.Exited {
			continue
		}
		out, err := base64.StdEncoding.DecodeString(status.Out)
		if err == nil && status.Code != 0 {
			err = fmt.Errorf("%s: exit code %d", path, status.Code)
		}
		return strings.TrimSpace(string(out)), err
	}
}

// sees waits until a file in the guest has what is wanted in it.
func (g *linux) sees(t *testing.T, file, want string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		out, err := g.run(ctx, "/bin/cat", file)
		if err == nil && !strings.Contains(out, want) {
			err = fmt.Errorf("%s in the guest is %q, want %q", file, out, want)
		}
		return err
	})
}

// memory is the guest's MemTotal in MiB.
func (g *linux) memory(ctx context.Context) (int, error) {
	out, err := g.run(ctx, "/bin/awk", "/^MemTotal/ { print $2 }", "/proc/meminfo")
	if err != nil {
		return 0, err
	}
	kib, err := strconv.Atoi(out)
	return kib >> 10, err
}

// online waits until the guest counts n CPUs that are online.
func (g *linux) online(t *testing.T, n int) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		var cpus []struct {
			Online bool `json:"online"`
		}
		if err := g.execute(ctx, "guest-get-vcpus", nil, &cpus); err != nil {
			return err
		}
		got := 0
		for _, c := range cpus {
			if c.Online {
				got++
			}
		}
		if got != n {
			return fmt.Errorf("%d CPUs are online in the guest, want %d", got, n)
		}
		return nil
	})
}

// do runs a command of the private monitor that must work.
func (g *linux) do(t *testing.T, command string, args any) json.RawMessage {
	t.Helper()
	reply, err := g.Execute(t.Context(), command, args)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// unplug takes a device away and waits until the guest has let it go. Parts of
// the device go first, and of a CPU nothing else does: TCG leaks the rest.
func (g *linux) unplug(t *testing.T, id string) {
	t.Helper()
	g.do(t, "device_del", map[string]string{"id": id})
	for {
		gone := g.await(t, "DEVICE_DELETED")
		if strings.Contains(gone, `"device": "`+id+`"`) || strings.Contains(gone, "/"+id+"/lapic") {
			return
		}
	}
}

func TestLinuxGuest(t *testing.T) {
	t.Parallel()
	g := boot(t, Spec{
		Sockets: 1, Cores: 4, VCPUs: 1, MemoryMiB: 512, Hotplug: []string{"cpu"}, GuestIP: "192.0.2.17",
		NICs: []NIC{{Key: "net0", Model: "virtio", MAC: "BC:24:11:00:00:01"}, {Key: "net1", Model: "virtio", MAC: "BC:24:11:00:00:02"}},
	}, map[string][]byte{
		"user-data": []byte("#cloud-config\nhostname: web-1\nmanage_etc_hosts: true\n"),
		"meta-data": []byte("instance-id: 1\n"),
		"network-config": []byte(`version: 1
config:
    - type: physical
      name: eth0
      mac_address: 'bc:24:11:00:00:01'
      subnets:
      - type: dhcp4
    - type: physical
      name: eth1
      mac_address: 'bc:24:11:00:00:02'
      subnets:
      - type: static
        address: '198.51.100.5'
        netmask: '255.255.255.128'
        gateway: '198.51.100.1'
`),
	})
	for _, step := range []struct {
		name string
		test func(*testing.T, *linux)
	}{
		{"says who it is", testIdentity},
		{"gives memory to the balloon", testGuestBalloon},
		{"sees a disk grow", testDiskGrows},
		{"sees a plugged disk", testPluggedDisk},
		{"configures a plugged NIC", testPluggedNIC},
		{"sleeps while paused", testPaused},
		// QEMU 7.2 does not outlive a plugged PCI device once a CPU was
		// unplugged under TCG: no devices after this.
		{"counts plugged CPUs", testCPUs},
		{"obeys the power button", testPowerButton},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.test(t, g) }) {
			return
		}
	}
}

func testIdentity(t *testing.T, g *linux) {
	assertHostname(t, g, "web-1")
	err := g.ask(t.Context(), 30*time.Second, func(agent *qga.Session) error {
		os, err := agent.OSInfo(t.Context())
		if os.ID != "rigaudguest" || !strings.Contains(os.KernelRelease, "cloud") {
			t.Errorf("os %+v", os)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	assertInterfaces(t, g, "eth0 bc:24:11:00:00:01 [192.0.2.17/24", "eth1 bc:24:11:00:00:02 [198.51.100.5/25")
	g.sees(t, "/proc/cmdline", "console=ttyS0")
}

// assertInterfaces waits until the guest has these.
func assertInterfaces(t *testing.T, g *linux, want ...string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		return g.ask(ctx, 30*time.Second, func(agent *qga.Session) error {
			nics, err := agent.NetworkInterfaces(ctx)
			for _, w := range want {
				if got := fmt.Sprint(nics); err == nil && !strings.Contains(got, w) {
					err = fmt.Errorf("interfaces %s, want %s", got, w)
				}
			}
			return err
		})
	})
}

func assertHostname(t *testing.T, g *linux, want string) {
	t.Helper()
	var reply map[string]string
	if err := g.execute(t.Context(), "guest-get-host-name", nil, &reply); err != nil || reply["host-name"] != want {
		t.Errorf("hostname %q, %v, want %q", reply, err, want)
	}
}

func testCPUs(t *testing.T, g *linux) {
	g.online(t, 1)
	for n := 2; n <= 4; n++ {
		g.do(t, "device_add", map[string]any{
			"driver": "qemu64-x86_64-cpu", "id": fmt.Sprintf("cpu%d", n), "socket-id": 0, "core-id": n - 1, "thread-id": 0,
		})
		g.online(t, n)
	}
	for n := 4; n > 2; n-- {
		g.unplug(t, fmt.Sprintf("cpu%d", n))
		g.online(t, n-1)
	}
}

func testGuestBalloon(t *testing.T, g *linux) {
	before, err := g.memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []int{256, 512} {
		g.do(t, "balloon", map[string]int{"value": target << 20})
		eventually(t, func(ctx context.Context) error {
			var state struct {
				Actual int `json:"actual"`
			}
			reply, err := g.Execute(ctx, "query-balloon", nil)
			if err != nil {
				return err
			}
			if err := json.Unmarshal(reply, &state); err != nil {
				return err
			}
			now, err := g.memory(ctx)
			if err == nil && (state.Actual != target<<20 || before-now != 512-target) {
				err = fmt.Errorf("balloon at %d bytes, guest's memory went from %d to %d MiB, target %d", state.Actual, before, now, target)
			}
			return err
		})
	}
}

func testDiskGrows(t *testing.T, g *linux) {
	g.sees(t, "/sys/block/sda/size", strconv.Itoa(64<<20/512))
	g.do(t, "block_resize", map[string]any{"node-name": "drive-scsi0", "size": 128 << 20})
	g.sees(t, "/sys/block/sda/size", strconv.Itoa(128<<20/512))
}

func testPluggedDisk(t *testing.T, g *linux) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []Disk{
		{Key: "scsi1", Path: path, Format: "raw", Serial: "data"},
		{Key: "virtio0", Path: path, Format: "raw", Serial: "logs"},
	} {
		if err := PlugDisk(t.Context(), g, d); err != nil {
			t.Fatal(err)
		}
		if d.Key == "scsi1" {
			g.sees(t, "/sys/block/sdb/size", strconv.Itoa(1<<20/512))
			// Page 80 of what the disk says about itself: four bytes, then the serial number.
			g.eventuallyPrints(t, "tail -c +5 /sys/block/sdb/device/vpd_pg80", "data")
		} else {
			g.sees(t, "/sys/block/vda/serial", "logs")
		}
		if err := UnplugDisk(t.Context(), g, d.Key); err != nil {
			t.Fatal(err)
		}
	}
	// Another CD in the drive of cloud-init, and none.
	cd := Disk{Key: "ide2", Path: path, Format: "raw", CDROM: true}
	if err := errors.Join(ChangeMedium(t.Context(), g, cd), ChangeMedium(t.Context(), g, Disk{Key: "ide2", CDROM: true})); err != nil {
		t.Fatal(err)
	}
}

// eventuallyPrints waits until a command of the guest's shell prints something.
func (g *linux) eventuallyPrints(t *testing.T, command, want string) {
	t.Helper()
	eventually(t, func(ctx context.Context) error {
		got, err := g.run(ctx, "/bin/sh", "-c", command)
		if err == nil && strings.TrimSpace(got) != want {
			err = fmt.Errorf("%s: %q, want %q", command, got, want)
		}
		return err
	})
}

func testPluggedNIC(t *testing.T, g *linux) {
	if err := PlugNIC(t.Context(), g, NIC{Key: "net2", Model: "virtio", MAC: "BC:24:11:00:00:03"}); err != nil {
		t.Fatal(err)
	}
	assertInterfaces(t, g, "eth2 bc:24:11:00:00:03 [10.0.2.15/24")
	if err := UnplugNIC(t.Context(), g, "net2"); err != nil {
		t.Fatal(err)
	}
}

func testPaused(t *testing.T, g *linux) {
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	err := g.ask(t.Context(), 200*time.Millisecond, func(*qga.Session) error { return nil })
	if !errors.Is(err, qga.ErrSilent) {
		t.Errorf("a paused guest answered: %v", err)
	}
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.greet(t)
}

func testPowerButton(t *testing.T, g *linux) {
	if err := g.Powerdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if data := g.await(t, "SHUTDOWN"); !strings.Contains(data, "guest-shutdown") {
		t.Errorf("down by %s", data)
	}
	if got := g.status(t); got != "shutdown" {
		t.Errorf("QEMU must stay in shutdown, is %s", got)
	}
	if err := g.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A guest without a name on its cloud-init drive, with memory to plug.
func TestLinuxGuestPluggedMemory(t *testing.T) {
	t.Parallel()
	g := boot(t, Spec{MemoryMiB: 1024, Sockets: 1, Cores: 1, NUMA: true, Hotplug: []string{"memory"}, Hostname: "from-command-line"},
		map[string][]byte{
			"user-data": []byte("#!/bin/sh\necho user-data ran >/run/proof\n"),
			"meta-data": []byte("instance-id: 2\n"),
		})
	assertHostname(t, g, "from-command-line")
	g.sees(t, "/run/proof", "user-data ran")
	before, err := g.memory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := PlugDIMM(t.Context(), g, DIMM{Name: "dimm0", MiB: 512}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func(ctx context.Context) error {
		now, err := g.memory(ctx)
		if err == nil && now != before+512 {
			err = fmt.Errorf("guest's memory went from %d to %d MiB", before, now)
		}
		return err
	})
	if err := UnplugDIMM(t.Context(), g, "dimm0"); err != nil {
		t.Fatal(err)
	}

	// It boots again, and obeys its agent.
	if err := g.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.greet(t)
	// The command has no reply when it works.
	err = g.ask(t.Context(), time.Second, func(agent *qga.Session) error {
		return agent.Execute(t.Context(), "guest-shutdown", nil, nil)
	})
	if !errors.Is(err, qmp.ErrTimeout) && !errors.Is(err, qmp.ErrGone) {
		t.Errorf("guest-shutdown: %v", err)
	}
	if data := g.await(t, "SHUTDOWN"); !strings.Contains(data, "guest-shutdown") {
		t.Errorf("down by %s", data)
	}
}
