package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/pve-rigaud/pve-rigaud/agent/providerpb"
	"github.com/pve-rigaud/pve-rigaud/tests/payloads"
	"github.com/pve-rigaud/pve-rigaud/tests/rig"
)

// name is the VM the demo makes.
const name = "web-01"

// userData is what a user might give: it names the host, so that the guest agent can tell whether it arrived.
const userData = "#cloud-config\nhostname: " + name + "\n"

type walk struct {
	rig   *rig.Rig
	agent *rig.Agent
	out   io.Writer
	id    string // of the VM

	snapshot string // as PVE calls it
}

// all takes the steps in their order and stops at the first that goes wrong.
func (w *walk) all(ctx context.Context) error {
	if err := w.row("STEP", "TIME", "RESULT"); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) (string, error)
	}{
		{"Validate", w.validate},
		{"Create " + name + " from template " + payloads.Template, w.create},
		{"Create again (a repeated request)", w.createAgain},
		{"Describe", w.describeOff},
		{"Power on", w.powerOn},
		{"Describe until the guest has an address", w.awaitGuest},
		{"ListVMs", w.list},
		{"Snapshot", w.takeSnapshot},
		{"Reconfigure it while it runs", w.reconfigure},
		{"Reconfigure again (a repeated request)", w.reconfigureAgain},
		{"Delete the snapshot", w.dropSnapshot},
		{"Power off gracefully", w.shutDown},
		{"Power off gracefully again", w.shutDownAgain},
		{"Delete", w.delete},
		{"Describe", w.describeGone},
		{"Delete again (a repeated request)", w.deleteAgain},
		{"Look for anything left", w.nothingLeft},
	} {
		begin := time.Now()
		result, err := s.do(ctx)
		took := time.Since(begin)
		if err != nil {
			result = "FAILED"
		}
		if werr := w.row(s.name, fmt.Sprintf("%.1f ms", float64(took.Microseconds())/1000), result); werr != nil {
			return werr
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// row prints a row of the table as soon as it is known: a step may take seconds.
func (w *walk) row(step, took, result string) error {
	_, err := fmt.Fprintf(w.out, "%-40s %11s  %s\n", step, took, result)
	return err
}

func (w *walk) validate(ctx context.Context) (string, error) {
	v, err := w.agent.Provider.Validate(ctx, &providerpb.ValidateRequest{})
	if err != nil {
		return "", err
	}
	if !v.GetOk() || v.GetMessage() != "" {
		return "", fmt.Errorf("ok %v, message %q", v.GetOk(), v.GetMessage())
	}
	return "ok", nil
}

func (w *walk) request() *providerpb.CreateRequest {
	return &providerpb.CreateRequest{
		Name: name, ClassJson: madeWith, ImageJson: payloads.Image, NetworksJson: payloads.NoNetworks, DisksJson: payloads.NoDisks,
		UserData: []byte(userData), Tags: []string{"demo"},
	}
}

func (w *walk) create(ctx context.Context) (string, error) {
	c, err := w.agent.Provider.Create(ctx, w.request())
	if err != nil {
		return "", err
	}
	w.id = c.GetId()
	return "id " + w.id, w.await(ctx, c.GetTask())
}

func (w *walk) createAgain(ctx context.Context) (string, error) {
	c, err := w.agent.Provider.Create(ctx, w.request())
	if err != nil {
		return "", err
	}
	if c.GetId() != w.id {
		return "", fmt.Errorf("a second VM: id %s, the first was %s", c.GetId(), w.id)
	}
	return "the same id, no second VM", nil
}

// await polls a task as the manager does, only faster.
func (w *walk) await(ctx context.Context, task *providerpb.TaskRef) error {
	for task.GetId() != "" {
		st, err := w.agent.Provider.TaskStatus(ctx, &providerpb.TaskStatusRequest{Task: task})
		if err != nil {
			return err
		}
		if st.GetError() != "" {
			return errors.New(st.GetError())
		}
		if st.GetDone() {
			return nil
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *walk) describe(ctx context.Context) (*providerpb.DescribeResponse, error) {
	return w.agent.Provider.Describe(ctx, &providerpb.DescribeRequest{Id: w.id})
}

func (w *walk) expectState(ctx context.Context, want string) (*providerpb.DescribeResponse, error) {
	d, err := w.describe(ctx)
	if err != nil {
		return nil, err
	}
	if !d.GetExists() || d.GetPowerState() != want {
		return nil, fmt.Errorf("exists %v, power state %q, want %q", d.GetExists(), d.GetPowerState(), want)
	}
	return d, nil
}

func (w *walk) describeOff(ctx context.Context) (string, error) {
	d, err := w.expectState(ctx, "Off")
	return "Off, console " + d.GetConsoleUrl(), err
}

func (w *walk) power(ctx context.Context, op providerpb.PowerOp, grace int32) error {
	t, err := w.agent.Provider.Power(ctx, &providerpb.PowerRequest{Id: w.id, Op: op, GracefulTimeoutSeconds: grace})
	if err != nil {
		return err
	}
	return w.await(ctx, t.GetTask())
}

func (w *walk) powerOn(ctx context.Context) (string, error) {
	if err := w.power(ctx, providerpb.PowerOp_POWER_OP_ON, 0); err != nil {
		return "", err
	}
	_, err := w.expectState(ctx, "On")
	return "On", err
}

// awaitGuest polls until the guest agent has told the guest's addresses and its host name.
func (w *walk) awaitGuest(ctx context.Context) (string, error) {
	for {
		d, err := w.expectState(ctx, "On")
		if err != nil {
			return "", err
		}
		var raw map[string]string
		if err := json.Unmarshal([]byte(d.GetProviderRawJson()), &raw); err != nil {
			return "", err
		}
		if len(d.GetIps()) > 0 && raw["hostname"] != "" {
			if raw["hostname"] != name {
				return "", fmt.Errorf("the guest calls itself %q, user-data said %q", raw["hostname"], name)
			}
			return fmt.Sprintf("%s, host name %s, %s", strings.Join(d.GetIps(), " "), raw["hostname"], raw["os"]), nil
		}
		if err := pause(ctx, 250*time.Millisecond); err != nil {
			return "", err
		}
	}
}

func (w *walk) list(ctx context.Context) (string, error) {
	vm, err := w.listed(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %d vCPUs, %d MiB, %d disk", vm.GetName(), vm.GetCpu(), vm.GetMemoryMib(), len(vm.GetDisks())), nil
}

// listed is the VM as ListVMs tells of it.
func (w *walk) listed(ctx context.Context) (*providerpb.VMInfo, error) {
	l, err := w.agent.Provider.ListVMs(ctx, &providerpb.ListVMsRequest{})
	if err != nil {
		return nil, err
	}
	for _, vm := range l.GetVms() {
		if vm.GetId() == w.id {
			return vm, nil
		}
	}
	return nil, fmt.Errorf("%s is not among the %d VMs listed", w.id, len(l.GetVms()))
}

func (w *walk) shutDown(ctx context.Context) (string, error) {
	if err := w.power(ctx, providerpb.PowerOp_POWER_OP_SHUTDOWN_GRACEFUL, 60); err != nil {
		return "", err
	}
	_, err := w.expectState(ctx, "Off")
	return "Off, by the guest itself", err
}

func (w *walk) shutDownAgain(ctx context.Context) (string, error) {
	t, err := w.agent.Provider.Power(ctx, &providerpb.PowerRequest{Id: w.id, Op: providerpb.PowerOp_POWER_OP_SHUTDOWN_GRACEFUL, GracefulTimeoutSeconds: 60})
	if err == nil && t.GetTask().GetId() != "" {
		err = errors.New("a task for nothing to do")
	}
	return "nothing to do", err
}

func (w *walk) delete(ctx context.Context) (string, error) {
	t, err := w.agent.Provider.Delete(ctx, &providerpb.DeleteRequest{Id: w.id})
	if err == nil && t.GetTask().GetId() != "" {
		err = errors.New("answered before the VM was gone")
	}
	return "gone", err
}

func (w *walk) describeGone(ctx context.Context) (string, error) {
	d, err := w.describe(ctx)
	if err == nil && d.GetExists() {
		err = errors.New("still exists")
	}
	return "does not exist", err
}

func (w *walk) deleteAgain(ctx context.Context) (string, error) {
	_, err := w.agent.Provider.Delete(ctx, &providerpb.DeleteRequest{Id: w.id})
	return "nothing to do", err
}

// nothingLeft looks through everything the node has on disk for the VM's number, and for records.
func (w *walk) nothingLeft(context.Context) (string, error) {
	vmid, _, _ := strings.Cut(w.id, "-")
	var left []string
	err := filepath.WalkDir(w.rig.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		inRecords := strings.Contains(path, "/priv/pve-rigaud/vms/")
		if base := filepath.Base(path); base == vmid+".conf" || strings.HasPrefix(base, "vm-"+vmid+"-") || inRecords {
			left = append(left, path)
		}
		return nil
	})
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return "no config, disk or record", err
}
