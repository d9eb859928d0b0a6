package identity

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"net/netip"
	"strings"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/guard"
	"cellgate/store"
)

// Attempt is somebody at a door with a login and a password or app password.
type Attempt struct {
	Protocol string
	Login    string
	Password secret.String
	Addr     netip.Addr
	Client   string
}

var errRefused = errors.New("wrong login or password")

// Login signs somebody in. It fails with Unauthenticated, whatever is wrong (no such user, wrong password, disabled, a login policy says no), and
// with Busy and a *Throttled cause when the budget is used up. A password that was verified before is recognised without hashing; the same
// credential yields the same Subject as long as nothing about the account changes.
func (s *Service) Login(ctx context.Context, a Attempt) (*policy.Subject, error) {
	const op = "policy/identity.Login"
	now := s.clock.Now()
	p := pair{policy.FoldLogin(a.Login), network(a.Addr)}
	key := s.verified.key(p.login, a.Password)
	if wait := s.budget.wait(p, now); wait > 0 {
		// App passwords cannot be guessed, so they need no budget and their owners are never locked out.
		if isAppPassword(a.Password) {
			if c, err := s.appPassword(ctx, p.login, a, now); err == nil && c != nil && s.permits(c.subject, a, now) {
				return c.subject, nil
			}
		}
		return nil, fault.New(op, "", fault.Busy, &Throttled{wait})
	}
	if c := s.verified.get(key, now); c != nil && c.allows(a.Protocol) {
		if sub := s.still(ctx, key, c); sub != nil && s.permits(sub, a, now) {
			return sub, nil
		}
	}
	// Clients open many connections at once: one of them pays, all learn the result.
	flight := string(key[:]) + p.net.String() + " " + a.Protocol
	done := s.flights.DoChan(flight, func() (any, error) { return s.verify(context.WithoutCancel(ctx), p, key, a) })
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*policy.Subject), nil
	case <-ctx.Done():
		return nil, fault.Wrap(op, "", ctx.Err())
	}
}

// verify is the expensive way: it uses up an attempt and gives it back when the credential is right.
func (s *Service) verify(ctx context.Context, p pair, key [32]byte, a Attempt) (*policy.Subject, error) {
	const op = "policy/identity.Login"
	now := s.clock.Now()
	if wait := s.budget.take(p, now); wait > 0 {
		return nil, fault.New(op, "", fault.Busy, &Throttled{wait})
	}
	var c *credential
	var err error
	if isAppPassword(a.Password) {
		c, err = s.appPassword(ctx, p.login, a, now)
	} else {
		c, err = s.password(ctx, p.login, a)
	}
	if err != nil {
		s.budget.refund(p, now, false) // nothing was learnt
		return nil, fault.Wrap(op, "", err)
	}
	if c == nil || !s.permits(c.subject, a, now) {
		s.noteRefused(p.login, a)
		return nil, fault.New(op, "", fault.Unauthenticated, errRefused)
	}
	s.budget.refund(p, now, true)
	c.until = now.Add(s.remember)
	s.verified.put(key, c)
	return c.subject, nil
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.Unmap().String()
}

// password checks a password. Unknown, disabled and passwordless users take as long as others. A nil credential means no.
func (s *Service) password(ctx context.Context, login string, a Attempt) (*credential, error) {
	acc, err := s.account(ctx, login)
	if err != nil && fault.KindOf(err) != fault.NotExist {
		return nil, err
	}
	hash := ""
	if acc != nil {
		hash = acc.password
	}
	ok, err := s.hasher.verify(ctx, a.Password, hash)
	if err != nil || !ok || acc.disabled {
		return nil, err
	}
	if s.hasher.stale(hash) {
		s.rehash(acc.subject.ID, hash, a.Password)
	}
	return &credential{subject: signedIn(acc.subject, "password"), hash: hash}, nil
}

