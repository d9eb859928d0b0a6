package sftp

import (
	"context"
	"errors"
	"io/fs"
	"time"

	client "github.com/pkg/sftp"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// attribute looks at name and lets the library change it. The protocol follows a link at the end of a name, so links are refused before.
func (b *Backend) attribute(ctx context.Context, op, name string, allowed func(a attrs) error, do func(c *client.Client, a attrs) error) error {
	return b.run(ctx, op, name, true, func(w *wire) error {
		a, err := b.look(ctx, w, name)
		if err != nil {
			return err
		}
		if err := allowed(a); err != nil {
			return err
		}
		return b.explain(ctx, w, op, name, w.ask(ctx, func(c *client.Client) error { return do(c, a) }))
	})
}

// noLink allows files and folders.
func noLink(op, name string) func(a attrs) error {
	return func(a attrs) error {
		if a.typ() == mounts.Dir {
			return nil
		}
		return plainFile(op, name, a)
	}
}

// SetModTime implements mounts.TimeSetter, for times from 1970 to 2106.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	const op = "SetModTime"
	if err := b.begin(ctx, op, true, name); err != nil {
		return err
	}
	if s := t.Unix(); s < 0 || s > maxSeconds {
		return refusal(op, name, fault.Invalid, errors.New("SFTP keeps times from 1970 to 2106"))
	}
	return b.attribute(ctx, op, name, noLink(op, name), func(c *client.Client, a attrs) error {
		access := t
		if a.flags&hasTimes != 0 {
			access = time.Unix(int64(a.atime), 0)
		}
		return c.Chtimes(b.path(name), access, t)
	})
}

// SetMode implements mounts.ModeSetter.
func (b *Backend) SetMode(ctx context.Context, name string, mode fs.FileMode) error {
	const op = "SetMode"
	if err := b.begin(ctx, op, true, name); err != nil {
		return err
	}
	return b.attribute(ctx, op, name, noLink(op, name), func(c *client.Client, _ attrs) error {
		return c.Chmod(b.path(name), mode.Perm())
	})
}

// Truncate implements mounts.Truncater.
func (b *Backend) Truncate(ctx context.Context, name string, size int64) error {
	const op = "Truncate"
	if err := b.begin(ctx, op, true, name); err != nil {
		return err
	}
	if size < 0 {
		return refusal(op, name, fault.Invalid, errors.New("a negative size"))
	}
	return b.attribute(ctx, op, name, func(a attrs) error { return plainFile(op, name, a) }, func(c *client.Client, _ attrs) error {
		return c.Truncate(b.path(name), size)
	})
}

// Space implements mounts.Spacer, where the server tells.
func (b *Backend) Space(ctx context.Context) (space mounts.Space, err error) {
	const op = "Space"
	if err := b.begin(ctx, op, false, "."); err != nil {
		return mounts.Space{}, err
	}
	if !b.can[extStatvfs] {
		return mounts.Space{}, refusal(op, ".", fault.Unsupported, errors.New("the server does not tell"))
	}
	err = b.run(ctx, op, ".", true, func(w *wire) error {
		return w.ask(ctx, func(c *client.Client) error {
			v, err := c.StatVFS(b.root)
			if err == nil {
				space = spaceOf(v.Frsize, v.Blocks, v.Bfree, v.Bavail)
			}
			return err
		})
	})
	return space, err
}

// spaceOf counts in bytes; what a server makes up beyond all measure is unknown.
func spaceOf(unit, blocks, free, available uint64) mounts.Space {
	if unit == 0 || blocks > (1<<62)/unit || free > blocks || available > blocks {
		return mounts.Space{Total: -1, Used: -1, Free: -1}
	}
	return mounts.Space{Total: int64(unit * blocks), Used: int64(unit * (blocks - free)), Free: int64(unit * available)}
}
