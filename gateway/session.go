package gateway

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy"
)

// Client says from where and how a request comes: what conditions of policies ask, and what the audit record keeps.
type Client struct {
	Protocol   string // "webdav", "sftp", "s3", "fuse", "rest"
	Address    netip.Addr
	Agent      string
	Method     string
	RequestID  string
	Credential string // kind of credential: "password", "app-password", …
	// Tokens are the lock tokens the request submits (RFC 4918 §10.4).
	Tokens []string
	// OwnLocks says that the protocol has no way to submit tokens: then the user's own locks do not bind the user.
	OwnLocks bool
	// Posix says that the protocol shows permission bits, and symbolic links as what they are. Else a link is what it leads to.
	Posix bool
	// Sums says that the protocol shows checksums.
	Sums bool
}

// Session is the tree as one authenticated subject sees it. Protocols make one per login and With a copy per request; both are safe for
// concurrent use. A session follows changes of rights, groups and workspaces by itself and fails with Unauthenticated once its user is
// disabled or deleted.
//
// Every verb returns faults whose path is the virtual one. NotExist is also what they say of a node that the subject may not know of.
type Session struct {
	g      *Gateway
	core   *core
	client Client
	env    policy.Env
	size   *int64 // of the file that the operation makes, nil for one that is there
}

// core is what all copies of a session share.
type core struct {
	bound  atomic.Pointer[bound]
	mu     sync.Mutex // one rebinding at a time
	budget *budget

	passport *passport // nil for logins without a password, and where nobody asked for it

	reads, refusals readLog
}

// bound is a subject's rights as compiled from one state of users, grants and workspaces.
type bound struct {
	sub   *policy.Subject
	view  *policy.View
	snap  *policy.Snapshot
	table *table
	roots map[string][]string // expanded root paths of all workspaces, by slug; "" where the subject has none
	fixed []policy.Place      // the same as places
}

// Session returns the tree of sub.
func (g *Gateway) Session(sub *policy.Subject) *Session {
	s := &Session{g: g, core: &core{budget: g.budgets.of(sub.ID)}}
	s.core.bound.Store(g.bind(sub))
	return s
}

// With returns the same session for one request of c.
func (s *Session) With(c Client) *Session {
	return &Session{g: s.g, core: s.core, client: c, env: policy.Env{
		Protocol: c.Protocol, Addr: c.Address, Client: c.Agent, Method: c.Method, Credential: c.Credential, RequestID: c.RequestID,
	}}
}

// Subject returns whose session it is.
func (s *Session) Subject() *policy.Subject { return s.core.bound.Load().sub }

// current returns the subject's rights as they are now.
func (s *Session) current(ctx context.Context) (*bound, error) {
	b := s.core.bound.Load()
	if b.snap == s.g.engine.Snapshot() && b.table == s.g.table.Load() && b.sub.Epoch == s.g.ident.Epoch() {
		return b, nil
	}
	s.core.mu.Lock()
	defer s.core.mu.Unlock()
	if now := s.core.bound.Load(); now != b {
		return now, nil // another goroutine was quicker
	}
	sub, err := s.g.ident.Refresh(ctx, s.core.bound.Load().sub)
	if err != nil {
		return nil, err
	}
	b = s.g.bind(sub)
	s.core.bound.Store(b)
	return b, nil
}

// bind compiles the rights of sub. Grants on template workspaces are expanded to this subject's own folder: one user's template is nothing
// to another.
func (g *Gateway) bind(sub *policy.Subject) *bound {
	b := &bound{sub: sub, snap: g.engine.Snapshot(), table: g.table.Load(), roots: make(map[string][]string)}
	var own []policy.Grant
	for slug, w := range b.table.workspaces {
		for i, r := range w.roots {
			path, err := r.expand(sub)
			if err != nil {
				// A login or group that cannot be a folder name: this user has no such root.
				path = ""
			}
			if b.roots[slug] == nil {
				b.roots[slug] = make([]string, len(w.roots))
			}
			b.roots[slug][i] = path
			if path != "" {
				b.fixed = append(b.fixed, b.table.place(r.datasource, path))
			}
			if !r.template || path == "" {
				continue
			}
			template := b.table.place(r.datasource, r.path)
			for _, grant := range b.snap.GrantsWithin(template) {
				grant.On = b.table.place(r.datasource, moved(grant.On.Path, template.Path, path))
				own = append(own, grant)
			}
		}
	}
	b.view = b.snap.Bind(sub, own)
	return b
}

