package gateway

import (
	"context"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
	"cellgate/policy"
	"cellgate/store"
)

// Mkdir makes the folder p. Its parent must exist; a name that is taken is Exist.
func (s *Session) Mkdir(ctx context.Context, p Path) (err error) {
	o, err := s.begin(ctx, verbMkdir, p, policy.Create)
	if err != nil {
		return err
	}
	defer o.end(&err)
	if o.isRoot() {
		return fault.New("gateway.mkdir", p.String(), fault.Exist, nil)
	}
	if _, err := o.stat(ctx, o.m, &o.target, false, policy.Create); err != nil && fault.KindOf(err) != fault.NotExist {
		return err
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path})
	if err != nil {
		return err
	}
	defer release()
	if err := o.again(ctx, policy.Create); err != nil {
		return err
	}
	if err := o.unlocked(&o.target, lockScope{member: true}); err != nil {
		return err
	}
	if _, err := o.m.Stat(ctx, o.name); err == nil {
		return fault.New("gateway.mkdir", p.String(), fault.Exist, nil)
	}
	if err := o.parentOf(ctx, o.m, &o.target); err != nil {
		return err
	}
	return o.mkdir(ctx)
}

// mkdir makes the folder in the gateway's area first, so that what is left to do after the transaction is one rename, as for files. The
// caller holds the publish lock.
//
// Across a network it is made where it shall be at once: one round trip, and nothing that could be seen half.
func (o *op) mkdir(ctx context.Context) error {
	if o.m.features.Remote {
		return o.makeFolder(ctx, mounts.Info{Type: mounts.Dir}, step{Do: doMkdir, To: o.name})
	}
	staged := o.g.newName(o.m, o.name, staging)
	defer o.g.live.drop(o.m, staged)
	if err := o.m.Mkdir(ctx, staged); err != nil {
		return err
	}
	info, err := o.m.Stat(ctx, staged)
	if err != nil {
		return err
	}
	if err = o.makeFolder(ctx, info, stepOf(staged, o.name, info)); err != nil {
		if rerr := o.m.Remove(context.WithoutCancel(ctx), staged); rerr != nil && fault.KindOf(rerr) != fault.NotExist {
			o.g.log.Warn("a staged folder is left behind until the next start", "name", staged, "err", rerr)
		}
	}
	return err
}

// makeFolder commits that the target is a folder and takes the step that makes it so.
func (o *op) makeFolder(ctx context.Context, info mounts.Info, s step) error {
	row := o.row(o.at, info, "")
	row.Size = 0
	e := o.entry(o.m, s)
	e.Undo = inverse{Gone: &o.at}
	err := o.commit(ctx, func(tx *store.Tx) error {
		if err := deleteNodes(tx, o.at.Datasource, o.at.Path); err != nil { // of something that vanished from outside
			return err
		}
		tx.Collect(nodes{o.g}, row)
		return nil
	}, e)
	if err == nil {
		err = o.perform(ctx, o.m, e)
	}
	if err == nil {
		o.publish(event.Created, o.at, policy.Place{}, true, 0)
	}
	return err
}

// RemoveOptions are the wishes that travel with a removal.
type RemoveOptions struct {
	Cond Cond
	// Recursive removes a folder with everything below it. The whole tree is asked for rights and locks first; it disappears in one step
	// where the backend renames folders in one.
	Recursive bool
}

// Remove deletes p: a file, an empty folder, or with Recursive a whole tree. A folder with children the subject may not see is NotEmpty,
// or refused as a tree.
func (s *Session) Remove(ctx context.Context, p Path, opt RemoveOptions) (err error) {
	o, err := s.begin(ctx, verbRemove, p, policy.Delete)
	if err != nil {
		return err
	}
	defer o.end(&err)
	if _, err := o.stat(cache.Untimed(ctx), o.m, &o.target, false, policy.Delete); err != nil {
		return err
	}
	if o.b.holdsRoot(o.at) {
		return fault.New("gateway.remove", p.String(), fault.Denied, errRoot)
	}
	if err := o.removable(ctx, &o.target, opt.Recursive); err != nil {
		return err
	}
	release, err := o.ds.serial.claim(ctx, span{path: o.at.Path, tree: true})
	if err != nil {
		return err
	}
	defer release()
	if err := o.again(ctx, policy.Delete); err != nil {
		return err
	}
	if err := o.removable(ctx, &o.target, opt.Recursive); err != nil {
		return err
	}
	info, err := o.m.Stat(noted(ctx, opt.Cond), o.name)
	if err != nil {
		return err
	}
	if err := opt.Cond.hold(o.info(p, info), true, !o.known); err != nil {
		return err
	}
	if info.IsDir() && !opt.Recursive {
		if err := o.empty(ctx); err != nil {
			return err
		}
	}
	return o.remove(ctx, info, opt.Recursive)
}

// removable asks for the rights and locks of a removal: of the node, and of everything below it.
func (o *op) removable(ctx context.Context, t *target, tree bool) error {
	if err := o.askTree(ctx, o.m, policy.Delete, t); err != nil {
		return err
	}
	return o.unlocked(t, lockScope{member: true, tree: tree})
}

