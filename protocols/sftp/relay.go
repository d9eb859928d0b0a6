package sftp

import (
	"sync"
	"sync/atomic"
	"time"
)

// A request that is answered at once is carried out by the goroutine that has read it: waking another costs more than most requests do. One that
// takes longer must not keep the next from being read, so then another goroutine takes over the reading, and the first ends with its request.

// patience is how long a request may keep the reader, about.
const patience = 5 * time.Millisecond

// relay says who reads a session.
type relay struct {
	mu    sync.Mutex
	since time.Time // when the reader began to carry out a request, zero while it reads; guarded by mu
	gen   int       // of the reader; guarded by mu
}

// perform carries out do in the reader's goroutine. It may not be the reader's any more afterwards, see loop.
func (s *session) perform(do func()) {
	s.srv.herd.touch()
	s.relay.mu.Lock()
	s.relay.since = time.Now()
	gen := s.relay.gen
	s.relay.mu.Unlock()
	do()
	s.relay.mu.Lock()
	if s.relay.gen == gen {
		s.relay.since = time.Time{}
	}
	s.relay.mu.Unlock()
}

// loop reads and carries out requests until the client ends or another goroutine has taken over.
func (s *session) loop(gen int) {
	for {
		err := s.next()
		s.relay.mu.Lock()
		mine := s.relay.gen == gen
		s.relay.mu.Unlock()
		if !mine {
			return
		}
		if err != nil {
			s.ended <- err
			return
		}
	}
}

// takeOver lets another goroutine read if the reader has been busy since before t.
func (s *session) takeOver(t time.Time) {
	s.relay.mu.Lock()
	defer s.relay.mu.Unlock()
	if s.relay.since.IsZero() || s.relay.since.After(t) {
		return
	}
	s.relay.since = time.Time{}
	s.relay.gen++
	gen := s.relay.gen
	s.tasks.Go(func() { s.loop(gen) })
}

// herd watches the readers of all sessions, as long as there is something to watch.
type herd struct {
	once   sync.Once
	awake  atomic.Bool
	poke   chan struct{}
	events atomic.Uint64
}

func (h *herd) touch() {
	h.events.Add(1)
	if !h.awake.Load() {
		select {
		case h.poke <- struct{}{}:
		default:
		}
	}
}

// herding hands over the sessions whose reader is kept. It sleeps while nothing is asked.
func (srv *Server) herding() {
	h := &srv.herd
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-srv.over:
			return
		case <-h.poke:
		}
		h.awake.Store(true)
		tick.Reset(patience)
		for quiet, seen := 0, h.events.Load(); quiet < 20; quiet++ {
			select {
			case <-srv.over:
				return
			case at := <-tick.C:
				busy := srv.handOver(at.Add(-patience))
				if now := h.events.Load(); now != seen || busy {
					quiet, seen = 0, now
				}
				if quiet == 19 {
					h.awake.Store(false) // whoever comes from now on pokes; who came before is seen in the last round
				}
			}
		}
		tick.Reset(time.Hour)
	}
}

// handOver takes over from the readers that have been busy since before t, and reports whether any is busy.
func (srv *Server) handOver(t time.Time) (busy bool) {
	srv.mu.Lock()
	defer srv.mu.Unlock()
	for s := range srv.sessions {
		s.takeOver(t)
		s.relay.mu.Lock()
		busy = busy || !s.relay.since.IsZero()
		s.relay.mu.Unlock()
	}
	return busy
}
