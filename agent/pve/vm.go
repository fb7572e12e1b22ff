package pve

import (
	"context"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Status is the present state of a VM, from GET /nodes/{node}/qemu/{vmid}/status/current. For a running VM PVE asks
// its QEMU, with up to 3 s of waiting when somebody else holds the monitor.
type Status struct {
	VMID           Int      `json:"vmid"`
	Name           string   `json:"name"`
	Status         string   `json:"status"`    // "running" or "stopped"
	QMPStatus      string   `json:"qmpstatus"` // "running", "paused", "prelaunch", ...; "stopped" when there is no process
	Lock           string   `json:"lock"`      // why the config is locked, or ""
	Template       Bool     `json:"template"`
	PID            Int      `json:"pid"`    // of the QEMU process, or 0
	Uptime         Int      `json:"uptime"` // seconds
	CPUs           Float    `json:"cpus"`   // vCPUs
	CPU            Float    `json:"cpu"`    // load, 1 = all of its CPUs
	MaxMem         Int      `json:"maxmem"` // bytes
	Mem            Int      `json:"mem"`    // bytes
	MaxDisk        Int      `json:"maxdisk"`
	Agent          Bool     `json:"agent"`
	RunningMachine string   `json:"running-machine"`
	RunningQEMU    string   `json:"running-qemu"`
	Tags           string   `json:"tags"` // separated by semicolons
	HA             HAStatus `json:"ha"`
}

// HAStatus says whether the HA manager is in charge of a VM.
type HAStatus struct {
	Managed Bool   `json:"managed"`
	State   string `json:"state"`
	Group   string `json:"group"`
}

// Status asks for the present state of a VM.
func (c *Client) Status(ctx context.Context, node string, vmid int) (Status, error) {
	var out Status
	err := c.Call(ctx, http.MethodGet, vmPath(node, vmid, "/status/current"), nil, &out)
	return out, err
}

// task makes a call that starts a task. Versions that do the work before they answer give null: the empty UPID.
func (c *Client) task(ctx context.Context, method, path string, params url.Values) (UPID, error) {
	var u UPID
	if err := c.Call(ctx, method, path, params, &u); err != nil {
		return "", err
	}
	if u == "" {
		return "", nil
	}
	if _, err := ParseUPID(string(u)); err != nil {
		return "", request{method: method, path: path}.lost(true, err)
	}
	return u, nil
}

// CloneParams says what POST /nodes/{node}/qemu/{vmid}/clone makes.
type CloneParams struct {
	NewID       int
	Name        string
	Description string
	Full        bool   // copy the disks; a linked clone needs a template
	Storage     string // of the copies; only with Full
	Format      string // "raw", "qcow2", "vmdk"; only with Full
	Target      string // node of the clone; another one needs shared storage
	Pool        string
	SnapName    string // clone this snapshot
}

func (p CloneParams) values() url.Values {
	v := url.Values{"newid": {strconv.Itoa(p.NewID)}, "full": {flag(p.Full)}}
	setText(v, "name", p.Name)
	setText(v, "description", p.Description)
	setText(v, "storage", p.Storage)
	setText(v, "format", p.Format)
	setText(v, "target", p.Target)
	setText(v, "pool", p.Pool)
	setText(v, "snapname", p.SnapName)
	return v
}

// Clone starts the cloning of a VM or template.
func (c *Client) Clone(ctx context.Context, node string, vmid int, p CloneParams) (UPID, error) {
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/clone"), p.values())
}

// Template makes a template of a stopped VM. The UPID is empty where PVE had done so before it answered.
func (c *Client) Template(ctx context.Context, node string, vmid int) (UPID, error) {
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/template"), nil)
}

// SetConfig changes a VM's config and waits for it; with a running VM PVE hot-plugs what it can and leaves the rest
// pending, without a word. The values are those of PUT /nodes/{node}/qemu/{vmid}/config, `digest` and `delete`
// among them; see EncodeSSHKeys for `sshkeys`. Through pveproxy (:8006) a change that takes more than 30 s fails with
// status 596 and goes on: see Uncertain.
func (c *Client) SetConfig(ctx context.Context, node string, vmid int, values url.Values) error {
	return c.Call(ctx, http.MethodPut, vmPath(node, vmid, "/config"), values, nil)
}

// ConfigTask is SetConfig as a task: PVE answers at once and hot-plugs in the background, which suits what takes long,
// such as a disk that is to be allocated. The values are those of SetConfig. The UPID is empty where PVE had nothing to
// do in the background.
func (c *Client) ConfigTask(ctx context.Context, node string, vmid int, values url.Values) (UPID, error) {
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/config"), values)
}

// Config reads a VM's config as the API shows it: with pending changes, or the values in effect when current is set.
// The values are strings or numbers, as PVE writes them.
func (c *Client) Config(ctx context.Context, node string, vmid int, current bool) (map[string]any, error) {
	v := url.Values{}
	if current {
		v.Set("current", "1")
	}
	var out map[string]any
	err := c.Call(ctx, http.MethodGet, vmPath(node, vmid, "/config"), v, &out)
	return out, err
}

// Start starts a VM. The task of a running VM fails with KindAlreadyRunning; see IsHARequest.
func (c *Client) Start(ctx context.Context, node string, vmid int) (UPID, error) {
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/status/start"), nil)
}

// Stop stops a VM at once, as pulling the plug does. The task of a stopped VM is OK; see IsHARequest.
func (c *Client) Stop(ctx context.Context, node string, vmid int) (UPID, error) {
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/status/stop"), nil)
}

// Shutdown asks the guest to shut down, by its agent or by ACPI. After the timeout (whole seconds, rounded up; 0 is
// PVE's default) the task fails with KindGuestTimeout, or stops the VM if forceStop is set; see IsHARequest.
func (c *Client) Shutdown(ctx context.Context, node string, vmid int, timeout time.Duration, forceStop bool) (UPID, error) {
	v := url.Values{}
	setSeconds(v, "timeout", timeout)
	if forceStop {
		v.Set("forceStop", "1")
	}
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/status/shutdown"), v)
}

// Reboot shuts a running VM down and starts it again, which brings pending changes into effect. A stopped VM is
// KindNotRunning.
func (c *Client) Reboot(ctx context.Context, node string, vmid int, timeout time.Duration) (UPID, error) {
	v := url.Values{}
	setSeconds(v, "timeout", timeout)
	return c.task(ctx, http.MethodPost, vmPath(node, vmid, "/status/reboot"), v)
}

// Resize grows a disk (as "scsi0") to a size as "40G", or by one as "+1G". The UPID is empty where PVE has resized
// before it answers (7.4 does).
func (c *Client) Resize(ctx context.Context, node string, vmid int, disk, size string) (UPID, error) {
	return c.task(ctx, http.MethodPut, vmPath(node, vmid, "/resize"), url.Values{"disk": {disk}, "size": {size}})
}

// DestroyParams says what goes with a VM.
type DestroyParams struct {
	Purge bool // also from backup jobs, replication and HA
	// DestroyUnreferencedDisks removes each volume named after the VMID on every enabled storage, even those that
	// belong to another cluster on a shared one. Leave it false.
	DestroyUnreferencedDisks bool
}

// Destroy removes a stopped VM and the disks in its config.
func (c *Client) Destroy(ctx context.Context, node string, vmid int, p DestroyParams) (UPID, error) {
	return c.task(ctx, http.MethodDelete, vmPath(node, vmid, ""), url.Values{
		"purge":                      {flag(p.Purge)},
		"destroy-unreferenced-disks": {flag(p.DestroyUnreferencedDisks)},
	})
}

// CreateParams says what POST /nodes/{node}/qemu makes.
type CreateParams struct {
	VMID   int
	Pool   string
	Config url.Values // keys of the config; drives as "storage:GiB" are allocated
}

// Create starts the making of a VM that is no copy. A number that is taken is KindExists.
func (c *Client) Create(ctx context.Context, node string, p CreateParams) (UPID, error) {
	v := url.Values{}
	maps.Copy(v, p.Config)
	v.Set("vmid", strconv.Itoa(p.VMID))
	setText(v, "pool", p.Pool)
	return c.task(ctx, http.MethodPost, "/nodes/"+url.PathEscape(node)+"/qemu", v)
}
