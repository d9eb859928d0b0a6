package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/store"
)

// Lock is a write lock on a node (RFC 4918 §6). It binds every user on every protocol: also its owner must submit the token, where the
// protocol can. It is kept in the store and ends when it expires, whatever restarts in between.
type Lock struct {
	Token    string // a URI: "urn:uuid:…"
	Root     Path   // as it was locked; another user may see the node under another path
	Owner    string // login
	OwnerXML string // what the client said of its owner, as it came
	Shared   bool
	Infinite bool // with everything below
	Expires  time.Time
	Timeout  time.Duration // what was granted

	at     policy.Place
	holder int64 // id of the user
}

// LockRequest is what a client asks for.
type LockRequest struct {
	OwnerXML string
	Shared   bool
	Infinite bool
	Timeout  time.Duration // 0 or more than the limit: the limit
}

// LockedError says which lock is in the way. It is found with errors.As in an error of kind Locked.
type LockedError struct{ Lock Lock }

// Error implements error. It names no user: who may not know of others learns of none.
func (e *LockedError) Error() string { return "locked at " + e.Lock.Root.String() }

var (
	errToken     = errors.New("no such lock on this node")
	errHolder    = errors.New("the lock is another user's")
	errLockCount = errors.New("too many locks")
)

// lockTable is the working copy of the store's locks: the process is the only one that writes them.
type lockTable struct {
	g       *Gateway
	mu      sync.Mutex
	byPlace map[policy.Place][]*Lock
	below   map[policy.Place]int // how many locks lie strictly below a folder
	byToken map[string]*Lock
	holders map[int64]int
}

func (t *lockTable) load(ctx context.Context, g *Gateway) error {
	t.g = g
	t.byPlace, t.below = make(map[policy.Place][]*Lock), make(map[policy.Place]int)
	t.byToken, t.holders = make(map[string]*Lock), make(map[int64]int)
	rows, err := g.db.Query(ctx, `SELECT token, datasource, path, root, holder, login, owner, shared, infinite, timeout, expires FROM locks ORDER BY token`)
	if err != nil {
		return fault.Wrap("gateway.locks", "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var l Lock
		var root string
		var owner []byte
		var shared, infinite, timeout, expires int64
		if err := rows.Scan(&l.Token, &l.at.Datasource, &l.at.Path, &root, &l.holder, &l.Owner, &owner, &shared, &infinite, &timeout, &expires); err != nil {
			return fault.Wrap("gateway.locks", "", err)
		}
		if l.Root, err = ParsePath(root); err != nil {
			return err
		}
		l.OwnerXML, l.Shared, l.Infinite = string(owner), shared != 0, infinite != 0
		l.Timeout, l.Expires = time.Duration(timeout), time.Unix(0, expires).UTC()
		t.add(&l)
	}
	return fault.Wrap("gateway.locks", "", rows.Err())
}

func (t *lockTable) add(l *Lock) {
	t.byPlace[l.at] = append(t.byPlace[l.at], l)
	t.byToken[l.Token] = l
	t.holders[l.holder]++
	above(l.at.Path, func(dir string) bool { t.below[policy.Place{Datasource: l.at.Datasource, Path: dir}]++; return true })
}

func (t *lockTable) drop(l *Lock) {
	if t.byToken[l.Token] != l {
		return
	}
	delete(t.byToken, l.Token)
	if t.holders[l.holder]--; t.holders[l.holder] == 0 {
		delete(t.holders, l.holder)
	}
	left := slices.DeleteFunc(slices.Clone(t.byPlace[l.at]), func(o *Lock) bool { return o == l })
	if t.byPlace[l.at] = left; len(left) == 0 {
		delete(t.byPlace, l.at)
	}
	above(l.at.Path, func(dir string) bool {
		at := policy.Place{Datasource: l.at.Datasource, Path: dir}
		if t.below[at]--; t.below[at] == 0 {
			delete(t.below, at)
		}
		return true
	})
}

func (t *lockTable) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byToken)
}

// expire forgets locks that have run out.
func (t *lockTable) expire() {
	now := t.g.clock.Now()
	t.mu.Lock()
	var gone []any
	for _, l := range t.byToken {
		if !l.Expires.After(now) {
			gone = append(gone, l.Token)
		}
	}
	for _, token := range gone {
		t.drop(t.byToken[token.(string)])
	}
	t.mu.Unlock()
	if len(gone) > 0 {
		t.g.db.Later(func(tx *store.Tx) error { return deleteIDs(tx, `DELETE FROM locks WHERE token IN `, gone) })
	}
}

