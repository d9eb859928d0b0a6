package gateway

import (
	"context"
	"errors"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
)

// verb is an operation of Session, for the audit log and the metrics.
type verb uint8

const (
	verbStat verb = iota
	verbList
	verbRead
	verbCreate
	verbWrite
	verbMkdir
	verbRemove
	verbMove
	verbCopy
	verbSetAttr
	verbLink
	verbProps
	verbSetProps
	verbLock
	verbUnlock
	verbLocks
	verbSpace
	verbs
)

func (v verb) String() string {
	return [verbs]string{"stat", "list", "read", "create", "write", "mkdir", "remove", "move", "copy", "set-attr", "link",
		"props", "set-props", "lock", "unlock", "locks", "space"}[v]
}

// changes reports whether the verb changes anything, so that a read-only datasource refuses it.
func (v verb) changes() bool {
	switch v {
	case verbStat, verbList, verbRead, verbProps, verbLocks, verbSpace:
		return false
	}
	return true
}

// grows reports whether the verb needs room that it does not give back.
func (v verb) grows() bool {
	switch v {
	case verbCreate, verbWrite, verbMkdir, verbLink, verbCopy, verbSetProps, verbLock:
		return true
	}
	return false
}

var (
	errRefused  = errors.New("the rights do not allow it")
	errVirtual  = errors.New("this folder is made of workspaces; an admin changes those")
	errReadOnly = errors.New("the datasource is read-only")
	errRoot     = errors.New("this folder is or holds the root of a workspace")
	errMoved    = errors.New("the workspace has changed")
)

// op is one operation of a session from begin to end.
type op struct {
	s    *Session
	g    *Gateway
	b    *bound
	verb verb
	env  *policy.Env

	target              // what the operation is about
	m      *mounted     // its open backend, nil when virtual
	known  bool         // the subject may know whether it exists
	asked  string       // the name of the target before links in it were followed
	leave  func()       // gives the budget back
	other  Path         // the second path of a move or copy
	denied policy.Place // set once rights refused something
}

// begin starts an operation on p: finds what p stands for and asks whether the subject may do at least one of acts there. Every exported
// method of Session starts with it and ends with end; nothing else decides about rights.
func (s *Session) begin(ctx context.Context, v verb, p Path, acts ...policy.Action) (*op, error) {
	o := &op{s: s, g: s.g, verb: v, env: s.environment(), target: target{path: p}}
	s.g.stats.verbs[v].Add(1)
	if err := o.start(ctx, p, acts); err != nil {
		return nil, o.fail(err)
	}
	return o, nil
}

func (o *op) start(ctx context.Context, p Path, acts []policy.Action) (err error) {
	if o.g.closed.Load() {
		return o.g.down("gateway." + o.verb.String())
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if o.verb.grows() && o.g.room != nil {
		if err := o.g.room(); err != nil {
			return err
		}
	}
	if o.b, err = o.s.current(ctx); err != nil {
		return err
	}
	if o.target, err = o.b.resolve(p); err != nil {
		return err
	}
	datasource := ""
	if o.ds != nil {
		datasource = o.ds.cfg.Name
	}
	if o.leave, err = o.s.core.budget.enter(datasource); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			o.leave()
		}
	}()
	if o.virtual() {
		return o.startVirtual()
	}
	o.asked = o.name
	o.m, err = o.ready(ctx, &o.target, acts)
	return err
}

// startVirtual lets everybody look at the folders that are made of workspaces, as far as one of these is the subject's to see.
func (o *op) startVirtual() error {
	if o.ws != nil && !o.visible(o.ws) {
		return fault.New("gateway.begin", o.path.String(), fault.NotExist, nil)
	}
	if o.verb.changes() {
		return fault.New("gateway.begin", o.path.String(), fault.Denied, errVirtual)
	}
	if o.verb == verbRead {
		return fault.New("gateway.begin", o.path.String(), fault.IsDir, nil)
	}
	o.known = true
	return nil
}

