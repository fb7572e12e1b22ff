//go:build guest

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/qmp/qga"
	"github.com/pve-rigaud/pve-rigaud/tests/guestimage"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
	"github.com/pve-rigaud/pve-rigaud/tests/pvesim/kvm"
)

// TestDebianGuest has Debian's own cloud-init read what the manager wrote: whole, and with its effect in the guest.
func TestDebianGuest(t *testing.T) {
	s := raise(t, setting{limit: 9 * time.Minute, sim: func(c *pvesim.Config) {
		c.QEMU, c.Debian, c.PollUnit, c.AgentWait, c.LockTimeout = realQEMU(t), true, time.Second, 3*time.Second, 10*time.Second
	}})
	s.patience = 5 * time.Minute // a minute on a machine that does nothing else
	s.startAgent()
	cloudConfig := `#cloud-config
users:
  - default
  - name: alice
    gecos: Alice Ärgerlich
    groups: [sudo]
    shell: /bin/bash
    ssh_authorized_keys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEhqZ1mG4Y5h6W1x0Yh5m6CkN7j1r7o5k0b5c8d3f1aa alice@example.org
write_files:
  - path: /etc/witness
    permissions: "0640"
    encoding: b64
    content: AAECA/8K
  - path: /etc/greeting
    content: "a: 'b' \"c\" $HOME %d #\n"
runcmd:
  - [sh, -c, "echo \"ran on $(hostname)\" > /var/lib/ran"]
# no newline at the end`
	script := "#!/bin/sh\nprintf 'script of %s: \\303\\244 $x\\n' \"$(hostname)\" >/var/lib/script-ran\ncp \"$0\" /var/lib/script-itself\n"

	plain := s.bootDebian("plain", func(r *providerpb.CreateRequest) {
		r.UserData = []byte(cloudConfig)
		r.MetaData = []byte("local-hostname: plain.example.org\nteam: storage\n")
		r.NetworksJson = `[{"Name":"primary","Bridge":"vmbr0","Model":"virtio","StaticIP":"192.0.2.10/24,2001:db8::10/64","Gateway":"192.0.2.1,2001:db8::1","DNS":"192.0.2.53,2001:db8::53"},` +
			`{"Name":"storage","Bridge":"vmbr1","Model":"virtio","StaticIP":"198.51.100.7","Prefix":25}]`
	})
	parts := s.bootDebian("parts", func(r *providerpb.CreateRequest) {
		// Of a part that is not in base64, cloud-init 22.4 takes ASCII alone.
		ascii := strings.Replace(cloudConfig, "Ä", "A", 1)
		r.UserData = multipartOf([2]string{"text/cloud-config", ascii}, [2]string{"text/x-shellscript", script})
		r.NetworksJson = `[{"Name":"primary","StaticIP":"192.0.2.11","Prefix":24,"Gateway":"192.0.2.1","DNS":"192.0.2.53"}]`
	})
	var both sync.WaitGroup
	both.Go(func() {
		plain.isDone()
		plain.says("hostname; hostname -f", "plain\nplain.example.org\n")
		plain.ran("plain", "Alice Ärgerlich")
		plain.hasAddresses(map[string][]string{"net0": {"192.0.2.10/24", "2001:db8::10/64"}, "net1": {"198.51.100.7/25"}})
		plain.says("ip -4 route show default | cut -d' ' -f1-3; ip -6 route show default | cut -d' ' -f1-3", "default via 192.0.2.1\ndefault via 2001:db8::1\n")
		plain.says("resolvectl dns | sed -n 's/^Link [0-9]* ([^)]*): //p' | grep .", "192.0.2.53 2001:db8::53\n")
		plain.says("cloud-init query ds.meta_data.team", "storage\n")
		// The root file system has grown to the disk, and the disk to what was asked for.
		plain.says("findmnt -no SIZE / | tr -d ' '", "1.9G\n")
	})
	both.Go(func() {
		parts.isDone()
		parts.says("hostname", "parts\n")
		parts.ran("parts", "Alice Argerlich")
		parts.says("cat /var/lib/script-ran", "script of parts: ä $x\n")
		parts.says("sha256sum </var/lib/script-itself", fmt.Sprintf("%x  -\n", sha256.Sum256([]byte(script+"\n"))))
		parts.hasAddresses(map[string][]string{"net0": {"192.0.2.11/24"}})
	})
	both.Wait()
	// It is the same machine after a restart: nothing is done twice.
	plain.says("echo once >/var/lib/ran", "")
	s.must(s.power(plain.id, reboot))
	plain.isDone()
	plain.says("cat /var/lib/ran", "once\n")
	plain.hasAddresses(map[string][]string{"net0": {"192.0.2.10/24", "2001:db8::10/64"}, "net1": {"198.51.100.7/25"}})
}

