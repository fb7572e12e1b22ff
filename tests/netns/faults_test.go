//go:build netns || soak

package netns

import (
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	// seedEnv tells the story of one seed, as far as what happens depends on that.
	seedEnv = "PVE_RIGAUD_FAULTS_SEED"
	// timeEnv is for how long stories are told, one after the other ("2h").
	timeEnv = "PVE_RIGAUD_FAULTS_TIME"
	// manyFaults is how many a story has.
	manyFaults = 60
)

// TestFaults tells stories that dice make up. What comes of a step may differ from run to run; the four numbers may not.
func TestFaults(t *testing.T) {
	needWorlds(t)
	t.Parallel()
	seed, again, lasting := uint64(time.Now().UnixNano()), false, time.Duration(faultsTime)
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		again = true
	}
	if text := os.Getenv(timeEnv); text != "" {
		var err error
		if lasting, err = time.ParseDuration(text); err != nil {
			t.Fatalf("%s: %v", timeEnv, err)
		}
	}
	for begin, faults := time.Now(), 0; ; seed++ {
		faults += tellFaults(t, seed)
		t.Logf("%d faults in %s", faults, time.Since(begin).Round(time.Second))
		if again || t.Failed() || time.Since(begin) >= lasting {
			return
		}
	}
}

// tellFaults tells the story of a seed and returns its number of faults.
func tellFaults(t *testing.T, seed uint64) (faults int) {
	t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
		t.Logf("repeat with %s=%d", seedEnv, seed)
		report := tell(t, mishaps(seed, []string{"pve1", "pve2", "pve3"}, manyFaults))
		if faults = report.Total(); faults < manyFaults {
			t.Errorf("%d faults, want %d", faults, manyFaults)
		}
		if t.Failed() || testing.Verbose() {
			t.Log(report.Log)
		}
	})
	return faults
}