// covering yields the locks that cover a place: those on it and the infinite ones above. The caller holds mu.
func (t *lockTable) covering(at policy.Place, now time.Time, yield func(*Lock) bool) {
	if len(t.byToken) == 0 {
		return
	}
	for _, l := range t.byPlace[at] {
		if l.Expires.After(now) && !yield(l) {
			return
		}
	}
	above(at.Path, func(dir string) bool {
		for _, l := range t.byPlace[policy.Place{Datasource: at.Datasource, Path: dir}] {
			if l.Infinite && l.Expires.After(now) && !yield(l) {
				return false
			}
		}
		return true
	})
}

// inside yields the locks strictly below a place. The caller holds mu.
func (t *lockTable) inside(at policy.Place, now time.Time, yield func(*Lock) bool) {
	if t.below[at] == 0 {
		return
	}
	for place, locks := range t.byPlace {
		if place.Datasource != at.Datasource || place == at || !within(at.Path, place.Path) {
			continue
		}
		for _, l := range locks {
			if l.Expires.After(now) && !yield(l) {
				return
			}
		}
	}
}

// lockScope says what of a node an operation touches beside the node itself.
type lockScope struct {
	member bool // the name comes or goes: a lock on the folder that holds it counts too (RFC 4918 §7.4)
	tree   bool // everything below counts too
}

// unlocked reports Locked unless the subject may touch t in spite of the locks there: of the locks on one root it must hold one and have
// submitted its token.
func (o *op) unlocked(t *target, scope lockScope) error {
	table := &o.g.locks
	table.mu.Lock()
	defer table.mu.Unlock()
	if len(table.byToken) == 0 {
		return nil
	}
	now := o.g.clock.Now()
	var roots []policy.Place // with locks
	var ours []policy.Place  // of them, those the subject may pass
	var witness map[policy.Place]*Lock
	note := func(l *Lock) bool {
		if !slices.Contains(roots, l.at) {
			roots = append(roots, l.at)
			if witness == nil {
				witness = make(map[policy.Place]*Lock)
			}
			witness[l.at] = l
		}
		if l.holder == o.b.sub.ID && (o.s.client.OwnLocks || slices.Contains(o.s.client.Tokens, l.Token)) {
			ours = append(ours, l.at)
		}
		return true
	}
	table.covering(t.at, now, note)
	if scope.member && t.at.Path != "." {
		for _, l := range table.byPlace[policy.Place{Datasource: t.at.Datasource, Path: parentOf(t.at.Path)}] {
			if l.Expires.After(now) {
				note(l)
			}
		}
	}
	if scope.tree {
		table.inside(t.at, now, note)
	}
	for _, at := range roots {
		if !slices.Contains(ours, at) {
			return fault.New("gateway.lock", t.path.String(), fault.Locked, &LockedError{o.shown(*witness[at], t)})
		}
	}
	return nil
}

// shown is a lock as the subject sees it from t: its root as it is called in the subject's tree, or t itself where the subject may not know
// of the root.
func (o *op) shown(l Lock, t *target) Lock {
	l.Root = t.path
	switch {
	case within(l.at.Path, t.at.Path):
		for up := depthOf(t.at.Path) - depthOf(l.at.Path); up > 0 && l.Root.Depth() > 1; up-- {
			l.Root = l.Root.Parent()
		}
	case within(t.at.Path, l.at.Path) && o.b.view.Decide(policy.List, l.at, o.env).Allowed:
		l.Root = Path{join(t.path.s, relative(l.at.Path, t.at.Path))}
	}
	return l
}

// Lock locks p and reports whether it made p: locking a name that does not exist makes an empty file (RFC 4918 §7.3).
func (s *Session) Lock(ctx context.Context, p Path, r LockRequest) (_ Lock, created bool, err error) {
	o, err := s.begin(ctx, verbLock, p, policy.Modify, policy.Create)
	if err != nil {
		return Lock{}, false, err
	}
	defer o.end(&err)
	info, exists, err := o.existing(ctx, o.m, &o.target, policy.Modify, policy.Create)
	if err != nil {
		return Lock{}, false, err
	}
	l := &Lock{
		Token: newToken(), Root: p, Owner: o.b.sub.Login, holder: o.b.sub.ID, OwnerXML: r.OwnerXML, Shared: r.Shared,
		Infinite: r.Infinite && (!exists || info.IsDir()), Timeout: o.g.grant(r.Timeout), at: o.at,
	}
	if err := o.lockable(l); err != nil {
		return Lock{}, false, err
	}
	if exists {
		act := policy.Modify
		if info.IsDir() {
			act = policy.Create
		}
		if _, err := o.ask(act, &o.target); err != nil {
			return Lock{}, false, err
		}
	} else {
		l.Infinite = false
		if exists, err = s.occupy(ctx, p); err != nil {
			return Lock{}, false, err
		}
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return Lock{}, false, err
	}
	defer release()
	if err := o.take(ctx, l); err != nil {
		return Lock{}, !exists, err
	}
	o.publish(event.Locked, o.at, policy.Place{}, info.IsDir(), -1)
	return *l, !exists, nil
}

