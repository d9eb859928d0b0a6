package gateway

import (
	"context"
	"errors"
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
	c, err := t.copyTree(ctx, opt, true)
	if err != nil {
		return false, err
	}
	defer func() {
		if errors.Is(err, errUnknown) {
			return // what is staged is still needed
		}
		if err != nil {
			t.g.purge(t.m, t.dest.ds.place(c.staged), true)
		} else {
			t.g.live.drop(t.m, c.staged)
		}
	}()
	release, err := t.dest.ds.serial.claim(ctx, span{path: t.dest.at.Path, tree: true})
	if err != nil {
		return false, err
	}
	defer release()
	if err := t.again(ctx, policy.Download); err != nil {
		return false, err
	}
	if err := t.askTree(ctx, t.op.m, policy.Download, &t.target); err != nil {
		return false, err
	}
	if err := t.check(ctx, opt); err != nil {
		return false, err
	}
	gone := map[string]int64{}
	if t.exists {
		if gone, err = t.freed(ctx, t.m, &t.dest, t.cur); err != nil {
			return false, err
		}
	}
	added := make(map[string]int64)
	for _, s := range t.quota.scopes {
		added[s] = c.bytes
	}
	steps, old := t.aside()
	e := t.entry(t.m, append(steps, stepOf(c.staged, t.dest.name, c.info))...)
	err = t.commit(ctx, func(tx *store.Tx) error {
		replaced, err := usageBelow(tx, t.dest.at)
		if err != nil {
			return err
		}
		usage := sum(added, negated(gone), negated(owners(replaced)))
		t.g.count(tx, usage, 1)
		e.Undo = inverse{Gone: &t.dest.at, Moves: []shift{{old, t.dest.at}}, Usage: negated(usage)}
		if err := moveNodes(tx, t.dest.at, old); err != nil {
			return err
		}
		return moveNodes(tx, t.dest.ds.place(c.staged), t.dest.at)
	}, e)
	if err == nil {
		err = t.perform(ctx, t.m, e)
	}
	if err != nil {
		t.g.live.drop(t.m, old.Path)
		return false, err
	}
	t.done(event.Copied, old)
	return !t.exists || !t.seen, nil
}

// copyRows is how many node rows of a copy are written at a time.
const copyRows = 256

// copier copies one tree into the area of the target's datasource.
type copier struct {
	*transfer
	staged string      // where the copy is
	info   mounts.Info // of the copy
	digest uint64      // of the source, as it was copied
	rows   bool        // write node rows of the copy under its staged name

	pending      []copied
	files, bytes int64
	progress     func(files, bytes int64)
}

// copied is a node that was copied and whose row is not yet written.
type copied struct {
	from, to policy.Place
	was      mounts.Info // of the source
	info     mounts.Info
}

var errUncopied = errors.New("holds something that the target cannot keep: a link, a device or the like")

// copyTree copies the source to a new staged name beside the target. Every file is verified to be as long as its source said. With rows,
// which is to say for a copy that leaves the source, node rows and properties are written under the staged name, a bounded number at a time,
// and what cannot be copied is left out; without, for a move, it is Unsupported. On failure nothing is left.
func (t *transfer) copyTree(ctx context.Context, opt MoveOptions, rows bool) (c *copier, err error) {
	c = &copier{transfer: t, staged: t.g.newName(t.m, t.dest.name, staging), rows: rows, progress: opt.Progress}
	defer func() {
		if errors.Is(err, errUnknown) {
			return // what is staged is still needed
		}
		if err != nil {
			t.g.purge(t.m, t.dest.ds.place(c.staged), true)
		}
	}()
	if opt.Shallow && t.info.IsDir() {
		err = c.node(ctx, t.name, c.staged, t.info)
	} else {
		err = walkInfo(ctx, t.op.m, t.name, t.info, func(name string, info mounts.Info) error {
			c.digest += digest(relative(name, t.name), info)
			return c.node(ctx, name, moved(name, t.name, c.staged), info)
		})
	}
	if err == nil {
		err = c.flush(ctx)
	}
	if err == nil {
		c.info, err = t.m.Stat(ctx, c.staged)
	}
	return c, err
}

// node copies one file, folder or link.
func (c *copier) node(ctx context.Context, from, to string, info mounts.Info) (err error) {
	var copy mounts.Info
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
		if link, ok := mounts.As[mounts.Symlinker](c.m.Backend); ok {
			return link.Symlink(ctx, info.Target, to)
		}
		fallthrough
	default:
		if c.rows {
			return nil
		}
		return fault.New("gateway.move", c.path.String(), fault.Unsupported, errUncopied)
	}
	if err != nil || !c.rows {
		return err
	}
	c.pending = append(c.pending, copied{c.ds.place(from), c.dest.ds.place(to), info, copy})
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
			if !was.of(n.was) {
				was.Sums = "" // of a content that something else has replaced
			}
			row := c.row(n.to, n.info, was.Sums)
			if err := (nodes{c.g}).Flush(tx, []any{row}); err != nil {
				return err
			}
			if had {
				if _, err := tx.Exec(`INSERT INTO props (node, space, name, value) SELECT $1, space, name, value FROM props WHERE node = $2`, row.ID, was.ID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	c.pending = c.pending[:0]
	return err
}
