package gateway

import (
	"context"
	"fmt"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// Copy copies from to to, a file or a folder with all that is in it (or without, with Shallow), and reports whether the name to was new. It
// needs the right to read everything under the source and to create the target. The copy appears in one step when it is whole; dead
// properties go with it, locks and grants do not (RFC 4918 §9.8).
func (s *Session) Copy(ctx context.Context, from, to Path, opt MoveOptions) (created bool, err error) {
	o, err := s.begin(ctx, verbCopy, from, policy.Download)
	if err != nil {
		return false, err
	}
	defer o.end(&err)
	t, err := o.transfer(ctx, to)
	if err != nil {
		return false, err
	}
	if t.info.Type == mounts.Symlink {
		if t.info, err = o.stat(ctx, o.m, &o.target, true, policy.Download); err != nil {
			return false, err
		}
	}
	if err := o.askTree(ctx, o.m, policy.Download, &o.target); err != nil {
		return false, err
	}
	if err := t.check(ctx, opt); err != nil {
		return false, err
	}
	return t.copy(ctx, opt)
}

func (t *transfer) copy(ctx context.Context, opt MoveOptions) (created bool, err error) {
	if t.quota, err = t.reserve(ctx, &t.dest, 0, 0); err != nil {
		return false, err
	}
	defer t.quota.release()
	staged, info, err := t.copyTree(ctx, opt, true)
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil {
			t.g.purge(t.m, t.dest.ds.place(staged), true)
		}
	}()
	release, err := t.dest.ds.serial.claim(ctx, span{path: t.dest.name, tree: true})
	if err != nil {
		return false, err
	}
	defer release()
	if err := t.recheck(ctx, opt, policy.Download); err != nil {
		return false, err
	}
	gone, err := t.freed(ctx, t.m, &t.dest, t.cur)
	if err != nil {
		return false, err
	}
	steps, old := t.aside(t.info.IsDir())
	e := t.entry(t.dest.ds, append(steps, stepOf(staged, t.dest.name, info))...)
	stagedAt := t.dest.ds.place(staged)
	var replaced map[string]int64
	size := t.quota.size
	deltas := make(map[string]int64)
	for _, s := range t.quota.scopes {
		deltas[s] = size - gone[s]
	}
	err = t.commit(ctx, func(tx *store.Tx) (err error) {
		if replaced, err = t.displace(tx, old); err != nil {
			return err
		}
		t.g.count(tx, deltas, 1)
		tx.Collect(&t.g.journal, e)
		return moveNodes(tx, stagedAt, t.dest.at)
	})
	if err != nil {
		return false, err
	}
	err = t.perform(ctx, t.m, e, func(tx *store.Tx) error {
		t.g.count(tx, deltas, -1)
		if err := deleteNodes(tx, t.dest.at.Datasource, t.dest.at.Path); err != nil {
			return err
		}
		return t.restore(tx, old, replaced)
	})
	if err != nil {
		return false, err
	}
	t.done(event.Copied, old)
	return !t.exists, nil
}

// copyRows is how many node rows of a copy are written at a time.
const copyRows = 256

// copier copies one tree into the area of the target's datasource.
type copier struct {
	*transfer
	rows         bool // write node rows of the copy under its staged name
	pending      []copied
	files, bytes int64
	progress     func(files, bytes int64)
}

// copied is a node that was copied and whose row is not yet written.
type copied struct {
	from, to policy.Place
	info     mounts.Info
}

// copyTree copies the source to a new staged name beside the target and returns that. Every file is verified to be as long as its source
// said. With rows, node rows and properties are written for the copy under its staged name, a bounded number at a time. On failure nothing
// is left.
func (t *transfer) copyTree(ctx context.Context, opt MoveOptions, rows bool) (staged string, info mounts.Info, err error) {
	c := &copier{transfer: t, rows: rows, progress: opt.Progress}
	staged = newName(areaTmp)
	defer func() {
		if err != nil {
			t.g.purge(t.m, t.dest.ds.place(staged), true)
		}
	}()
	if opt.Shallow && t.info.IsDir() {
		err = c.node(ctx, t.name, staged, t.info)
	} else {
		err = walkInfo(ctx, t.op.m, t.name, t.info, func(name string, info mounts.Info) error {
			return c.node(ctx, name, moved(name, t.name, staged), info)
		})
	}
	if err == nil {
		err = c.flush(ctx)
	}
	if err == nil {
		info, err = t.m.Stat(ctx, staged)
	}
	return staged, info, err
}

// node copies one file, folder or link.
func (c *copier) node(ctx context.Context, from, to string, info mounts.Info) error {
	var copy mounts.Info
	var err error
	switch info.Type {
	case mounts.Dir:
		if err = c.m.Mkdir(ctx, to); err == nil {
			copy = mounts.Info{Type: mounts.Dir, ModTime: info.ModTime}
		}
	case mounts.File:
		if err := c.quota.grow(c.bytes + info.Size); err != nil {
			return err
		}
		if c.dest.ds == c.ds {
			copy, err = mounts.Copy(ctx, c.m.Backend, from, to)
		} else {
			copy, err = mounts.CopyBetween(ctx, c.op.m.Backend, from, c.m.Backend, to)
		}
		if err == nil && copy.Size != info.Size {
			err = fault.New("gateway.copy", c.path.String(), fault.Busy, fmt.Errorf("the source changed while it was copied: %d bytes, then %d", info.Size, copy.Size))
		}
		c.bytes += copy.Size
		c.files++
		if c.progress != nil {
			c.progress(c.files, c.bytes)
		}
	case mounts.Symlink:
		link, ok := mounts.As[mounts.Symlinker](c.m.Backend)
		if !ok {
			return nil
		}
		err = link.Symlink(ctx, info.Target, to)
		return err
	default:
		return nil // devices, sockets and pipes have no content to copy
	}
	if err != nil || !c.rows {
		return err
	}
	c.pending = append(c.pending, copied{c.ds.place(from), c.dest.ds.place(to), copy})
	if len(c.pending) < copyRows {
		return nil
	}
	return c.flush(ctx)
}

// flush writes the rows that are due.
func (c *copier) flush(ctx context.Context) error {
	if len(c.pending) == 0 {
		return nil
	}
	err := c.g.db.Update(ctx, func(tx *store.Tx) error {
		for _, n := range c.pending {
			was, had, err := loadNode(tx.QueryRow, n.from)
			if err != nil {
				return err
			}
			row := c.row(n.to, n.info, was.sums)
			if err := (nodes{c.g}).Flush(tx, []any{row}); err != nil {
				return err
			}
			if had {
				if _, err := tx.Exec(`INSERT INTO props (node, space, name, value) SELECT $1, space, name, value FROM props WHERE node = $2`, row.id, was.id); err != nil {
					return err
				}
			}
		}
		return nil
	})
	c.pending = c.pending[:0]
	return err
}
