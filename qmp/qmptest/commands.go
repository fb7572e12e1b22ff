package qmptest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/pve-rigaud/pve-rigaud/qmp"
)

// object is a JSON object.
type object = map[string]any

// command is one that the machine knows. run is called with the lock held.
type command struct {
	needs []string // its arguments
	open  bool     // takes further arguments
	run   func(m *machine, args arguments) (any, error)
}

// commands by name. The errors are QEMU's words (7.2 and 10.0).
var commands map[string]command

func init() {
	commands = map[string]command{
		"query-status":              {run: (*machine).lockedStatus},
		"query-version":             {run: func(m *machine, _ arguments) (any, error) { return m.cfg.version(), nil }},
		"query-name":                {run: func(m *machine, _ arguments) (any, error) { return object{"name": m.cfg.Name}, nil }},
		"query-uuid":                {run: func(m *machine, _ arguments) (any, error) { return object{"UUID": m.cfg.UUID}, nil }},
		"query-kvm":                 {run: func(*machine, arguments) (any, error) { return object{"enabled": true, "present": true}, nil }},
		"query-migrate":             {run: nothing},
		"query-commands":            {run: queryCommands},
		"query-qmp-schema":          {run: querySchema},
		"query-cpus-fast":           {run: (*machine).lockedCPUs},
		"query-hotpluggable-cpus":   {run: (*machine).lockedSlots},
		"query-balloon":             {run: (*machine).lockedBalloon},
		"query-memory-size-summary": {run: (*machine).lockedMemory},
		"query-memory-devices":      {run: func(*machine, arguments) (any, error) { return []object{}, nil }},
		"query-block":               {run: (*machine).lockedBlock},
		"query-blockstats":          {run: (*machine).lockedBlockStats, open: true},
		"balloon":                   {run: (*machine).lockedInflate, needs: []string{"value"}},
		"device_add":                {run: (*machine).lockedPlug, needs: []string{"driver"}, open: true},
		"device_del":                {run: (*machine).lockedUnplug, needs: []string{"id"}},
		"stop":                      {run: (*machine).lockedStop},
		"cont":                      {run: (*machine).lockedCont},
		"system_reset":              {run: (*machine).lockedReset},
		"system_powerdown":          {run: (*machine).lockedPowerdown},
		"quit":                      {run: (*machine).lockedQuit},
	}
}

func nothing(*machine, arguments) (any, error) { return object{}, nil }

func queryCommands(*machine, arguments) (any, error) {
	var names []object
	for name := range commands {
		names = append(names, object{"name": name})
	}
	return names, nil
}

// querySchema is as long as PVE's QEMU 10 answers, 234 KB on one line; what it
// says is of no use.
func querySchema(*machine, arguments) (any, error) {
	var schema []object
	for i := range 1700 {
		schema = append(schema, object{
			"name": fmt.Sprint(i), "meta-type": "object",
			"members": []object{{"name": strings.Repeat("x", 20), "type": "str"}, {"name": "y", "default": nil, "type": "int"}},
		})
	}
	return schema, nil
}

func (m *machine) lockedStatus(arguments) (any, error) {
	return object{"status": m.runstate, "running": m.runstate == "running"}, nil
}

func (c cpu) props() object {
	return object{"socket-id": c.socket, "core-id": c.core, "thread-id": 0}
}

func (m *machine) lockedCPUs(arguments) (any, error) {
	list := []object{}
	for i, c := range m.cpus {
		if c.plugged {
			list = append(list, object{
				"cpu-index": i, "qom-path": c.qomPath(i), "thread-id": 100000 + i,
				"props": c.props(), "target": "x86_64",
			})
		}
	}
	return list, nil
}

// lockedSlots lists the places from the last to the first, as QEMU does.
func (m *machine) lockedSlots(arguments) (any, error) {
	list := []object{}
	for i, c := range slices.Backward(m.cpus) {
		slot := object{"type": m.cfg.cpuDriver(), "vcpus-count": 1, "props": c.props()}
		if c.plugged {
			slot["qom-path"] = c.qomPath(i)
		}
		list = append(list, slot)
	}
	return list, nil
}

func (m *machine) lockedPlug(args arguments) (any, error) {
	driver, err := args.text("driver")
	if err != nil {
		return nil, err
	}
	if driver != m.cfg.cpuDriver() {
		if strings.HasSuffix(driver, "-x86_64-cpu") {
			return nil, generic("Invalid CPU type, expected cpu type: '%s'", m.cfg.cpuDriver())
		}
		return nil, generic("'%s' is not a valid device model name", driver)
	}
	id, err := args.text("id")
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(m.cpus, func(c cpu) bool { return id != "" && c.id == id }) {
		return nil, generic("Duplicate device ID '%s'", id)
	}
	slot, err := m.lockedSlot(args)
	if err != nil {
		return nil, err
	}
	if m.cpus[slot].plugged {
		return nil, generic("CPU[%d] with APIC ID %d exists", slot, slot)
	}
	m.cpus[slot].plugged, m.cpus[slot].id = true, id
	return object{}, nil
}

// lockedSlot finds the place that the arguments of device_add mean.
func (m *machine) lockedSlot(args arguments) (int, error) {
	at := map[string]int64{}
	for _, place := range []struct {
		name string
		size int
	}{{"socket-id", m.cfg.Sockets}, {"core-id", m.cfg.Cores}, {"thread-id", 1}} {
		if args[place.name] == nil {
			return 0, generic("CPU %s is not set", place.name)
		}
		n, err := args.integer(place.name)
		if err != nil {
			return 0, err
		}
		if n < 0 || n >= int64(place.size) {
			return 0, generic("Invalid CPU %s: %d must be in range 0:%d", place.name, n, place.size-1)
		}
		at[place.name] = n
	}
	return int(at["socket-id"])*m.cfg.Cores + int(at["core-id"]), nil
}

