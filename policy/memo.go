package policy

import (
	"net/netip"
	"sync"
)

// memo remembers, for the second that runs, what guards answered that do not look at nodes. Conditions about time see whole seconds, so an answer
// remembered is the answer that would be given.
type memo struct {
	mu      sync.RWMutex
	second  int64            // of the answers; guarded by mu
	answers map[memoKey]bool // guarded by mu
}

// memoKey is everything such an answer depends on: the guards, the action, and what the Env tells beside the node.
type memoKey struct {
	of                                   *guards
	act                                  Action
	protocol, client, method, credential string
	addr                                 netip.Addr
	second, factor                       int64
}

// maxMemo bounds the answers of one second.
const maxMemo = 64

func (k *memoKey) fill(e *Env) {
	if e == nil {
		return
	}
	k.protocol, k.client, k.method, k.credential, k.addr = e.Protocol, e.Client, e.Method, e.Credential, e.Addr
	if !e.Time.IsZero() {
		k.second = e.Time.Unix()
	}
	if !e.SecondFactor.IsZero() {
		k.factor = e.SecondFactor.Unix()
	}
}

func (m *memo) get(k memoKey) (ok, known bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	ok, known = m.answers[k]
	return ok, known
}

func (m *memo) put(k memoKey, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers == nil || m.second != k.second || len(m.answers) >= maxMemo {
		m.answers, m.second = map[memoKey]bool{}, k.second
	}
	m.answers[k] = ok
}