// visible reports whether w is in the subject's tree: some right on one of its roots.
func (o *op) visible(w *workspace) bool {
	for i, r := range w.roots {
		path := o.b.roots[w.Slug][i]
		if path == "" {
			continue
		}
		at := o.b.table.place(r.datasource, path)
		if o.b.view.Decide(policy.List, at, o.env).Allowed || o.b.view.Decide(policy.Create, at, o.env).Allowed {
			return true
		}
	}
	return false
}

// ready asks for the rights on t and opens its datasource, in this order: who may not know of a node does not learn that its backend is down.
func (o *op) ready(ctx context.Context, t *target, acts []policy.Action) (*mounted, error) {
	var first error
	o.describe(ctx, t)
	allowed := false
	for _, act := range acts {
		d, err := o.ask(act, t)
		if t == &o.target {
			o.known = o.known || d.Known
		}
		if err == nil {
			allowed = true
			break
		}
		if first == nil {
			first = err
		}
	}
	if !allowed {
		return nil, first
	}
	o.denied = policy.Place{}
	if o.verb.changes() && t.ds.cfg.ReadOnly && !(o.verb == verbCopy && t == &o.target) {
		return nil, fault.New("gateway.begin", t.path.String(), fault.Denied, errReadOnly)
	}
	m, err := t.ds.openFor(ctx, o.s)
	if err != nil {
		return nil, err
	}
	return m, o.ensureRoot(ctx, m, t)
}

// rootCheck is how often a template root is looked for: somebody may have deleted it from outside.
const rootCheck = 10 * time.Second

// ensureRoot makes the folder of a template root at its user's first access.
func (o *op) ensureRoot(ctx context.Context, m *mounted, t *target) error {
	i := 0
	for ; i < len(t.ws.roots) && o.b.roots[t.ws.Slug][i] != t.root; i++ {
	}
	if i == len(t.ws.roots) || !t.ws.roots[i].template || t.ds.cfg.ReadOnly {
		return nil
	}
	key := policy.Place{Datasource: t.ds.cfg.Name, Path: t.root}
	if seen, made := o.g.made.Load(key); made && o.env.Time.Sub(seen.(time.Time)) < rootCheck {
		return nil
	}
	if err := mounts.MkdirAll(ctx, m, t.root); err != nil {
		return err
	}
	o.g.made.Store(key, o.env.Time)
	return nil
}

// ask decides about one action on t.
func (o *op) ask(act policy.Action, t *target) (policy.Decision, error) {
	d := o.b.view.Decide(act, t.at, o.about(t))
	if d.Allowed {
		return d, nil
	}
	return d, o.refuse(t.path, t.at, d)
}

// allowed reports whether the subject may do act to the target, without recording a refusal.
func (o *op) allowed(act policy.Action) bool {
	return o.b.view.Decide(act, o.at, o.about(&o.target)).Allowed
}

// about is what guards are asked with about t.
func (o *op) about(t *target) *policy.Env {
	if t.node == nil {
		return o.env
	}
	env := *o.env
	env.Node = t.node
	return &env
}

// describe looks at t for guards that ask about sizes and types. Where there are none it costs nothing.
func (o *op) describe(ctx context.Context, t *target) {
	if t.node != nil || !o.b.view.PerNode(t.at) {
		return
	}
	t.node = &policy.Node{Size: -1, Type: TypeByName(t.path.Base())}
	if o.s.size != nil {
		t.node.Size = *o.s.size
		return
	}
	m, err := o.m, error(nil) // under a publish lock nothing is opened
	if m == nil || t.ds != o.ds {
		m, err = t.ds.openFor(ctx, o.s)
	}
	if err != nil {
		return // the size stays unknown, which counts against the subject
	}
	if info, err := m.Stat(ctx, t.name); err == nil {
		t.node = describe(info)
	}
}

func describe(info mounts.Info) *policy.Node {
	return &policy.Node{Size: info.Size, Type: TypeByName(info.Name)}
}