// realQEMU skips the test where the Debian guest cannot be.
func realQEMU(t *testing.T) pvesim.QEMU {
	t.Helper()
	_, noQEMU := kvm.NewReal(t.Context(), kvm.RealConfig{})
	_, noGuest := guestimage.FindDebian(t.Context(), guestimage.Config{})
	var missing *guestimage.MissingError
	if noQEMU != nil || errors.As(noGuest, &missing) {
		t.Skipf("skipped: %v", errors.Join(noQEMU, noGuest))
	}
	return pvesim.Real
}

// multipartOf joins parts byte for byte as the manager does, but for the types, which all are text/cloud-config there.
func multipartOf(parts ...[2]string) []byte {
	const boundary = "VIRTRIGAUD_CLOUD_INIT_BOUNDARY"
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=\"" + boundary + "\"\nMIME-Version: 1.0\n")
	for _, p := range parts {
		fmt.Fprintf(&b, "\n--%s\nContent-Type: %s; charset=\"utf-8\"\n\n%s\n", boundary, p[0], p[1])
	}
	b.WriteString("\n--" + boundary + "--\n")
	return []byte(b.String())
}

// debian is a VM with a Debian guest.
type debian struct {
	*stage

	id    string
	began time.Time
}

// bootDebian makes a VM from the Debian template and starts it.
func (s *stage) bootDebian(name string, change func(*providerpb.CreateRequest)) *debian {
	s.Helper()
	r := request(name, from(pvesim.DebianTemplate), class(`{"CPU":2,"MemoryMiB":1024,"DiskDefaults":{"Type":"thin","SizeGiB":2}}`), change)
	c, err := s.agent.Provider.Create(s.ctx, r)
	s.must(err)
	if failure := s.outcome(c.GetTask()); failure != "" {
		s.Fatalf("create %s: %s", name, failure)
	}
	d := &debian{stage: s, id: c.GetId(), began: time.Now()}
	s.must(s.power(d.id, powerOn))
	console := filepath.Join(s.rig.Dir, fmt.Sprintf("%d.log", vmid(s, d.id)))
	s.Cleanup(func() {
		if log, err := os.ReadFile(console); err == nil && s.Failed() {
			s.Logf("console of %s:\n%s", name, log[max(0, len(log)-6000):])
		}
	})
	return d
}

// isDone waits until cloud-init has done everything, without an error.
func (d *debian) isDone() {
	d.Helper()
	d.eventually("the guest agent of "+d.id+" answers", func() bool {
		_, err := d.try("true")
		return err == nil
	})
	agent := time.Since(d.began)
	out, err := d.try("cloud-init status --wait --long")
	if err != nil || !strings.Contains(out, "status: done\n") {
		log, _ := d.try("grep -hE 'WARN|ERR|Traceback' /var/log/cloud-init.log; tail -n 20 /var/log/cloud-init-output.log")
		d.Errorf("cloud-init of %s: %v\n%s\n%s", d.id, err, out, log)
	}
	d.Logf("%s: the agent answers after %v, cloud-init is done after %v", d.id, agent.Round(time.Second), time.Since(d.began).Round(time.Second))
}