// empty reports NotEmpty when the target folder has children.
func (o *op) empty(ctx context.Context) error {
	for child, err := range o.m.List(ctx, o.name) {
		if err != nil {
			return err
		}
		if !mounts.Reserved(child.Name) {
			return fault.New("gateway.remove", o.path.String(), fault.NotEmpty, nil)
		}
	}
	return nil
}

// remove takes the target out of the tree in one rename and deletes it afterwards, in the background when it is a folder. Across a network it
// deletes at once what is one step there, and whole trees where no rename is one. The caller holds the publish lock of the tree.
func (o *op) remove(ctx context.Context, info mounts.Info, tree bool) error {
	gone, err := o.freed(ctx, o.m, &o.target, info)
	if err != nil {
		return err
	}
	aside := o.g.newName(o.m, o.name, discarded)
	old := policy.Place{Datasource: o.ds.cfg.Name, Path: aside}
	s := stepOf(o.name, aside, info)
	if o.m.features.Remote {
		switch {
		case !info.IsDir() || !tree:
			s.Do, s.To = doRemove, ""
		case !o.m.aside():
			s.Do, s.To = doPurge, ""
		}
	}
	e := o.entry(o.m, s)
	var row int64
	err = o.commit(ctx, func(tx *store.Tx) (err error) {
		if !info.IsDir() {
			row, err = o.removeRow(tx, e, old, gone)
			return err
		}
		rows, err := usageBelow(tx, o.at)
		if err != nil {
			return err
		}
		usage := sum(gone, owners(rows))
		o.g.count(tx, usage, -1)
		e.Undo = inverse{Moves: []shift{{old, o.at}}, Usage: usage}
		return moveNodes(tx, o.at, old)
	}, e)
	if err == nil {
		if err = o.perform(ctx, o.m, e); err == nil && info.IsDir() && !tree && s.Do == doRename {
			err = o.onlyEmpty(ctx, e, aside)
		}
	}
	if err != nil {
		o.g.live.drop(o.m, aside)
		return err
	}
	o.g.locks.lift(o.at)
	o.publish(event.Deleted, o.at, policy.Place{}, info.IsDir(), info.Size)
	o.g.journal.discardRow(row)
	if s.Do == doRename {
		o.g.purge(o.m, old, info.IsDir())
		return nil
	}
	o.g.live.drop(o.m, aside)
	if info.IsDir() {
		o.g.journal.discard(old)
	}
	return nil
}

// removeRow puts the row of a file aside, as remove does for a tree, with fewer statements. It returns the row's id, 0 when there is none.
func (o *op) removeRow(tx *store.Tx, e *entry, old policy.Place, gone map[string]int64) (id int64, err error) {
	was, had, err := loadNode(tx.QueryRow, o.at)
	if err != nil {
		return 0, err
	}
	usage := gone
	if had && !was.Folder {
		usage = sum(gone, owners(map[string]int64{was.Owner: was.Size}))
	}
	o.g.count(tx, usage, -1)
	e.Undo = inverse{Usage: usage}
	switch {
	case !had:
		return 0, nil
	case was.Folder:
		// Outside, a file took the place of a folder: rows of what was in that may be left.
		return 0, deleteNodes(tx, o.at.Datasource, o.at.Path)
	}
	e.Undo.Moves = []shift{{old, o.at}}
	_, err = tx.Exec(`UPDATE nodes SET depth = $1, path = $2 WHERE id = $3`, depthOf(old.Path), old.Path, was.ID)
	return was.ID, err
}

// onlyEmpty deletes the folder that was put aside. When it holds something after all, be it what no listing shows, it goes back.
func (o *op) onlyEmpty(ctx context.Context, e *entry, aside string) error {
	err := o.m.Remove(ctx, aside)
	if err == nil || fault.KindOf(err) != fault.NotEmpty {
		return nil
	}
	o.back(ctx, o.m, e.Steps)
	o.takeBack(ctx, err, e)
	return err
}

// freed returns what the workspaces with a quota get back when t goes: its files' sizes, looked up only if somebody counts.
func (o *op) freed(ctx context.Context, m *mounted, t *target, info mounts.Info) (map[string]int64, error) {
	scopes := o.b.places(t.ds.cfg.Name, t.name)
	if len(scopes) == 0 {
		return nil, nil
	}
	size := info.Size
	if info.IsDir() {
		var err error
		if size, err = treeSize(ctx, m, t.name); err != nil {
			return nil, err
		}
	}
	gone := make(map[string]int64, len(scopes))
	for _, s := range scopes {
		gone[s] = size
	}
	return gone, nil
}

// owners makes scopes of logins; what is nobody's counts nowhere.
func owners(rows map[string]int64) map[string]int64 {
	scopes := make(map[string]int64, len(rows))
	for login, bytes := range rows {
		if login != "" {
			scopes[userScope(login)] = bytes
		}
	}
	return scopes
}