// occupy makes the empty file p for a lock, and reports whether somebody else was quicker.
func (s *Session) occupy(ctx context.Context, p Path) (exists bool, err error) {
	u, err := s.Create(ctx, p, CreateOptions{Size: 0, Exclusive: true})
	if err == nil {
		_, _, err = u.Commit(ctx)
	}
	if err != nil && fault.KindOf(err) == fault.Exist {
		return true, nil
	}
	return false, err
}

// lockable reports Locked when l conflicts with a lock that is there, and Busy when there are too many.
func (o *op) lockable(l *Lock) error {
	t := &o.g.locks
	t.mu.Lock()
	defer t.mu.Unlock()
	return o.conflict(l)
}

// conflict is lockable for one who holds the table's mu.
func (o *op) conflict(l *Lock) (err error) {
	t, now := &o.g.locks, o.g.clock.Now()
	if t.holders[l.holder] >= o.g.limits.Locks || len(t.byToken) >= o.g.limits.LocksTotal || len(t.byPlace[l.at]) >= o.g.limits.LocksNode {
		return fault.New("gateway.lock", l.Root.String(), fault.Busy, errLockCount)
	}
	clash := func(other *Lock) bool {
		if !l.Shared || !other.Shared {
			err = fault.New("gateway.lock", l.Root.String(), fault.Locked, &LockedError{o.shown(*other, &o.target)})
		}
		return err == nil
	}
	t.covering(l.at, now, clash)
	if err == nil && l.Infinite {
		t.inside(l.at, now, clash)
	}
	return err
}

// take writes l to the store and to the table. Conflicts are looked for while the table is held, so that of two who race one wins; the
// loser's row is never written.
func (o *op) take(ctx context.Context, l *Lock) error {
	t := &o.g.locks
	l.Expires = o.g.clock.Now().Add(l.Timeout)
	t.mu.Lock()
	if err := o.conflict(l); err != nil {
		t.mu.Unlock()
		return err
	}
	t.add(l)
	t.mu.Unlock()
	err := o.commit(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO locks (token, datasource, path, root, holder, login, owner, shared, infinite, timeout, expires)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
			l.Token, l.at.Datasource, l.at.Path, l.Root.String(), l.holder, l.Owner, []byte(l.OwnerXML), flag(l.Shared), flag(l.Infinite),
			int64(l.Timeout), l.Expires.UnixNano())
		return err
	})
	if err != nil {
		t.mu.Lock()
		t.drop(l)
		t.mu.Unlock()
	}
	return err
}

// grant bounds a timeout.
func (g *Gateway) grant(d time.Duration) time.Duration {
	if d <= 0 || d > g.limits.LockTimeout {
		return g.limits.LockTimeout
	}
	return max(d, time.Second)
}

// held finds the subject's own lock that covers t by its token. A token that is no lock on t is Precondition, another's lock Denied.
func (o *op) held(token string) (*Lock, error) {
	table := &o.g.locks
	table.mu.Lock()
	defer table.mu.Unlock()
	l := table.byToken[token]
	if l == nil || l.at.Datasource != o.at.Datasource || l.at != o.at && !(l.Infinite && within(l.at.Path, o.at.Path)) || !l.Expires.After(o.g.clock.Now()) {
		return nil, fault.New("gateway.lock", o.path.String(), fault.Precondition, errToken)
	}
	if l.holder != o.b.sub.ID {
		o.denied = o.at
		return nil, fault.New("gateway.lock", o.path.String(), fault.Denied, errHolder)
	}
	return l, nil
}

// RefreshLock makes the subject's lock on p last for another d.
func (s *Session) RefreshLock(ctx context.Context, p Path, token string, d time.Duration) (_ Lock, err error) {
	o, err := s.begin(ctx, verbLock, p, policy.Modify, policy.Create)
	if err != nil {
		return Lock{}, err
	}
	defer o.end(&err)
	if _, _, err := o.existing(ctx, o.m, &o.target, policy.Modify, policy.Create); err != nil {
		return Lock{}, err
	}
	l, err := o.held(token)
	if err != nil {
		return Lock{}, err
	}
	fresh := *l
	fresh.Timeout = o.g.grant(d)
	fresh.Expires = o.g.clock.Now().Add(fresh.Timeout)
	err = o.commit(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`UPDATE locks SET timeout = $1, expires = $2 WHERE token = $3`, int64(fresh.Timeout), fresh.Expires.UnixNano(), token)
		return err
	})
	if err != nil {
		return Lock{}, err
	}
	t := &o.g.locks
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.byToken[token] // another refresh may have been quicker
	if now == nil {
		return Lock{}, fault.New("gateway.lock", p.String(), fault.Precondition, errToken)
	}
	t.drop(now)
	t.add(&fresh)
	return o.shown(fresh, &o.target), nil
}