// ran checks what the cloud-config does.
func (d *debian) ran(hostname, alice string) {
	d.Helper()
	d.says("cat /var/lib/ran", "ran on "+hostname+"\n")
	d.says("sha256sum </etc/witness; stat -c %a /etc/witness", fmt.Sprintf("%x  -\n640\n", sha256.Sum256([]byte{0, 1, 2, 3, 255, '\n'})))
	d.says("cat /etc/greeting", "a: 'b' \"c\" $HOME %d #\n")
	d.says("id -nG alice; getent passwd alice | cut -d: -f5,7; cut -d' ' -f3 /home/alice/.ssh/authorized_keys; stat -c '%U %a' /home/alice/.ssh/authorized_keys",
		"alice sudo\n"+alice+":/bin/bash\nalice@example.org\nalice 600\n")
	d.says("getent passwd debian | cut -d: -f6", "/home/debian\n")
}

// hasAddresses checks the addresses of the NICs, found by their MACs, but for link-local ones.
func (d *debian) hasAddresses(want map[string][]string) {
	d.Helper()
	got := map[string][]string{}
	conf := d.config(d.id)
	err := d.ask(func(ctx context.Context, agent *qga.Session) error {
		interfaces, err := agent.NetworkInterfaces(ctx)
		for _, i := range interfaces {
			for key := range want {
				if strings.Contains(strings.ToLower(conf[key]), i.MAC) && i.MAC != "" {
					got[key] = addresses(i.Addresses)
				}
			}
		}
		return err
	})
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		d.Errorf("addresses of %s: %v\n%s", d.id, err, diff)
	}
}

func addresses(all []netip.Prefix) []string {
	var out []string
	for _, a := range all {
		if !a.Addr().IsLinkLocalUnicast() {
			out = append(out, a.String())
		}
	}
	slices.Sort(out)
	return out
}

// says compares what a command prints in the guest.
func (d *debian) says(command, want string) {
	d.Helper()
	got, err := d.try(command)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		d.Errorf("%s: %s: %v\n%s", d.id, command, err, diff)
	}
}

// try runs a command of the guest's shell and returns what it prints.
func (d *debian) try(command string) (string, error) {
	var started struct{ PID int }
	err := d.ask(func(ctx context.Context, agent *qga.Session) error {
		return agent.Execute(ctx, "guest-exec", map[string]any{"path": "/bin/sh", "arg": []string{"-c", command}, "capture-output": true}, &started)
	})
	if err != nil {
		return "", err
	}
	var status struct {
		Exited   bool
		Exitcode int
		Out      []byte `json:"out-data"`
		Err      []byte `json:"err-data"`
	}
	deadline := time.After(d.patience)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !status.Exited {
		select {
		case <-tick.C:
		case <-deadline:
			return "", fmt.Errorf("%s: does not end", command)
		}
		err := d.ask(func(ctx context.Context, agent *qga.Session) error {
			var raw json.RawMessage
			if err := agent.Execute(ctx, "guest-exec-status", map[string]int{"pid": started.PID}, &raw); err != nil {
				return err
			}
			return json.Unmarshal(raw, &status)
		})
		if err != nil {
			return "", err
		}
	}
	if status.Exitcode != 0 || len(status.Err) > 0 {
		return string(status.Out), fmt.Errorf("exit status %d: %s", status.Exitcode, status.Err)
	}
	return string(status.Out), nil
}

// ask talks to the guest agent on its socket, beside PVE and the agent under test.
func (d *debian) ask(do func(context.Context, *qga.Session) error) error {
	ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
	defer cancel()
	session, err := qga.Open(ctx, filepath.Join(d.agent.Node.Run, fmt.Sprintf("%d.qga", vmid(d, d.id))), qga.Options{Sync: 10 * time.Second, Command: 20 * time.Second, RetryBusy: 10 * time.Second})
	if err != nil {
		return err
	}
	defer session.Close()
	return do(ctx, session)
}