// rehash stores the password with today's parameters; in vain when it was changed meanwhile.
func (s *Service) rehash(id int64, old string, password secret.String) {
	fresh, err := s.hasher.hash(context.Background(), password)
	if err != nil {
		return // another login will do it
	}
	s.db.Later(func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE users SET password = $1 WHERE id = $2 AND password = $3`, fresh, id, old)
		return err
	})
}

// signedIn returns the subject with the way it signed in.
func signedIn(sub *policy.Subject, credential string) *policy.Subject {
	c := *sub
	c.Credential = credential
	return &c
}

// permits asks the login and protocol policies.
func (s *Service) permits(sub *policy.Subject, a Attempt, now time.Time) bool {
	snap := s.policy.Snapshot()
	env := &policy.Env{Protocol: a.Protocol, Addr: a.Addr, Client: a.Client, Credential: sub.Credential, Time: now}
	for _, kind := range [...]string{guard.Login, guard.Protocol} {
		if ok, by := snap.Check(kind, sub, a.Protocol, "", env); !ok {
			s.log.Info("login refused by policy", "user", sub.Login, "policy", by, "protocol", a.Protocol, "addr", addrText(a.Addr))
			return false
		}
	}
	return true
}

// still returns the subject of a remembered credential if it is still good, nil otherwise. While no account changed it is a comparison.
func (s *Service) still(ctx context.Context, key [32]byte, c *credential) *policy.Subject {
	if c.subject.Epoch == s.epoch.Load() {
		return c.subject
	}
	acc, err := s.account(ctx, c.subject.Login)
	if err != nil || c.hash == "" || acc.disabled || acc.subject.ID != c.subject.ID || acc.password != c.hash {
		s.verified.drop(key)
		return nil
	}
	next := *c
	next.subject = signedIn(acc.subject, c.subject.Credential)
	if same := s.verified.swap(key, c, &next); same != nil {
		return same.subject
	}
	return next.subject
}

// Refresh returns sub itself while no account has changed since it was read, and reads it anew otherwise. It fails with Unauthenticated when the
// account is disabled, deleted or another one of the same login.
func (s *Service) Refresh(ctx context.Context, sub *policy.Subject) (*policy.Subject, error) {
	if sub.Epoch == s.epoch.Load() {
		return sub, nil
	}
	const op = "policy/identity.Refresh"
	acc, err := s.account(ctx, sub.Login)
	switch {
	case fault.KindOf(err) == fault.NotExist && err != nil:
		return nil, fault.New(op, "", fault.Unauthenticated, errors.New("the account is gone"))
	case err != nil:
		return nil, fault.Wrap(op, "", err)
	case acc.disabled, acc.subject.ID != sub.ID:
		return nil, fault.New(op, "", fault.Unauthenticated, errors.New("the account is disabled or another one"))
	}
	return signedIn(acc.subject, sub.Credential), nil
}

// credential is a verified one. It does not change once it is shared.
type credential struct {
	subject   *policy.Subject
	hash      string   // the stored hash it was verified against; "" for an app password
	protocols []string // of an app password; empty: all
	until     time.Time
	expires   time.Time // of an app password; zero: never
}

func (c *credential) allows(protocol string) bool {
	for _, p := range c.protocols {
		if p == protocol {
			return true
		}
	}
	return len(c.protocols) == 0
}

// maxVerified bounds the remembered credentials.
const maxVerified = 8192

// verified remembers credentials by a keyed hash of login and password, so that protocols that send a password with each request do not pay for
// Argon2 each time. Neither passwords nor anything they could be guessed from without the key is kept.
type verified struct {
	macs sync.Pool
	mu   sync.RWMutex
	of   map[[32]byte]*credential // guarded by mu
}

func newVerified(key [32]byte) *verified {
	return &verified{of: map[[32]byte]*credential{}, macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key[:]) }}}
}

func (v *verified) key(login string, password secret.String) (key [32]byte) {
	mac := v.macs.Get().(hash.Hash)
	defer v.macs.Put(mac)
	mac.Reset()
	var stack [256]byte
	b := binary.BigEndian.AppendUint32(stack[:0], uint32(len(login)))
	b = append(append(b, login...), password.Reveal()...)
	mac.Write(b)
	mac.Sum(key[:0])
	clear(b)
	return key
}

func (v *verified) get(key [32]byte, now time.Time) *credential {
	v.mu.RLock()
	c := v.of[key]
	v.mu.RUnlock()
	if c == nil {
		return nil
	}
	if !now.Before(c.until) || !c.expires.IsZero() && !now.Before(c.expires) {
		v.drop(key)
		return nil
	}
	return c
}

func (v *verified) put(key [32]byte, c *credential) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for old := range v.of {
		if len(v.of) < maxVerified {
			break
		}
		delete(v.of, old)
	}
	v.of[key] = c
}

// swap replaces old by next. It returns what is there when somebody else has replaced it already.
func (v *verified) swap(key [32]byte, old, next *credential) *credential {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.of[key]; c != nil && c != old && c.subject.Epoch >= next.subject.Epoch {
		return c
	}
	v.of[key] = next
	return nil
}

func (v *verified) drop(key [32]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.of, key)
}

// isAppPassword reports whether a password looks like one of ours.
func isAppPassword(p secret.String) bool {
	return len(p.Reveal()) == len(appPrefix)+26 && strings.HasPrefix(p.Reveal(), appPrefix)
}
