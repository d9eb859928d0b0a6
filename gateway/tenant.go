package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"cellgate/internal/fault"
)

// tenants are the open backends of a datasource that each user opens with credentials of his own: one for each user, opened at the first
// use and closed when nobody has used it for a while.
type tenants struct {
	mu   sync.Mutex
	open map[int64]*tenant // by user, guarded by mu
	gone bool              // the datasource is closed, guarded by mu
}

// tenant is one of them.
type tenant struct {
	key   string
	ready chan struct{} // closed when m or err is set
	m     *mounted
	err   error
	until time.Time // of an err: when to try again

	mu      sync.Mutex
	used    time.Time // guarded by mu
	checked time.Time // when the credentials were last looked at, guarded by mu
}

const (
	tenantIdle  = 15 * time.Minute
	tenantRetry = 5 * time.Second // and not sooner: wrong passwords lock accounts
)

// openFor returns the backend as the session's user may use it.
func (ds *datasource) openFor(ctx context.Context, s *Session) (*mounted, error) {
	if ds.cfg.Mode == Shared {
		return ds.open()
	}
	user, now := s.Subject().ID, ds.g.clock.Now()
	if m := ds.tenants.recent(user, now); m != nil && ds.cfg.Mode == PerUser {
		return m, nil
	}
	set, err := ds.credentialsOf(ctx, s)
	if err != nil {
		return nil, err
	}
	if set.shared {
		return ds.open()
	}
	t, mine := ds.tenants.claim(user, set.key, now)
	if mine {
		ds.openTenant(t, user, set)
	}
	select {
	case <-t.ready:
	case <-ctx.Done():
		return nil, fault.New("gateway.open", ds.cfg.Name, fault.KindOf(ctx.Err()), ctx.Err())
	}
	if t.err != nil {
		return nil, ds.refusal(t.err)
	}
	return t.m, nil
}

// openTenant opens a tenant, for whom others may be waiting whatever happens.
func (ds *datasource) openTenant(t *tenant, user int64, set credentialSet) {
	defer close(t.ready)
	t.err = errClosed // of a driver that panics
	t.m, t.err = ds.dialAs(ds.g.life, user, set)
	if t.err != nil {
		t.until = ds.g.clock.Now().Add(tenantRetry)
	}
}

// dialAs opens the backend with one user's credentials and deals with what that user's operations have left in the journal.
func (ds *datasource) dialAs(ctx context.Context, user int64, set credentialSet) (*mounted, error) {
	cfg := ds.cfg
	cfg.Credentials = set.values
	m, err := ds.dial(ctx, cfg, user)
	if err != nil {
		return nil, err
	}
	ds.mistrust(m)
	if err = ds.foldRights(ctx, m); err == nil {
		err = ds.g.journal.replay(ctx, ds, m)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	ds.g.journal.resumeOn(ctx, ds.g.table.Load(), ds, m)
	return m, nil
}

// refusal is the error of a backend that one user could not open: to clients it is a matter of rights, not of signing in here again.
func (ds *datasource) refusal(err error) error {
	if fault.KindOf(err) == fault.Unauthenticated {
		return fault.New("gateway.open", ds.cfg.Name, fault.Denied, fmt.Errorf("the backend refuses this user's credentials; enter them anew: %w", err))
	}
	return fault.New("gateway.open", ds.cfg.Name, fault.KindOf(err), err)
}

// recent returns a user's open backend when its credentials were looked at a moment ago.
func (t *tenants) recent(user int64, now time.Time) *mounted {
	t.mu.Lock()
	one := t.open[user]
	t.mu.Unlock()
	if one == nil {
		return nil
	}
	select {
	case <-one.ready:
	default:
		return nil
	}
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.err != nil || now.Sub(one.checked) > credentialAge {
		return nil
	}
	one.used = now
	return one.m
}

// claim returns the tenant of a user, and whether the caller has to open it. One of other credentials, or that failed a while ago, is replaced.
func (t *tenants) claim(user int64, key string, now time.Time) (one *tenant, mine bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one = t.open[user]
	if one != nil && one.key == key && !one.stale(now) {
		one.mu.Lock()
		defer one.mu.Unlock()
		one.used, one.checked = now, now
		return one, false
	}
	if one != nil {
		go one.close()
	}
	one = &tenant{key: key, ready: make(chan struct{}), used: now, checked: now}
	if t.gone {
		one.err = errClosed
		close(one.ready)
		return one, false
	}
	if t.open == nil {
		t.open = make(map[int64]*tenant)
	}
	t.open[user] = one
	return one, true
}

// stale reports whether opening failed, long enough ago to try again.
func (one *tenant) stale(now time.Time) bool {
	select {
	case <-one.ready:
		return one.err != nil && now.After(one.until)
	default:
		return false
	}
}

func (one *tenant) close() {
	<-one.ready
	if one.m != nil {
		_ = one.m.Close() // its user has other credentials now, or none
	}
}

// forget closes what a user has open.
func (t *tenants) forget(user int64) {
	t.mu.Lock()
	one := t.open[user]
	delete(t.open, user)
	t.mu.Unlock()
	if one != nil {
		go one.close()
	}
}

// idle closes what nobody has used for a while.
func (t *tenants) idle(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for user, one := range t.open {
		one.mu.Lock()
		old := now.Sub(one.used) > tenantIdle
		one.mu.Unlock()
		if old {
			delete(t.open, user)
			go one.close()
		}
	}
}

// close closes all, for good, and returns how many there were.
func (t *tenants) close() int {
	t.mu.Lock()
	all := t.open
	t.open, t.gone = nil, true
	t.mu.Unlock()
	for _, one := range all {
		one.close()
	}
	return len(all)
}

// ready returns the backends that are open now, by user.
func (t *tenants) ready() map[int64]*mounted {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[int64]*mounted, len(t.open))
	for user, one := range t.open {
		select {
		case <-one.ready:
			if one.err == nil {
				all[user] = one.m
			}
		default:
		}
	}
	return all
}

// count returns how many users have it open.
func (t *tenants) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}