// askTree decides about one action on t and everything below it.
func (o *op) askTree(ctx context.Context, m *mounted, act policy.Action, t *target) error {
	return o.askTrees(ctx, act, t, m, t.name)
}

// askTrees decides about one action on t and everything below it, where what is or comes to be there is the tree called name on m.
func (o *op) askTrees(ctx context.Context, act policy.Action, t *target, m *mounted, name string) error {
	d, blocked := o.b.view.DecideTree(act, t.at, o.about(t))
	if !d.Allowed {
		return o.refuse(t.path, blocked, d)
	}
	if !o.b.view.PerNode(t.at) {
		return nil
	}
	// Some policy looks at names, sizes or types: every node has a say.
	err := walk(ctx, m, name, func(sub string, info mounts.Info) error {
		env := *o.env
		env.Node = describe(info)
		at := t.ds.place(moved(sub, name, t.name))
		if d := o.b.view.Decide(act, at, &env); !d.Allowed {
			return o.refuse(t.path, at, policy.Decision{Known: true})
		}
		return nil
	})
	if fault.KindOf(err) == fault.NotExist && o.denied == (policy.Place{}) {
		return nil // there is nothing yet, or no longer
	}
	return err
}

func (o *op) refuse(p Path, at policy.Place, d policy.Decision) error {
	kind := fault.Denied
	if !d.Known {
		kind = fault.NotExist
	}
	o.denied = at
	return fault.New("gateway.begin", p.String(), kind, errRefused)
}

// also finds the second path of a move or copy and asks for act there.
func (o *op) also(ctx context.Context, p Path, acts ...policy.Action) (target, *mounted, error) {
	o.other = p
	t, err := o.b.resolve(p)
	if err != nil {
		return t, nil, err
	}
	if t.virtual() {
		return t, nil, fault.New("gateway.begin", p.String(), fault.Denied, errVirtual)
	}
	if o.b.view.PerNode(t.at) {
		// What comes to be there is what the source is.
		if info, err := o.m.Stat(ctx, o.name); err == nil {
			t.node = &policy.Node{Size: info.Size, Type: TypeByName(p.Base())}
		}
	}
	m, err := o.ready(ctx, &t, acts)
	return t, m, err
}

// again asks once more for one of acts on the operation's target: the body of an upload may have taken hours, in which rights, users,
// workspaces and the time of day have changed.
func (o *op) again(ctx context.Context, acts ...policy.Action) error {
	b, err := o.s.current(ctx)
	if err != nil {
		return err
	}
	if b != o.b {
		o.b = b
		t, err := b.resolve(o.path)
		if err != nil {
			return err
		}
		if t.ds == nil || t.ds.cfg.Name != o.ds.cfg.Name || t.name != o.asked {
			return fault.New("gateway.begin", o.path.String(), fault.NotExist, errMoved)
		}
	}
	o.env.Time = o.g.clock.Now()
	var first error
	for _, act := range acts {
		if _, err := o.ask(act, &o.target); err == nil {
			o.denied = policy.Place{}
			return nil
		} else if first == nil {
			first = err
		}
	}
	return first
}

// end finishes an operation that began. It turns *err into the fault the caller sees and records a refusal.
func (o *op) end(err *error) {
	o.leave()
	*err = o.fail(*err)
}

// fail gives err the operation's name and virtual path, and records it when it is a refusal.
func (o *op) fail(err error) error {
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	if o.denied == (policy.Place{}) && kind == fault.Denied {
		o.denied = o.at
	}
	if o.denied != (policy.Place{}) || kind == fault.Denied {
		o.g.stats.refused.Add(1)
		// One record a minute for the same place: who knocks all day long does not fill the log.
		if !o.s.core.refusals.again(o.denied, o.g.clock.Now()) {
			r := o.record(fault.Denied.String())
			r.Place = o.denied.String()
			o.g.audit.Note(r)
		}
	}
	return fault.New("gateway."+o.verb.String(), o.path.String(), kind, err)
}

