package cluster

import (
	"testing"
	"testing/synctest"
	"time"
)

// virtual runs a test in virtual time.
func virtual(t *testing.T, test func(*lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(&lab{TB: t}) })
}

func TestLoneNodeIsReady(t *testing.T) {
	virtual(t, func(l *lab) {
		a := l.run(1)
		p, known := a.Peer("pve1")
		if !known || !p.Self || !p.Alive || !p.Compatible {
			t.Errorf("sees itself as %+v", p)
		}
	})
}

func TestJoin(t *testing.T) {
	virtual(t, func(l *lab) {
		begin := time.Now()
		l.cluster(3)
		t.Logf("after %v", time.Since(begin))
	})
}
