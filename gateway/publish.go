package gateway

import (
	"context"
	"errors"
	"strings"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// publish makes the content that of the target.
func (u *Upload) publish(ctx context.Context) (_ Info, created bool, err error) {
	o := u.o
	if u.far != nil {
		return u.send(ctx)
	}
	// The staged bytes are made durable before the publish lock is taken: it is held for the short last steps only.
	if err := u.settle(ctx); err != nil {
		return Info{}, false, err
	}
	cur, exists, release, err := u.claim(ctx)
	if err != nil {
		return Info{}, false, err
	}
	defer release()
	if !exists {
		cur.Mode = u.opt.Mode
	}
	if err := o.keepMode(ctx, u.staged, cur); err != nil {
		return Info{}, false, err
	}
	info, err := u.file.Stat()
	if err != nil {
		return Info{}, false, err
	}
	e := o.entry(o.m, stepOf(u.staged, o.name, info))
	if err := u.replace(ctx, o.row(o.at, info, u.known()), e, cur, exists); err != nil {
		return Info{}, false, err
	}
	if err := o.perform(ctx, o.m, e); err != nil {
		return Info{}, false, err
	}
	o.replaced(exists, info.Size)
	// The stamps of the file have moved with the rename: the entity tag is that of now.
	if info, err = u.file.Stat(); err != nil {
		return Info{}, false, err
	}
	info.Name = o.path.Base()
	return u.info(info), !exists || !o.known, nil
}

// info describes the file that was published.
func (u *Upload) info(info mounts.Info) Info {
	i := u.o.info(u.o.path, info)
	if u.o.s.client.Sums {
		i.Sums = u.known()
	}
	return i
}

// claim takes the publish lock of the target and asks everything once more under it. Following a link may show that the target is elsewhere
// than it was: then it is that place's lock that counts.
func (u *Upload) claim(ctx context.Context) (cur mounts.Info, exists bool, release func(), err error) {
	o := u.o
	for range maxFollow {
		at := o.at.Path
		if release, err = o.ds.serial.claim(ctx, span{path: at}); err != nil {
			return cur, false, nil, err
		}
		if err = o.again(ctx, u.acts...); err == nil {
			cur, exists, err = u.judge(ctx)
		}
		if err == nil && o.at.Path == at {
			return cur, exists, release, nil
		}
		release()
		if err != nil {
			return cur, false, nil, err
		}
	}
	return cur, false, nil, fault.New("gateway.Upload", o.path.String(), fault.Busy, errLinks)
}

// maxFollow is how often the target of an upload may change by a link before it is given up.
const maxFollow = 8

var errLinks = errors.New("the links on the way keep changing")

// settle makes the staged bytes durable and gives them their time.
func (u *Upload) settle(ctx context.Context) error {
	o := u.o
	if !u.opt.ModTime.IsZero() {
		if t, ok := mounts.As[mounts.TimeSetter](o.m.Backend); ok {
			if err := t.SetModTime(ctx, u.staged, u.opt.ModTime); err != nil {
				return err
			}
		}
	}
	if o.ds.cfg.Durability == Synced {
		return fault.Wrap("gateway.Upload", o.path.String(), u.file.Sync())
	}
	return nil
}

// keepMode gives a staged file the permission bits of the one it replaces.
func (o *op) keepMode(ctx context.Context, staged string, cur mounts.Info) error {
	if cur.Mode == 0 {
		return nil
	}
	m, ok := mounts.As[mounts.ModeSetter](o.m.Backend)
	if !ok {
		return nil
	}
	if info, err := o.m.Stat(ctx, staged); err != nil || info.Mode == cur.Mode {
		return err
	}
	return m.SetMode(ctx, staged, cur.Mode)
}

// send publishes what goes across a network: the transaction first, and then the backend gets what was held back.
func (u *Upload) send(ctx context.Context) (_ Info, created bool, err error) {
	o := u.o
	cur, exists, release, err := u.claim(ctx)
	if err != nil {
		return Info{}, false, err
	}
	defer release()
	u.far.expect(u, cur, exists)
	size := u.size.Load()
	row := o.row(o.at, mounts.Info{Size: size, ModTime: u.opt.ModTime}, u.known())
	e := o.entry(o.m, step{Do: doPut, To: o.name, Stamp: stampOf(cur, exists)})
	if err := u.replace(ctx, row, e, cur, exists); err != nil {
		return Info{}, false, err
	}
	info, err := u.far.publish(context.WithoutCancel(ctx), size)
	if err = o.performed(ctx, o.m, e, err); err != nil {
		return Info{}, false, err
	}
	// The row shall say what the file is there, so that a change from outside is told from this one.
	info.Name = o.path.Base()
	renew := func(tx *store.Tx) error { return renewRow(tx, *row, info) }
	if !o.s.client.Sums {
		o.g.db.Later(renew)
	} else if err := o.g.db.Update(context.WithoutCancel(ctx), renew); err != nil { // until then they cannot be shown
		o.g.log.Warn("the checksums of a published file are lost", "path", o.path, "err", err)
	}
	o.replaced(exists, size)
	return u.info(info), !exists || !o.known, nil
}

// replace commits that the file of row becomes the target. What is still to be done is in e. The caller holds the publish lock.
func (u *Upload) replace(ctx context.Context, row *node, e *entry, cur mounts.Info, exists bool) error {
	o := u.o
	return o.commit(ctx, func(tx *store.Tx) error {
		e.Undo = inverse{Gone: &o.at}
		was, had := node{}, false
		if exists {
			var err error
			if was, had, err = loadNode(tx.QueryRow, o.at); err != nil {
				return err
			}
		}
		usage := u.quota.usage(row.Size, cur.Size, was, had)
		if had {
			if cur.Tag == "" && cur.Change == 0 {
				was.Sums = "" // should this come back, nothing tells for sure that the content is still that
			}
			e.Undo = inverse{Was: &was}
		}
		o.g.count(tx, usage, 1)
		e.Undo.Usage = negated(usage)
		if u.within != nil {
			if err := u.within(tx); err != nil {
				return err
			}
		}
		if len(u.opt.Props) == 0 {
			tx.Collect(nodes{o.g}, row)
			return nil
		}
		if err := (nodes{o.g}).Flush(tx, []any{row}); err != nil {
			return err
		}
		return o.patch(tx, mounts.Info{}, u.opt.Props)
	}, e)
}

// known is what will be known of the content besides its size and time.
func (u *Upload) known() string {
	return strings.TrimSpace(u.sums.String() + " " + u.opt.Note)
}

// replaced tells of a file that was published.
func (o *op) replaced(existed bool, size int64) {
	o.g.stats.published.Add(1)
	kind := event.Created
	if existed {
		kind = event.Modified
	}
	o.publish(kind, o.at, policy.Place{}, false, size)
}