// target is what a path of a session's tree stands for.
type target struct {
	path  Path
	ws    *workspace   // nil for the root of the tree
	ds    *datasource  // nil for a virtual folder: the root of the tree, or a workspace of several roots
	name  string       // on the backend
	at    policy.Place // where its rights, locks and rows are kept
	root  string       // on the backend, of the workspace's root it lies in
	roots []string     // expanded, of a virtual workspace
	node  *policy.Node // for guards that ask about more than names, nil where none does
}

func (t target) virtual() bool { return t.ds == nil }

// isRoot reports whether the target is the folder that its workspace's root names.
func (t target) isRoot() bool { return t.ds != nil && t.name == t.root }

// holdsRoot reports whether a place is or holds the folder that a root of any workspace names: it cannot be moved, replaced or deleted, by
// whichever way it is reached.
func (b *bound) holdsRoot(at policy.Place) bool {
	for _, r := range b.fixed {
		if r.Datasource == at.Datasource && within(at.Path, r.Path) {
			return true
		}
	}
	return false
}

// resolve finds what p stands for. It does not ask for rights. A reserved name anywhere does not exist.
func (b *bound) resolve(p Path) (target, error) {
	t := target{path: p}
	if p.IsRoot() {
		return t, nil
	}
	slug, rest := p.slug()
	t.ws = b.table.workspaces[slug]
	if t.ws == nil || reserved(rest) {
		return t, fault.New("gateway.resolve", p.String(), fault.NotExist, nil)
	}
	roots, i := b.roots[slug], 0
	if len(t.ws.roots) > 1 {
		if rest == "" {
			t.roots = roots
			return t, nil
		}
		var folder string
		folder, rest, _ = strings.Cut(rest, "/")
		for i = 0; i < len(t.ws.names) && t.ws.names[i] != folder; i++ {
		}
		if i == len(t.ws.names) {
			return t, fault.New("gateway.resolve", p.String(), fault.NotExist, nil)
		}
	}
	t.root = roots[i]
	t.ds = b.table.datasources[t.ws.roots[i].datasource]
	if t.root == "" || t.ds == nil {
		return t, fault.New("gateway.resolve", p.String(), fault.NotExist, nil)
	}
	t.name = join(t.root, rest)
	t.at = t.ds.place(t.name)
	return t, nil
}

// environment is what guards are asked with.
func (s *Session) environment() *policy.Env {
	env := s.env
	env.Time = s.g.clock.Now()
	if env.Credential == "" {
		env.Credential = s.Subject().Credential
	}
	return &env
}

// coming returns the session for an operation that makes a file of size bytes: what guards that ask about sizes are told.
func (s *Session) coming(size int64) *Session {
	c := *s
	c.size = &size
	return &c
}

// readLog remembers what a session did last, so that a player seeking through a film is one record in the audit log and not a thousand.
type readLog struct {
	mu   sync.Mutex
	last map[policy.Place]time.Time
}

// again reports whether the place was noted within the last minute, and notes it otherwise.
func (l *readLog) again(at policy.Place, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) >= 1024 {
		l.last = nil
	}
	if l.last == nil {
		l.last = make(map[policy.Place]time.Time)
	}
	then, ok := l.last[at]
	if ok && now.Sub(then) < time.Minute && !now.Before(then) {
		return true
	}
	l.last[at] = now
	return false
}
