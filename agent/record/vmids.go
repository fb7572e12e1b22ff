package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
)

// keptMarks is how many of the highest marks stay. One would do; more cost nothing, and make sure that no listing of
// the directory can miss all of them, however many are added and removed while it is read.
const keptMarks = 8

// Range is the VMIDs to give out, both ends included.
type Range struct {
	Min, Max int
}

// IDs gives out VMIDs: upward, and never one twice in the cluster, not even after its VM is gone. The memory of that is
// files in vmids/, each named by a number that was given out; the highest always stays. No locks: a number is taken by
// creating its file with O_EXCL.
//
// That alone would not do. Someone who listed the directory a while ago may create a file that existed and was removed
// since: hence the second look at the directory, which finds a higher one then. A number is lost if two meet, never given
// out twice.
type IDs struct {
	dir  folder
	turn chan struct{} // one allocation at a time in this process; others only cost numbers
}

// NewIDs makes an IDs. Nothing is read or created.
func NewIDs(cfg Config) *IDs { return newIDs(cfg, disk{}) }

func newIDs(cfg Config, f files) *IDs {
	return &IDs{dir: newFolder(f, cfg.Dir, "vmids"), turn: make(chan struct{}, 1)}
}

// Allocate gives out the next number of the range that is above every number given out before and that taken, which may
// be nil, does not know. *RangeError if there is none.
func (a *IDs) Allocate(ctx context.Context, r Range, taken func(int) bool) (int, error) {
	select {
	case a.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, fmt.Errorf("allocate a vmid: %w", context.Cause(ctx))
	}
	defer func() { <-a.turn }()
	for ctx.Err() == nil {
		id, ok, err := a.try(r, taken)
		if err != nil {
			return 0, fmt.Errorf("allocate a vmid: %w", err)
		}
		if ok {
			return id, nil
		}
	}
	return 0, fmt.Errorf("allocate a vmid: %w", context.Cause(ctx))
}

// try makes one attempt; false if another one was faster.
func (a *IDs) try(r Range, taken func(int) bool) (int, bool, error) {
	marks, err := a.marks()
	if err != nil {
		return 0, false, err
	}
	id, err := r.next(top(marks), taken)
	if err != nil {
		return 0, false, err
	}
	f, err := a.dir.createIn(strconv.Itoa(id))
	if errors.Is(err, fs.ErrExist) {
		return 0, false, nil
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return 0, false, err
	}
	if marks, err = a.marks(); err != nil {
		return 0, false, err
	}
	switch {
	case top(marks) > id:
		return 0, false, a.dir.drop(strconv.Itoa(id))
	case top(marks) < id:
		return 0, false, fmt.Errorf("%s vanished as soon as it was made", a.dir.file(strconv.Itoa(id)))
	}
	a.prune(marks)
	return id, true, nil
}

// next is the lowest free number above highest.
func (r Range) next(highest int, taken func(int) bool) (int, error) {
	for id := max(r.Min, highest+1); id <= r.Max; id++ {
		if taken == nil || !taken(id) {
			return id, nil
		}
	}
	return 0, &RangeError{Range: r, Highest: highest}
}

// marks lists the numbers that were given out and not forgotten, lowest first.
func (a *IDs) marks() ([]int, error) {
	names, err := a.dir.names()
	if err != nil {
		return nil, err
	}
	var marks []int
	for _, name := range names {
		if id, err := strconv.Atoi(name); err == nil && id > 0 && strconv.Itoa(id) == name {
			marks = append(marks, id)
		}
	}
	slices.Sort(marks)
	return marks, nil
}

func top(marks []int) int {
	if len(marks) == 0 {
		return 0
	}
	return marks[len(marks)-1]
}

// prune removes all but the highest marks. One that cannot be removed does no harm, and the next allocation tries again.
func (a *IDs) prune(marks []int) {
	for _, id := range marks[:max(0, len(marks)-keptMarks)] {
		_ = a.dir.drop(strconv.Itoa(id))
	}
}
