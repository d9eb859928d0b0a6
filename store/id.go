package store

import (
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// An id is 41 bits of milliseconds since idEpoch, 14 bits that tell processes apart, 8 bits of a counter.
const (
	idEpoch   = 1_704_067_200_000 // 2024-01-01; the milliseconds last until 2093
	idProcess = 14
	idCounter = 8
)

var ids = struct {
	process int64        // drawn by lot once per process
	last    atomic.Int64 // milliseconds and counter of the last id
}{process: rand.Int64N(1 << idProcess)}

// NewID returns a new id: positive, growing within the process, roughly ordered by time over all, not to be guessed at as a secret. Two
// processes that write to one database draw the same number by a chance of 1 in 16,384; then an id may meet a taken key.
func NewID() int64 {
	for {
		last := ids.last.Load()
		next := max(last+1, (time.Now().UnixMilli()-idEpoch)<<idCounter) // a full counter borrows from the next millisecond
		if ids.last.CompareAndSwap(last, next) {
			return next>>idCounter<<(idProcess+idCounter) | ids.process<<idCounter | next&(1<<idCounter-1)
		}
	}
}
