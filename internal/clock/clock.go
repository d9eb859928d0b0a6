// Package clock is time as a seam: the real clock, and one that tests move.
package clock

import (
	"sync/atomic"
	"time"
)

// Clock tells the time. The nil *Clock is the real one, so a Config without a clock just works. Safe for concurrent use.
type Clock struct {
	now atomic.Int64 // Unix nanoseconds
}

// At returns a clock that stands still at t until a test moves it.
func At(t time.Time) *Clock {
	c := new(Clock)
	c.Set(t)
	return c
}

// Now returns the time in UTC.
func (c *Clock) Now() time.Time {
	if c == nil {
		return time.Now().UTC()
	}
	return time.Unix(0, c.now.Load()).UTC()
}

// Set moves a test's clock to t, forwards or backwards.
func (c *Clock) Set(t time.Time) { c.now.Store(t.UnixNano()) }

// Advance moves a test's clock by d.
func (c *Clock) Advance(d time.Duration) { c.now.Add(int64(d)) }
