package qmptest

// SetMemory says how much memory the machine has from now on, in MiB, as when
// DIMMs are plugged or unplugged. What the balloon holds stays the same.
func (q *QEMU) SetMemory(mib int) {
	q.change(func() {
		more := int64(mib)<<20 - q.m.memory()
		q.m.cfg.MemoryMiB = mib
		if q.m.balloon < 0 {
			return
		}
		q.m.target += more
		q.m.lockedSetBalloon(q.m.balloon + more)
	})
}

// SetKeepCPUs makes the guest keep the CPUs that it is asked to give back, as
// IgnoreUnplug does from the start, or give them back again.
func (q *QEMU) SetKeepCPUs(keep bool) { q.keepCPUs.Store(keep) }
