package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pve-rigaud/pve-rigaud/agent/record"
)

// crashAge is more than any age that an agent waits for.
const crashAge = 10 * time.Minute

// spoilRecord does to the record of the dead agent's VM what the row says.
func (r *crashRow) spoilRecord() error {
	if !r.aged && !r.torn {
		return nil
	}
	path, err := r.recordFile(r.vm)
	if err == nil && path == "" {
		err = errors.New("no record to spoil")
	}
	if err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if r.torn {
		r.tornFile = path
		return os.Truncate(path, int64(len(b)/2))
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return err
	}
	fields["created"] = time.Now().Add(-crashAge).UTC()
	if b, err = json.Marshal(fields); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o600)
}

// tearLonger sees that a name is refused for as long as its record may be in writing, and lets that time pass.
func (r *crashRow) tearLonger() error {
	if _, err := r.create(r.ctx, r.life); status.Code(err) != codes.Aborted {
		return fmt.Errorf("create while the record is cut short: %w, want it aborted", err)
	}
	old := time.Now().Add(-crashAge)
	return os.Chtimes(r.tornFile, old, old)
}

// settled waits until no claim is left without an operation.
func (r *crashRow) settled() error {
	return r.until("a settled record", func() (bool, error) {
		records, err := r.records(r.vm)
		return len(records) == 0 || records[0].State == record.Ready, err
	})
}
