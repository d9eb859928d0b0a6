// Package event tells in process what happened in the core, in order and typed. It carries hints: whoever must not miss one reads the audit
// log, which is the truth, from a sequence number on.
package event

import (
	"sync"
	"time"

	"cellgate/policy"
)

// Kind is what happened.
type Kind string

// The kinds of events.
const (
	Created  Kind = "create"
	Modified Kind = "modify"
	Moved    Kind = "move"
	Copied   Kind = "copy"
	Deleted  Kind = "delete"
	Props    Kind = "props"
	Locked   Kind = "lock"
	Unlocked Kind = "unlock"
)

// Event is something that happened to a node. From is set for moves and copies only.
type Event struct {
	Kind     Kind
	Time     time.Time
	Actor    string // login
	Protocol string
	At       policy.Place
	From     policy.Place
	Folder   bool
	Size     int64 // bytes of a file, -1 where it says nothing
}

// Bus passes events to its subscribers. The zero Bus is ready; safe for concurrent use.
type Bus struct {
	mu   sync.Mutex
	subs map[*Subscription]struct{}
}

// Subscription is one listener's queue.
type Subscription struct {
	bus    *Bus
	events chan Event
	lost   bool // guarded by bus.mu
}

// Subscribe starts a queue that holds up to size events. Close it.
func (b *Bus) Subscribe(size int) *Subscription {
	s := &Subscription{bus: b, events: make(chan Event, size)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.subs == nil {
		b.subs = make(map[*Subscription]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

// Publish hands e to every subscriber. It never waits: a subscriber whose queue is full loses e and learns of it through Lost.
func (b *Bus) Publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for s := range b.subs {
		select {
		case s.events <- e:
		default:
			s.lost = true
		}
	}
}

// C returns the queue. It is closed by Close.
func (s *Subscription) C() <-chan Event { return s.events }

// Lost reports whether events were dropped since the last call: then whatever was derived from them must be derived anew.
func (s *Subscription) Lost() bool {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	lost := s.lost
	s.lost = false
	return lost
}

// Close ends the queue. Calling it twice is fine.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	if _, open := s.bus.subs[s]; open {
		delete(s.bus.subs, s)
		close(s.events)
	}
}
