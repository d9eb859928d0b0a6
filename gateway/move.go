package gateway

import (
	"context"
	"errors"
	"maps"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// MoveOptions are the wishes that travel with a move or copy.
type MoveOptions struct {
	Overwrite bool // replace what is at the target; without it a taken name is Exist
	Cond      Cond // of the source
	DestCond  Cond // of the target
	Shallow   bool // copy a folder without what is in it (RFC 4918 §9.8.3: Depth 0)
	// Progress is told how many files and bytes of a tree are done, from time to time. It must be quick. Nil is fine.
	Progress func(files, bytes int64)
}

var (
	errInto   = errors.New("source and target lie within each other")
	errUnsure = errors.New("the copy may not be durable, so the source stays")
)

// Rename moves from to to, a file or a folder with all that is in it, within a datasource or to another one, and reports whether the name to
// was new. It needs what a removal needs on the source and a creation on the target, for the whole tree, asked before anything changes.
// Grants follow the node; locks do not (RFC 4918 §7.6). Source and target within each other are Invalid.
func (s *Session) Rename(ctx context.Context, from, to Path, opt MoveOptions) (created bool, err error) {
	o, err := s.begin(ctx, verbMove, from, policy.Delete)
	if err != nil {
		return false, err
	}
	defer o.end(&err)
	t, err := o.transfer(ctx, to)
	if err != nil {
		return false, err
	}
	if o.isRoot() {
		return false, fault.New("gateway.move", from.String(), fault.Denied, errRoot)
	}
	if err := o.removable(ctx, &o.target, true); err != nil {
		return false, err
	}
	if err := t.check(ctx, opt); err != nil {
		return false, err
	}
	if t.dest.ds == o.ds {
		return t.rename(ctx, opt)
	}
	return t.carry(ctx, opt)
}

// transfer is a move or copy on its way to its target.
type transfer struct {
	*op
	dest target
	m    *mounted // of the target

	info   mounts.Info // the source
	cur    mounts.Info // what is at the target
	exists bool
	quota  *hold
}

// transfer finds the target of a move or copy and refuses what cannot be.
func (o *op) transfer(ctx context.Context, to Path) (*transfer, error) {
	if o.virtual() {
		return nil, fault.New("gateway", o.path.String(), fault.Denied, errVirtual)
	}
	dest, m, err := o.also(ctx, to, policy.Create)
	if err != nil {
		return nil, err
	}
	t := &transfer{op: o, dest: dest, m: m}
	if t.info, err = o.stat(ctx, o.m, &o.target, false, policy.List, policy.Delete); err != nil {
		return nil, err
	}
	if err := listable(t.info); err != nil && t.info.Type != mounts.Symlink {
		return nil, err
	}
	if _, err := o.stat(ctx, m, &t.dest, false, policy.Create); err != nil && (fault.KindOf(err) != fault.NotExist || o.denied != (policy.Place{})) {
		return nil, err
	}
	if t.dest.ds == o.ds && (within(o.at.Path, t.dest.at.Path) || within(t.dest.at.Path, o.at.Path)) {
		return nil, fault.New("gateway", to.String(), fault.Invalid, errInto)
	}
	if t.dest.isRoot() {
		return nil, fault.New("gateway", to.String(), fault.Denied, errRoot)
	}
	return t, nil
}

// check looks at source and target as they are now and asks for rights, preconditions and locks at the target, of the whole trees.
func (t *transfer) check(ctx context.Context, opt MoveOptions) (err error) {
	if t.info, err = t.op.m.Stat(ctx, t.name); err != nil {
		return err
	}
	if err := opt.Cond.hold(t.op.info(t.path, t.info), true, !t.known); err != nil {
		return err
	}
	t.cur, err = t.m.Stat(ctx, t.dest.name)
	if t.exists = err == nil; err != nil && fault.KindOf(err) != fault.NotExist {
		return err
	}
	if err := t.askTrees(ctx, policy.Create, &t.dest, t.op.m, t.name); err != nil {
		return err
	}
	blind := !t.b.view.Decide(policy.List, t.dest.at, t.env).Allowed
	there := t.op.info(t.dest.path, t.cur)
	there.Path = t.dest.path
	if err := opt.DestCond.hold(there, t.exists, blind); err != nil {
		return err
	}
	if !t.exists {
		if err := t.parentOf(ctx, t.m, &t.dest); err != nil {
			return err
		}
	} else {
		if !opt.Overwrite {
			return fault.New("gateway", t.dest.path.String(), fault.Exist, nil)
		}
		if err := t.askTree(ctx, t.m, policy.Delete, &t.dest); err != nil {
			return err
		}
	}
	return t.unlocked(&t.dest, lockScope{member: true, tree: t.exists})
}

// claim takes the publish locks of the trees at both ends, those of two datasources in the order of their names.
func (t *transfer) claim(ctx context.Context) (release func(), err error) {
	dest := span{path: t.dest.name, tree: true}
	source := span{path: t.name, tree: true}
	if t.dest.ds == t.ds {
		return t.ds.serial.claim(ctx, source, dest)
	}
	first, second := t.ds.serial, t.dest.ds.serial
	if t.dest.ds.cfg.Name < t.ds.cfg.Name {
		first, second, source, dest = second, first, dest, source
	}
	one, err := first.claim(ctx, source)
	if err != nil {
		return nil, err
	}
	two, err := second.claim(ctx, dest)
	if err != nil {
		one()
		return nil, err
	}
	return func() { two(); one() }, nil
}

// recheck repeats under the publish lock what was asked before.
func (t *transfer) recheck(ctx context.Context, opt MoveOptions, acts ...policy.Action) error {
	if err := t.again(ctx, acts...); err != nil {
		return err
	}
	return t.check(ctx, opt)
}

// aside is the place that what is at the target is put out of the way to, and the step that does it where one rename cannot replace it:
// anything but a file by a file. Its rows go there in any case, so that they can come back.
func (t *transfer) aside(folder bool) (steps []step, old policy.Place) {
	old = policy.Place{Datasource: t.dest.ds.cfg.Name, Path: newName(areaOld)}
	if t.exists && (folder || t.cur.Type != mounts.File) {
		steps = []step{stepOf(t.dest.name, old.Path, t.cur)}
	}
	return steps, old
}

// rename moves within one datasource: one or two renames, whatever the size.
func (t *transfer) rename(ctx context.Context, opt MoveOptions) (created bool, err error) {
	release, err := t.claim(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if err := t.recheck(ctx, opt, policy.Delete); err != nil {
		return false, err
	}
	if err := t.removable(ctx, &t.target, true); err != nil {
		return false, err
	}
	usage, err := t.usage(ctx, true)
	if err != nil {
		return false, err
	}
	defer func() { t.quota.release() }()
	steps, old := t.aside(t.info.IsDir())
	e := t.entry(t.ds, append(steps, stepOf(t.name, t.dest.name, t.info))...)
	change, undo := t.rows(usage, old)
	err = t.commit(ctx, func(tx *store.Tx) error {
		tx.Collect(&t.g.journal, e)
		return change(tx)
	})
	if err != nil {
		return false, err
	}
	if err := t.perform(ctx, t.m, e, undo); err != nil {
		return false, err
	}
	t.done(event.Moved, old)
	return !t.exists, nil
}

// rows returns what a move changes in the store, and how to take it back.
func (t *transfer) rows(usage map[string]int64, old policy.Place) (change, undo func(tx *store.Tx) error) {
	var replaced map[string]int64
	change = func(tx *store.Tx) (err error) {
		if replaced, err = t.displace(tx, old); err != nil {
			return err
		}
		t.g.count(tx, usage, 1)
		if err := t.g.locks.forget(tx, t.at); err != nil {
			return err
		}
		if err := moveNodes(tx, t.at, t.dest.at); err != nil {
			return err
		}
		return t.g.engine.MoveGrants(tx, t.at, t.dest.at)
	}
	undo = func(tx *store.Tx) error {
		t.g.count(tx, usage, -1)
		if err := moveNodes(tx, t.dest.at, t.at); err != nil {
			return err
		}
		if err := t.g.engine.MoveGrants(tx, t.dest.at, t.at); err != nil {
			return err
		}
		return t.restore(tx, old, replaced)
	}
	return change, undo
}

// displace takes the rows of what is at the target out of the way and its bytes off its owners' quotas.
func (t *transfer) displace(tx *store.Tx, old policy.Place) (replaced map[string]int64, err error) {
	if replaced, err = usageBelow(tx, t.dest.at); err != nil {
		return nil, err
	}
	t.g.count(tx, owners(replaced), -1)
	if err := t.g.locks.forget(tx, t.dest.at); err != nil {
		return nil, err
	}
	return replaced, moveNodes(tx, t.dest.at, old)
}

// restore is displace taken back.
func (t *transfer) restore(tx *store.Tx, old policy.Place, replaced map[string]int64) error {
	t.g.count(tx, owners(replaced), 1)
	return moveNodes(tx, old, t.dest.at)
}

// usage returns what the move adds to the quotas of workspaces, and sets it aside. Sizes are looked up only when somebody counts them.
// With leaving, what goes from the source's workspaces is subtracted.
func (t *transfer) usage(ctx context.Context, leaving bool) (map[string]int64, error) {
	usage := make(map[string]int64)
	into := t.b.places(t.dest.ds.cfg.Name, t.dest.name)
	var from []string
	if leaving {
		from = t.b.places(t.ds.cfg.Name, t.name)
	}
	t.quota = &hold{o: t.op, scopes: into}
	if len(into) == 0 && len(from) == 0 {
		return usage, nil
	}
	size, err := treeSize(ctx, t.op.m, t.name)
	if err != nil {
		return nil, err
	}
	for _, s := range into {
		usage[s] += size
	}
	for _, s := range from {
		usage[s] -= size
	}
	replaced := int64(0)
	if t.exists {
		if replaced, err = treeSize(ctx, t.m, t.dest.name); err != nil {
			return nil, err
		}
	}
	var growing []string
	for scope := range usage {
		if usage[scope] > 0 {
			growing = append(growing, scope)
		}
	}
	for _, s := range into {
		usage[s] -= replaced
	}
	maps.DeleteFunc(usage, func(_ string, delta int64) bool { return delta == 0 })
	if size > replaced && len(growing) > 0 {
		t.quota.book, err = t.g.quota.Reserve(ctx, growing, size-replaced)
	}
	return usage, err
}

// done tells of a transfer that has happened and deletes what it replaced.
func (t *transfer) done(kind event.Kind, old policy.Place) {
	t.publish(kind, t.dest.at, t.at, t.info.IsDir(), t.info.Size)
	if t.exists {
		t.g.purge(t.m, old, t.cur.IsDir())
	}
}

// carry moves between datasources: copies, verifies, publishes the copy and only then takes the source away. The publish lock of the source
// is held from before the copy on, so that nothing written meanwhile is lost.
func (t *transfer) carry(ctx context.Context, opt MoveOptions) (created bool, err error) {
	release, err := t.claim(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if err := t.recheck(ctx, opt, policy.Delete); err != nil {
		return false, err
	}
	if err := t.removable(ctx, &t.target, true); err != nil {
		return false, err
	}
	usage, err := t.usage(ctx, true)
	if err != nil {
		return false, err
	}
	defer func() { t.quota.release() }()
	staged, info, err := t.copyTree(ctx, opt, false)
	if err != nil {
		return false, err
	}
	steps, old := t.aside(t.info.IsDir())
	land := t.entry(t.dest.ds, append(steps, stepOf(staged, t.dest.name, info))...)
	left := policy.Place{Datasource: t.ds.cfg.Name, Path: newName(areaOld)}
	leave := t.entry(t.ds, stepOf(t.name, left.Path, t.info))
	leave.After = land.ID
	change, undo := t.rows(usage, old)
	err = t.commit(ctx, func(tx *store.Tx) error {
		tx.Collect(&t.g.journal, land)
		tx.Collect(&t.g.journal, leave)
		return change(tx)
	})
	if err == nil {
		if err = t.both(ctx, land, leave); errors.Is(err, errLanded) {
			return false, err // what is left to do is in the journal
		}
		if err != nil {
			t.takeBack(ctx, err, undo, land.ID, leave.ID)
		}
	}
	if err != nil {
		t.g.purge(t.m, t.dest.ds.place(staged), true)
		return false, err
	}
	t.g.journal.finish(land.ID)
	t.g.journal.finish(leave.ID)
	t.g.purge(t.op.m, left, t.info.IsDir())
	t.done(event.Moved, old)
	return !t.exists, nil
}

// both does the steps at the two ends of a move between datasources, all or none; errLanded says that all are done.
func (t *transfer) both(ctx context.Context, land, leave *entry) error {
	err := t.forth(ctx, t.m, land)
	if errors.Is(err, errLanded) {
		// The copy may not last: the source must not go.
		t.back(ctx, t.m, land.Steps)
		return fault.New("gateway.move", t.dest.path.String(), fault.KindOf(err), errUnsure)
	}
	if err != nil {
		return err
	}
	if err = t.forth(ctx, t.op.m, leave); err != nil && !errors.Is(err, errLanded) {
		t.back(ctx, t.m, land.Steps)
	}
	return err
}
