//go:build soak

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/pve-rigaud/pve-rigaud/tests/pvesim"
)

const (
	crashRounds = 1500
	// crashSeedEnv repeats a run, as far as timers repeat anything.
	crashSeedEnv = "PVE_RIGAUD_CRASH_SEED"
)

// TestCrashAtAnyTime kills agents at random times: also in the middle of writes, starts and calls, where the table of
// TestCrash has no row.
func TestCrashAtAnyTime(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(crashSeedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", crashSeedEnv, err)
		}
	}
	t.Logf("repeat with %s=%d", crashSeedEnv, seed)
	dice := rand.New(rand.NewPCG(seed, 0))
	table := make([]crashCase, crashRounds)
	for i := range table {
		table[i] = crashRandom(dice)
		table[i].name = fmt.Sprintf("%04d %s %v", i, table[i].op, table[i].timers)
	}
	w := crashNodes(t, 6, pvesim.Fake, 20*time.Millisecond)
	w.patience = 2 * time.Minute // longer than a name is refused after a crash in the middle of writing its record
	w.carryOut(t, table)
}

// crashRandom is a row of one to four deaths. The first comes while the agent carries out the request, the others also
// while it starts.
func crashRandom(dice *rand.Rand) crashCase {
	ops := []string{crashCreate, crashCreate, crashCreate, crashDelete, crashDelete, crashOn, crashOff}
	c := crashCase{
		op: ops[dice.IntN(len(ops))], broken: dice.IntN(6) == 0, lost: dice.IntN(8) == 0, dark: int32(dice.IntN(4)),
		timers: []time.Duration{time.Duration(dice.Int64N(int64(600 * time.Millisecond)))},
	}
	c.broken = c.broken && c.op == crashCreate
	c.lost = c.lost && (c.op == crashCreate || c.op == crashDelete)
	for range dice.IntN(4) {
		c.timers = append(c.timers, time.Duration(dice.Int64N(int64(1200*time.Millisecond))))
	}
	return c
}
