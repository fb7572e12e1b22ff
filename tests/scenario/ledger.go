package scenario

import (
	"fmt"
	"slices"
	"strings"
	"sync"
)

// stage is how far an id has come, from the client's point of view.
type stage int

const (
	told     stage = iota // by the answer to a create; the work goes on
	made                  // and it ended well: from now on it exists
	failed                // it ended with an error: nobody may rely on it
	leaving               // a delete was asked for
	deleted               // and it was answered well
	vanished              // somebody destroyed the VM behind everybody's back
)

// promise is an id that a client was told.
type promise struct {
	ID    string
	VM    string // its name
	Alias string // for the log: "web-1#1"
	Stage stage
}

// vmid is the number in the id.
func (p *promise) vmid() string {
	number, _, _ := strings.Cut(p.ID, "-")
	return number
}

// ledger is what clients were told.
type ledger struct {
	mu         sync.Mutex // guards all below
	promises   []*promise
	violations []string
	false0     int // times that a VM was said not to exist and did
}

// tell notes the answer to a create.
func (l *ledger) tell(vm, id string) *promise {
	l.mu.Lock()
	defer l.mu.Unlock()
	number := 1
	for _, p := range l.promises {
		switch {
		case p.ID == id:
			return p
		case p.VM != vm:
			continue
		case p.Stage == made:
			l.violations = append(l.violations, fmt.Sprintf("create %s: answered another id than %s, which was made", vm, p.Alias))
		}
		number++
	}
	p := &promise{ID: id, VM: vm, Alias: fmt.Sprintf("%s#%d", vm, number)}
	l.promises = append(l.promises, p)
	return p
}

// become moves a promise on; a later stage is never left for an earlier one.
func (l *ledger) become(p *promise, s stage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.Stage < s {
		p.Stage = s
	}
}

// stageOf returns how far a promise has come.
func (l *ledger) stageOf(p *promise) stage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return p.Stage
}

// find looks for a promise by its alias, or the last one of a name.
func (l *ledger) find(name string) *promise {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range slices.Backward(l.promises) {
		if p.Alias == name || p.VM == name {
			return p
		}
	}
	return nil
}

// byVMID returns the last promise with a number.
func (l *ledger) byVMID(vmid string) *promise {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range slices.Backward(l.promises) {
		if p.vmid() == vmid {
			return p
		}
	}
	return nil
}

// all returns the promises there are.
func (l *ledger) all() []*promise {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.promises)
}

// violate notes something that must never happen.
func (l *ledger) violate(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.violations = append(l.violations, fmt.Sprintf(format, args...))
}
