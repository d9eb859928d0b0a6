package webdav

import (
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
)

const protocol = "webdav"

// maxCredential bounds login and password before anything is computed with them.
const maxCredential = 4096

// login verifies the Basic credentials and binds a session to the request. Identity remembers verified credentials, so this costs little.
func (q *request) login() error {
	const op = "webdav.login"
	q.client = gateway.Client{
		Protocol:  protocol,
		Address:   q.h.cfg.ClientAddr(q.r),
		Agent:     q.r.UserAgent(),
		Method:    q.r.Method,
		RequestID: q.h.cfg.RequestID(q.r),
		Tokens:    q.ifh.tokens(),
	}
	name, password, ok := q.r.BasicAuth()
	if !ok || len(name)+len(password) > maxCredential {
		return fault.New(op, "", fault.Unauthenticated, nil)
	}
	sub, err := q.h.cfg.Identity.Login(q.ctx(), identity.Attempt{
		Protocol: protocol, Login: name, Password: secret.New(password), Addr: q.client.Address, Client: q.client.Agent,
	})
	if err != nil {
		return err
	}
	q.client.Credential = sub.Credential
	if log, ok := q.w.ResponseWriter.(interface{ SignedIn(login string) }); ok {
		log.SignedIn(sub.Login)
	}
	s, err := q.h.sessions.of(q.h, sub, secret.New(password))
	if err != nil {
		return err
	}
	q.s = s.With(q.client)
	return nil
}

// maxSessions bounds the cache of sessions. It is emptied when full: making one anew costs microseconds.
const maxSessions = 8192

// sessions keeps one gateway.Session per verified login, so that rights are compiled once and not per request. Identity answers a verified
// credential with the same Subject until the epoch moves, so the pointer is the key, and everything goes when the epoch moves.
type sessions struct {
	mu    sync.RWMutex
	epoch uint64                               // guarded by mu
	known map[*policy.Subject]*gateway.Session // guarded by mu
}

func (c *sessions) of(h *Handler, sub *policy.Subject, password secret.String) (*gateway.Session, error) {
	epoch := h.cfg.Identity.Epoch()
	c.mu.RLock()
	s, ok := c.known[sub]
	ok = ok && c.epoch == epoch
	c.mu.RUnlock()
	if ok {
		return s, nil
	}
	s, err := h.cfg.Gateway.Session(sub).Carry(password)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch || len(c.known) >= maxSessions || c.known == nil {
		c.epoch, c.known = epoch, make(map[*policy.Subject]*gateway.Session)
	}
	c.known[sub] = s
	return s, nil
}
