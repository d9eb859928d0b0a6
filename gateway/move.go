package gateway

import (
	"context"
	"errors"

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
	errInto    = errors.New("source and target lie within each other")
	errUnsure  = errors.New("the copy may not be durable, so the source stays")
	errChanged = errors.New("the source was changed from outside while it was copied")
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
	if o.b.holdsRoot(o.at) {
		return false, fault.New("gateway.move", from.String(), fault.Denied, errRoot)
	}
	if err := o.removable(ctx, &o.target, true); err != nil {
		return false, err
	}
	if err := t.check(ctx, opt); err != nil {
		return false, err
	}
	release, err := t.claim(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if err := t.again(ctx, policy.Delete); err != nil {
		return false, err
	}
	if err := o.removable(ctx, &o.target, true); err != nil {
		return false, err
	}
	if err := t.check(ctx, opt); err != nil {
		return false, err
	}
	if t.delta, err = t.usage(ctx); err != nil {
		return false, err
	}
	defer t.quota.release()
	// One rename does within a file system; between two the content has to go over.
	if t.dest.ds == o.ds && mounts.AreaOf(t.m.Backend, t.name) == mounts.AreaOf(t.m.Backend, t.dest.name) {
		err = t.rename(ctx)
	} else {
		err = t.carry(ctx, opt)
	}
	return !t.exists || !t.seen, err
}

// transfer is a move or copy on its way to its target.
type transfer struct {
	*op
	dest target
	m    *mounted // of the target

	info   mounts.Info // the source
	cur    mounts.Info // what is at the target
	exists bool
	seen   bool // the subject may know whether something is at the target
	quota  *hold
	delta  map[string]int64 // what the transfer adds to the quotas of workspaces
	left   map[string]int64 // what of that is the source's, that goes
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
	if o.b.holdsRoot(t.dest.at) {
		return nil, fault.New("gateway", to.String(), fault.Denied, errRoot)
	}
	return t, nil
}

// check looks at source and target as they are now and asks for rights, preconditions and locks at the target, of the whole trees.
func (t *transfer) check(ctx context.Context, opt MoveOptions) (err error) {
	ctx = fresh(ctx)
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
	t.seen = t.b.view.Decide(policy.List, t.dest.at, t.env).Allowed
	there := t.op.info(t.dest.path, t.cur)
	there.Path = t.dest.path
	if err := opt.DestCond.hold(there, t.exists, !t.seen); err != nil {
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
	dest := span{path: t.dest.at.Path, tree: true}
	source := span{path: t.at.Path, tree: true}
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

// aside is the place that what is at the target is put out of the way to, and the step that does it where one rename cannot replace it:
// anything but a file by a file. Its rows go there in any case, so that they can come back.
func (t *transfer) aside() (steps []step, old policy.Place) {
	old = policy.Place{Datasource: t.dest.ds.cfg.Name, Path: t.g.newName(t.m, t.dest.name, discarded)}
	if t.exists && (t.info.IsDir() || t.cur.Type != mounts.File) {
		steps = []step{stepOf(t.dest.name, old.Path, t.cur)}
	}
	return steps, old
}

// rename moves within one file system: one or two renames, whatever the size. The caller holds the publish locks.
func (t *transfer) rename(ctx context.Context) error {
	steps, old := t.aside()
	e := t.entry(t.m, append(steps, stepOf(t.name, t.dest.name, t.info))...)
	err := t.commit(ctx, func(tx *store.Tx) error { return t.moveRows(tx, e, old) }, e)
	if err == nil {
		err = t.perform(ctx, t.m, e)
	}
	if err != nil {
		t.g.live.drop(t.m, old.Path)
		return err
	}
	t.done(event.Moved, old)
	return nil
}

// moveRows changes the store as a move does, and notes in e how to take that back.
func (t *transfer) moveRows(tx *store.Tx, e *entry, old policy.Place) error {
	replaced, err := usageBelow(tx, t.dest.at)
	if err != nil {
		return err
	}
	usage := sum(t.delta, negated(owners(replaced)))
	t.g.count(tx, usage, 1)
	if err := moveNodes(tx, t.dest.at, old); err != nil {
		return err
	}
	if err := moveNodes(tx, t.at, t.dest.at); err != nil {
		return err
	}
	grants, err := t.g.engine.MoveGrants(tx, t.at, t.dest.at)
	e.Undo = inverse{Moves: []shift{{t.dest.at, t.at}, {old, t.dest.at}}, Usage: negated(usage), Grants: grants}
	return err
}

// usage returns what the move adds to the quotas of workspaces, less what leaves the source's, and sets it aside. Sizes are looked up only
// when somebody counts them.
func (t *transfer) usage(ctx context.Context) (map[string]int64, error) {
	usage := make(map[string]int64)
	if err := t.limitTemplates(ctx, &t.dest); err != nil {
		return nil, err
	}
	into, from := t.b.places(t.dest.ds.cfg.Name, t.dest.name), t.b.places(t.ds.cfg.Name, t.name)
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
	t.left = make(map[string]int64, len(from))
	for _, s := range from {
		usage[s] -= size
		t.left[s] = size
	}
	var growing []string
	for scope := range usage {
		if usage[scope] > 0 {
			growing = append(growing, scope)
		}
	}
	replaced := int64(0)
	if t.exists {
		if replaced, err = treeSize(ctx, t.m, t.dest.name); err != nil {
			return nil, err
		}
	}
	for _, s := range into {
		usage[s] -= replaced
	}
	if size > replaced && len(growing) > 0 {
		t.quota.book, err = t.g.quota.Reserve(ctx, growing, size-replaced)
	}
	return usage, err
}

// done tells of a transfer that has happened and deletes what it replaced.
func (t *transfer) done(kind event.Kind, old policy.Place) {
	t.g.locks.lift(t.dest.at)
	if kind == event.Moved {
		t.g.locks.lift(t.at)
	}
	t.publish(kind, t.dest.at, t.at, t.info.IsDir(), t.info.Size)
	if t.exists {
		t.g.purge(t.m, old, t.cur.IsDir())
	} else {
		t.g.live.drop(t.m, old.Path)
	}
}

// carry moves between file systems: copies everything, publishes the copy, and only then takes the source away, if it is still what was
// copied. The publish locks of both are held from before the copy on, so nothing is written meanwhile through the gateway.
func (t *transfer) carry(ctx context.Context, opt MoveOptions) error {
	c, err := t.copyTree(ctx, opt, false)
	if err != nil {
		return err
	}
	steps, old := t.aside()
	land := t.entry(t.m, append(steps, stepOf(c.staged, t.dest.name, c.info))...)
	left := t.g.newNameAs(t.op.m, t.name, discarded, carried)
	leave := t.entry(t.op.m, stepOf(t.name, left, t.info))
	leave.After, leave.Digest = land.ID, c.digest
	err = t.commit(ctx, func(tx *store.Tx) error {
		err := t.moveRows(tx, land, old)
		leave.Stay = inverse{Moves: land.Undo.Moves[:1], Usage: t.left, Grants: land.Undo.Grants}
		return err
	}, land, leave)
	if err == nil {
		if err = t.both(ctx, land, leave); errors.Is(err, errUnknown) {
			t.g.journal.postpone(land, leave)
			return err
		} else if err != nil {
			t.takeBack(ctx, err, land, leave)
		}
	}
	if err != nil {
		t.g.purge(t.m, t.dest.ds.place(c.staged), true)
		t.g.live.drop(t.m, old.Path)
		t.g.live.drop(t.op.m, left)
		return err
	}
	t.g.live.drop(t.m, c.staged)
	t.g.journal.finish(land, leave)
	t.g.background("purge "+left, func(ctx context.Context) error {
		defer t.g.live.drop(t.op.m, left)
		return t.g.purgeSource(ctx, t.op.m, left, t.name)
	})
	t.done(event.Moved, old)
	return nil
}

// both does the steps at the two ends of a move between file systems, all or none.
func (t *transfer) both(ctx context.Context, land, leave *entry) error {
	err := t.forth(ctx, t.m, land)
	if err == nil {
		var now uint64
		if now, err = treeDigest(ctx, t.op.m, t.name); err == nil && now != leave.Digest {
			err = fault.New("gateway.move", t.path.String(), fault.Busy, errChanged)
		}
		if err == nil {
			if err = t.forth(ctx, t.op.m, leave); errors.Is(err, errLanded) {
				return nil // the source is gone; that it may come back after a power cut loses nothing
			}
		}
		if err != nil && !errors.Is(err, errUnknown) {
			t.back(ctx, t.m, land.Steps)
		}
		return err
	}
	if errors.Is(err, errLanded) {
		// The copy may not last: the source must not go.
		t.back(ctx, t.m, land.Steps)
		return fault.New("gateway.move", t.dest.path.String(), fault.KindOf(err), errUnsure)
	}
	return err
}
