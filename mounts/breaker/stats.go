package breaker

import (
	"slices"
	"sync/atomic"
	"time"
)

// Stats is how the backend fares, for metrics and for the admin.
type Stats struct {
	State     State
	Since     time.Time // when State began; that of Open and HalfOpen is when the outage did
	LastError error     // the last failure, nil when there was none
	LastAt    time.Time

	Calls     int    // under way, abandoned ones included
	Streams   int    // open, abandoned ones included
	Abandoned int    // of both, those nobody waits for any more
	Failures  uint64 // calls and streams that failed with Unavailable or Timeout
	Timeouts  uint64 // of these, those with Timeout
	Refused   uint64 // calls that failed at once because the breaker was open
	Busy      uint64 // calls that got no place
	Latency   Histogram
}

// Histogram counts calls that move no content by how long they took.
type Histogram struct {
	Bounds []time.Duration // upper ones; there is one count more than bounds
	Counts []uint64
	Sum    time.Duration
	Mean   time.Duration // of the last hundred calls or so
}

// Stats returns how the backend fares now.
func (b *Backend) Stats() Stats {
	m := &b.meter
	s := Stats{
		Calls: len(b.calls), Streams: len(b.streams), Abandoned: int(m.abandoned.Load()), Failures: m.failures.Load(),
		Timeouts: m.timeouts.Load(), Refused: m.refused.Load(), Busy: m.busy.Load(),
	}
	s.Latency.Sum, s.Latency.Mean = time.Duration(m.sum.Load()), time.Duration(m.mean.Load())
	s.Latency.Bounds = slices.Clone(bounds[:])
	for i := range m.counts {
		s.Latency.Counts = append(s.Latency.Counts, m.counts[i].Load())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.State, s.Since, s.LastError, s.LastAt = b.state, b.since, b.last, b.lastAt
	return s
}

// State returns whether calls reach the backend now.
func (b *Backend) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

var bounds = [...]time.Duration{
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, 30 * time.Second,
}

type meter struct {
	abandoned                         atomic.Int64
	failures, timeouts, refused, busy atomic.Uint64

	counts [len(bounds) + 1]atomic.Uint64
	sum    atomic.Int64
	mean   atomic.Int64
}

// took counts a call that ended.
func (m *meter) took(d time.Duration) {
	at := 0
	for at < len(bounds) && d > bounds[at] {
		at++
	}
	m.counts[at].Add(1)
	m.sum.Add(int64(d))
	const weight = 50
	if old := m.mean.Load(); !m.mean.CompareAndSwap(0, int64(d)) {
		m.mean.CompareAndSwap(old, old+(int64(d)-old)/weight) // another call's turn when it fails
	}
}