// Unlock ends the subject's lock on p. Another user's lock is Denied, an unknown token Precondition.
func (s *Session) Unlock(ctx context.Context, p Path, token string) (err error) {
	o, err := s.begin(ctx, verbUnlock, p, policy.List, policy.Modify, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	if o.virtual() {
		return fault.New("gateway.lock", p.String(), fault.Precondition, errToken)
	}
	if _, _, err := o.existing(ctx, o.m, &o.target, policy.List, policy.Modify, policy.Create); err != nil {
		return err
	}
	l, err := o.held(token)
	if err != nil {
		return err
	}
	err = o.commit(ctx, func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM locks WHERE token = $1`, token)
		return err
	})
	if err != nil {
		return err
	}
	o.g.locks.mu.Lock()
	o.g.locks.drop(l)
	o.g.locks.mu.Unlock()
	o.publish(event.Unlocked, o.at, policy.Place{}, false, -1)
	return nil
}

// Locks returns the locks that cover p.
func (s *Session) Locks(ctx context.Context, p Path) (_ []Lock, err error) {
	o, err := s.begin(ctx, verbLocks, p, policy.List)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if o.virtual() {
		return nil, nil
	}
	if _, _, err := o.existing(ctx, o.m, &o.target, policy.List); err != nil {
		return nil, err
	}
	all := o.g.locks.of(o.at)
	for i := range all {
		all[i] = o.shown(all[i], &o.target)
	}
	return all, nil
}

func (t *lockTable) of(at policy.Place) (all []Lock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.covering(at, t.g.clock.Now(), func(l *Lock) bool { all = append(all, *l); return true })
	return all
}

// LocksOf returns the locks on the children of the folder p by name, and under "" those that cover all of them. Children without locks, and
// those the subject may not know of, are not in it, so that a listing of many asks once.
func (s *Session) LocksOf(ctx context.Context, p Path) (_ map[string][]Lock, err error) {
	o, err := s.begin(ctx, verbLocks, p, policy.List)
	if err != nil {
		return nil, err
	}
	defer o.end(&err)
	if o.virtual() {
		return nil, nil
	}
	if _, _, err := o.existing(ctx, o.m, &o.target, policy.List); err != nil {
		return nil, err
	}
	all := o.g.locks.children(o.at)
	may := o.b.view.Children(policy.List, o.at, o.env)
	for name, locks := range all {
		if name != "" && !may(name).Allowed {
			delete(all, name)
			continue
		}
		for i := range locks {
			locks[i] = o.shown(locks[i], &o.target)
		}
	}
	return all, nil
}

// children returns the locks on the children of a folder by name, and under "" those that cover all of them.
func (t *lockTable) children(dir policy.Place) map[string][]Lock {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.g.clock.Now()
	all := make(map[string][]Lock)
	t.covering(dir, now, func(l *Lock) bool {
		if l.Infinite {
			all[""] = append(all[""], *l)
		}
		return true
	})
	t.inside(dir, now, func(l *Lock) bool {
		if parentOf(l.at.Path) == dir.Path {
			name := relative(l.at.Path, dir.Path)
			all[name] = append(all[name], *l)
		}
		return true
	})
	return all
}

// lift drops the locks on a place and below it: their nodes have gone or moved, and a lock does neither (RFC 4918 §7.6). It follows the
// transaction of the operation, so that one which fails leaves them; a crash in between leaves locks on nothing, which run out.
func (t *lockTable) lift(at policy.Place) {
	t.mu.Lock()
	gone := slices.Clone(t.byPlace[at])
	t.inside(at, time.Time{}, func(l *Lock) bool { gone = append(gone, l); return true })
	for _, l := range gone {
		t.drop(l)
	}
	t.mu.Unlock()
	if len(gone) > 0 {
		t.g.db.Later(func(tx *store.Tx) error { return deleteIDs(tx, `DELETE FROM locks WHERE token IN `, tokens(gone)) })
	}
}

func tokens(locks []*Lock) []any {
	all := make([]any, len(locks))
	for i, l := range locks {
		all[i] = l.Token
	}
	return all
}

// forgetHolder drops the locks of a user within tx.
func (t *lockTable) forgetHolder(tx *store.Tx, holder int64) error {
	var gone []*Lock
	t.mu.Lock()
	for _, l := range t.byToken {
		if l.holder == holder {
			gone = append(gone, l)
		}
	}
	t.mu.Unlock()
	tx.OnCommit(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, l := range gone {
			t.drop(l)
		}
	})
	return deleteIDs(tx, `DELETE FROM locks WHERE token IN `, tokens(gone))
}

// newToken returns a fresh lock token: a version 4 UUID (RFC 9562) as a URN, unique for all time as RFC 4918 §6.5 asks.
func newToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