// lockedUnplug asks the guest to give a CPU back, see QEMU.giveBack.
func (m *machine) lockedUnplug(args arguments) (any, error) {
	id, err := args.text("id")
	if err != nil {
		return nil, err
	}
	if m.lockedFind(id) < 0 {
		return nil, refuse("", qmp.ClassDeviceNotFound, "Device '%s' not found", id)
	}
	return object{}, nil
}

// lockedFind is the place of the CPU that is the device id, -1 if none is.
func (m *machine) lockedFind(id string) int {
	return slices.IndexFunc(m.cpus, func(c cpu) bool { return id != "" && c.id == id })
}

// lockedGone takes a CPU away that the guest has given back.
func (m *machine) lockedGone(id string) {
	i := m.lockedFind(id)
	if i < 0 {
		return
	}
	path := m.cpus[i].qomPath(i)
	m.cpus[i].plugged, m.cpus[i].id = false, ""
	m.lockedEmit("DEVICE_DELETED", object{"device": id, "path": path})
}

func (m *machine) lockedBalloon(arguments) (any, error) {
	if m.balloon < 0 {
		return nil, noBalloon()
	}
	if m.driver && m.step > 0 {
		m.lockedSetBalloon(min(max(m.target, m.balloon-m.step), m.balloon+m.step))
	}
	reply := object{"actual": m.balloon, "max_mem": m.memory()}
	if m.driver {
		for name, part := range map[string]int64{"total_mem": 95, "free_mem": 70} {
			reply[name] = m.balloon / 100 * part
		}
		for _, name := range []string{"mem_swapped_in", "mem_swapped_out", "major_page_faults", "minor_page_faults", "last_update"} {
			reply[name] = 0
		}
	}
	return reply, nil
}

func noBalloon() error {
	return refuse("", qmp.ClassDeviceNotActive, "No balloon device has been activated")
}

// lockedInflate reports success also when no driver of the guest cares.
func (m *machine) lockedInflate(args arguments) (any, error) {
	target, err := args.integer("value")
	switch {
	case err != nil:
		return nil, err
	case m.balloon < 0:
		return nil, noBalloon()
	case target <= 0:
		return nil, generic("Parameter 'target' expects a size")
	}
	m.target = max(min(target, m.memory()), m.floor)
	if m.driver && m.step <= 0 {
		m.lockedSetBalloon(m.target)
	}
	return object{}, nil
}

func (m *machine) lockedSetBalloon(actual int64) {
	if actual != m.balloon {
		m.balloon = actual
		m.lockedEmit("BALLOON_CHANGE", object{"actual": actual})
	}
}

func (m *machine) lockedMemory(arguments) (any, error) {
	return object{"base-memory": m.memory(), "plugged-memory": 0}, nil
}

func (m *machine) lockedBlock(arguments) (any, error) {
	list := []object{}
	for _, drive := range m.cfg.Drives {
		list = append(list, object{
			"device": "", "qdev": drive, "type": "unknown", "locked": false, "removable": false,
			"inserted": object{"node-name": "drive-" + drive, "drv": "throttle", "ro": false},
		})
	}
	return list, nil
}

func (m *machine) lockedBlockStats(arguments) (any, error) {
	list := []object{}
	for _, drive := range m.cfg.Drives {
		stats := object{}
		for _, name := range []string{"rd_bytes", "wr_bytes", "rd_operations", "wr_operations", "wr_highest_offset"} {
			stats[name] = 0
		}
		list = append(list, object{"device": "", "qdev": drive, "node-name": "drive-" + drive, "stats": stats})
	}
	return list, nil
}

// lockedRunstate changes the run state, with the event of that.
func (m *machine) lockedRunstate(to string) {
	was := m.runstate
	m.runstate = to
	if was == "running" && to != "running" {
		m.lockedEmit("STOP", nil)
	}
	if was != "running" && to == "running" {
		m.lockedEmit("RESUME", nil)
	}
}

func (m *machine) lockedStop(arguments) (any, error) {
	if m.runstate == "running" {
		m.lockedRunstate("paused")
	}
	return object{}, nil
}

func (m *machine) lockedCont(arguments) (any, error) {
	if m.runstate == "shutdown" {
		return nil, generic("Resetting the Virtual Machine is required")
	}
	m.lockedRunstate("running")
	return object{}, nil
}

func (m *machine) lockedReset(arguments) (any, error) {
	m.lockedEmit("RESET", object{"guest": false, "reason": "host-qmp-system-reset"})
	return object{}, nil
}

func (m *machine) lockedPowerdown(arguments) (any, error) {
	m.lockedEmit("POWERDOWN", nil)
	return object{}, nil
}

func (m *machine) lockedQuit(arguments) (any, error) {
	m.lockedEmit("SHUTDOWN", object{"guest": false, "reason": "host-qmp-quit"})
	return object{}, nil
}

// request is what a client of the monitor sends.
type request struct {
	command   string
	arguments json.RawMessage
	id        json.RawMessage
}

// parseRequest checks the shape of a request with QEMU's words.
func parseRequest(raw json.RawMessage) (request, error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return request{}, generic("QMP input must be a JSON object")
	}
	r := request{arguments: members["arguments"], id: members["id"]}
	for name := range members {
		if name != "execute" && name != "arguments" && name != "id" {
			return r, generic("QMP input member '%s' is unexpected", name)
		}
	}
	execute, ok := members["execute"]
	if !ok {
		return r, generic("QMP input lacks member 'execute'")
	}
	if err := json.Unmarshal(execute, &r.command); err != nil {
		return r, generic("QMP input member 'execute' must be a string")
	}
	return r, nil
}