// record is the audit record of the operation.
func (o *op) record(outcome string) audit.Record {
	r := audit.Record{
		Time: o.g.clock.Now(), Action: o.verb.String(), Place: o.at.String(), Path: o.path.String(), Outcome: outcome,
		Protocol: o.s.client.Protocol, RequestID: o.s.client.RequestID, Actor: userScope(o.actor()),
	}
	if o.s.client.Address.IsValid() {
		r.Addr = o.s.client.Address.String()
	}
	if o.other != (Path{}) {
		r.Detail = "to " + o.other.String()
	}
	return r
}

func (o *op) actor() string { return o.s.Subject().Login }

// commit writes change, the journal entries of what is still to be done, and the audit record in one transaction. Once it has begun it is
// not interrupted: the outcome must be known.
func (o *op) commit(ctx context.Context, change func(tx *store.Tx) error, entries ...*entry) (err error) {
	ctx = context.WithoutCancel(ctx)
	over, err := o.overtaken(entries)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			for _, e := range over {
				o.g.journal.forget(e.ID, true)
			}
		}
	}()
	r := o.record("ok")
	err = o.g.db.Update(ctx, func(tx *store.Tx) error {
		for _, e := range over {
			if err := o.g.journal.overtake(tx, e); err != nil {
				return err
			}
		}
		if err := change(tx); err != nil {
			return err
		}
		for _, e := range entries {
			tx.Collect(&o.g.journal, e)
		}
		tx.Collect(sweeper{&o.g.journal}, nil)
		o.g.audit.Append(tx, r)
		return nil
	})
	if err == nil || len(entries) == 0 || !passing(err) {
		return err
	}
	// The answer may be lost, not the transaction: the entry tells.
	switch there, qerr := o.g.journal.holds(ctx, entries[0].ID); {
	case qerr != nil:
		o.g.journal.suspect(entries...)
		return err
	case there:
		return nil
	}
	return err
}

// publish tells the bus what happened.
func (o *op) publish(kind event.Kind, at, from policy.Place, folder bool, size int64) {
	now := o.g.clock.Now()
	for _, p := range []policy.Place{at, from} {
		if ds := o.b.table.datasources[p.Datasource]; ds != nil {
			ds.outside.ours(p.Path, now)
		}
	}
	o.g.bus.Publish(event.Event{Kind: kind, Time: now, Actor: o.actor(), Protocol: o.s.client.Protocol, At: at, From: from, Folder: folder, Size: size})
}

// stat looks at the target on the backend. Symbolic links on the way are followed within the datasource, and with last also one that the
// target itself is; rights are then asked for where they lead.
func (o *op) stat(ctx context.Context, m *mounted, t *target, last bool, acts ...policy.Action) (mounts.Info, error) {
	info, err := m.Stat(ctx, t.name)
	if err == nil && (info.Type != mounts.Symlink || !last) || err != nil && fault.KindOf(err) != fault.NotDir {
		return info, err
	}
	name, rest := t.name, ""
	if err != nil {
		// A link on the way, not at the end.
		name = parentOf(t.name)
		rest = relative(t.name, name)
	}
	real, _, rerr := mounts.Resolve(ctx, m, name)
	if rerr != nil {
		if err != nil {
			return info, err
		}
		return info, rerr
	}
	if real = join(real, rest); real == t.name {
		return info, err
	}
	if reserved(real) {
		return mounts.Info{}, fault.New("gateway.stat", t.path.String(), fault.NotExist, nil)
	}
	t.name, t.at = real, t.ds.place(real)
	o.describe(ctx, t)
	var first error
	for _, act := range acts {
		if _, err := o.ask(act, t); err == nil {
			o.denied = policy.Place{}
			return m.Stat(ctx, t.name)
		} else if first == nil {
			first = err
		}
	}
	return mounts.Info{}, first
}
