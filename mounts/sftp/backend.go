package sftp

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path"
	"strings"
	"sync/atomic"
	"time"

	client "github.com/pkg/sftp"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Extensions of OpenSSH, by the names they are offered under.
const (
	extRename  = "posix-rename@openssh.com"
	extFsync   = "fsync@openssh.com"
	extStatvfs = "statvfs@openssh.com"
	extLink    = "hardlink@openssh.com"
	extLimits  = "limits@openssh.com"
	extCopy    = "copy-data"
)

const (
	tempPrefix = ".cellgate-" // of temporary names beside their target, hidden by the gateway
	tempDir    = mounts.Area + "/tmp"
	cleanTime  = 5 * time.Second // for removing what a failed call left
	grain      = time.Second
)

// Backend is a folder of an SFTP server. It is safe for concurrent use.
type Backend struct {
	*settings
	pool    *pool
	folders folders
	beside  beside
	own     own
	closed  atomic.Bool
	skew    atomic.Int64 // the server's clock minus ours in nanoseconds, as seen at the last write; 0 when never seen

	// Found by attach, constant after.
	root    string
	can     map[string]bool // extensions
	orderly bool            // OpenSSH: requests are carried out in the order they come in
	maxName int
	chunkR  int // bytes in one READ
	chunkW  int
}

var (
	_ mounts.Backend      = (*Backend)(nil)
	_ mounts.RandomAccess = (*Backend)(nil)
	_ mounts.Copier       = (*Backend)(nil)
	_ mounts.Linker       = (*Backend)(nil)
	_ mounts.TimeSetter   = (*Backend)(nil)
	_ mounts.ModeSetter   = (*Backend)(nil)
	_ mounts.Truncater    = (*Backend)(nil)
	_ mounts.Symlinker    = (*Backend)(nil)
	_ mounts.Spacer       = (*Backend)(nil)
)

func newBackend(s *settings) *Backend {
	return &Backend{settings: s, pool: newPool(s), chunkR: smallChunk, chunkW: smallChunk}
}

// attach connects and looks what the server is, can, and has at the option path.
func (b *Backend) attach(ctx context.Context) error {
	return b.run(ctx, "Open", b.name, true, func(w *wire) error {
		where := b.settings.path
		if where == "" {
			where = "."
		}
		err := w.ask(ctx, func(c *client.Client) (err error) {
			if b.root, err = c.RealPath(where); err == nil && !path.IsAbs(b.root) {
				err = fmt.Errorf("the server calls %q %q, which is no path of its own", where, clip(b.root))
			}
			return err
		})
		if codeOf(err) == codeNoSuchFile {
			return b.noRoot(where)
		}
		if err != nil {
			return err
		}
		b.root = path.Clean(b.root)
		b.orderly = strings.Contains(w.link.version, "OpenSSH")
		b.can = map[string]bool{}
		for _, name := range []string{extRename, extFsync, extStatvfs, extLink, extLimits, extCopy} {
			_, b.can[name] = w.client.HasExtension(name)
		}
		at := w.lstat(ctx, b.root)
		if b.can[extLimits] {
			b.limits(ctx, w)
		}
		if b.can[extStatvfs] {
			w.ask(ctx, func(c *client.Client) error {
				if v, err := c.StatVFS(b.root); err == nil && v.Namemax > 0 && v.Namemax < mounts.MaxName {
					b.maxName = int(v.Namemax)
				}
				return nil
			})
		}
		switch a, err := at.attrs(ctx); {
		case codeOf(err) == codeNoSuchFile:
			return b.noRoot(where)
		case codeOf(err) == codeDenied:
			return refusal("Open", b.name, fault.Denied, fmt.Errorf("the login may not enter the folder %q of option path", where))
		case err != nil:
			return err
		case a.flags&hasMode != 0 && a.typ() != mounts.Dir:
			return refusal("Open", b.name, fault.NotDir, fmt.Errorf("%q of option path is no folder on the server", where))
		}
		return nil
	})
}

func (b *Backend) noRoot(where string) error {
	return refusal("Open", b.name, fault.NotExist, fmt.Errorf("there is no folder %q on the server: make it there, or change option path", where))
}

// limits asks how much one request may carry.
func (b *Backend) limits(ctx context.Context, w *wire) {
	r, err := w.extended(ctx, extLimits).wait(ctx, typeExtReply)
	if err != nil {
		return
	}
	in := input{b: r.body}
	_, reads, writes := in.u64(), in.u64(), in.u64()
	if in.bad {
		return
	}
	fit := func(n uint64) int {
		if n == 0 { // no limit of its own
			return smallChunk
		}
		return int(min(max(n, 1<<10), chunk))
	}
	b.chunkR, b.chunkW = fit(reads), fit(writes)
}

// begin is the door of every call: it refuses ended contexts, a closed backend, bad names and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op string, write bool, names ...string) error {
	if err := ctx.Err(); err != nil {
		return failure(op, names[0], err)
	}
	if b.closed.Load() {
		return refusal(op, names[0], fault.Unavailable, errClosed)
	}
	for _, name := range names {
		if err := mounts.ValidPath(name); err != nil {
			return fault.Wrap("mounts/sftp."+op, name, err)
		}
		if _, base := mounts.Split(name); b.maxName > 0 && len(base) > b.maxName {
			return refusal(op, name, fault.Invalid, fmt.Errorf("the server holds names of at most %d bytes", b.maxName))
		}
	}
	if write && b.readOnly {
		return refusal(op, names[0], fault.Denied, errReadOnly)
	}
	return nil
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (info mounts.Info, err error) {
	if err := b.begin(ctx, "Stat", false, name); err != nil {
		return mounts.Info{}, err
	}
	err = b.run(ctx, "Stat", name, true, func(w *wire) error {
		a, err := b.look(ctx, w, name)
		if err != nil {
			return err
		}
		_, base := mounts.Split(name)
		info = a.info(base)
		if info.Type == mounts.Symlink {
			info.Target, err = w.simple(ctx, typeReadlink, b.path(name)).link(ctx)
		}
		return err
	})
	return info, err
}

// List implements mounts.Backend. It asks for several pages at once from servers that answer in order, more of them as the folder turns out
// to be long.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		err := b.begin(ctx, "List", false, dir)
		if err == nil {
			begun := false
			err = b.run(ctx, "List", dir, true, func(w *wire) error {
				if begun { // the first page came, and then the connection went
					return refusal("List", dir, fault.Unavailable, errors.New("the connection was lost"))
				}
				handle, err := b.openDir(ctx, w, dir)
				if err != nil {
					return err
				}
				defer w.closeHandle(handle)
				return b.pages(ctx, w, dir, handle, func(info mounts.Info) bool { begun = true; return yield(info, nil) })
			})
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(mounts.Info{}, err)
		}
	}
}

var errStop = errors.New("enough")

func (b *Backend) openDir(ctx context.Context, w *wire, dir string) (string, error) {
	g := b.guard(ctx, w, dir)
	at := w.lstat(ctx, b.path(dir))
	open := w.opendir(ctx, b.path(dir))
	err := g.wait(ctx)
	var a attrs
	if err == nil {
		a, err = at.attrs(ctx)
	} else {
		at.forget()
	}
	switch {
	case err != nil:
	case a.typ() == mounts.Symlink && dir != ".":
		err = refusal("List", dir, fault.NotDir, errLink)
	case a.typ() != mounts.Dir && a.flags&hasMode != 0:
		err = refusal("List", dir, fault.NotDir, nil)
	default:
		g.found(dir, a)
	}
	if err != nil {
		open.forget()
		return "", err
	}
	return open.handle(ctx)
}

// maxPages is how many pages of a listing are asked for ahead.
const maxPages = 16

// pages yields what is in an open folder.
func (b *Backend) pages(ctx context.Context, w *wire, dir, handle string, yield func(mounts.Info) bool) error {
	var ahead []*call
	defer func() {
		for _, c := range ahead {
			c.forget()
		}
	}()
	window := 1
	if b.orderly {
		window = 2
	}
	for {
		for len(ahead) < window {
			ahead = append(ahead, w.simple(ctx, typeReaddir, handle))
		}
		r, err := ahead[0].wait(ctx, typeName)
		ahead = ahead[1:]
		if codeOf(err) == codeEOF {
			return nil
		}
		if err != nil {
			return err
		}
		in := input{b: r.body}
		page := in.entries()
		w.link.pool.release(r)
		if len(page) == 0 {
			return errShort // it would go on for ever
		}
		if b.orderly {
			window = min(2*window, maxPages)
		}
		if err := b.page(ctx, w, dir, page, yield); err != nil {
			return err
		}
	}
}

// page yields the entries of one answer. The targets of links are asked for together.
func (b *Backend) page(ctx context.Context, w *wire, dir string, page []entry, yield func(mounts.Info) bool) error {
	targets := map[int]*call{}
	for i, e := range page {
		if e.attrs.typ() == mounts.Symlink && mounts.ValidName(e.name) == nil {
			targets[i] = w.simple(ctx, typeReadlink, b.path(mounts.Join(dir, e.name)))
		}
	}
	stopped := false
	for i, e := range page {
		info := e.attrs.info(e.name)
		if c := targets[i]; c != nil {
			target, err := c.link(ctx)
			var own *statusError
			if err != nil && !errors.As(err, &own) {
				return err
			}
			info.Target = target // "" when it went meanwhile
		}
		if stopped || mounts.ValidName(e.name) != nil || strings.HasPrefix(e.name, tempPrefix) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if !yield(info) {
			stopped = true
			break
		}
	}
	if stopped {
		for _, c := range targets {
			c.forget()
		}
		return errStop
	}
	return nil
}

// Features implements mounts.Backend.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{
		Rename: mounts.Native, ModTime: mounts.Native, ModTimeGrain: grain, RandomAccess: mounts.Native, Symlink: mounts.Native,
		CaseSensitive: true, MaxName: b.maxName, Remote: true, AtomicReplace: mounts.Emulated,
	}
	if b.can[extRename] {
		f.AtomicReplace = mounts.Native
	}
	if b.can[extLink] {
		f.HardLink = mounts.Native
	}
	if b.can[extStatvfs] {
		f.Space = mounts.Native
	}
	if b.can[extFsync] && !b.unsynced {
		f.Durable = mounts.Emulated // of the file, while its name may be lost
		if b.orderly {
			f.Durable = mounts.Native
		}
	}
	if b.readOnly {
		f.AtomicReplace, f.Rename, f.ModTime, f.HardLink, f.Symlink, f.Durable = 0, 0, 0, 0, 0, 0
	}
	return f
}

// Close implements mounts.Backend. It gives clean-ups of calls that failed just now a moment.
func (b *Backend) Close() error {
	if b.closed.Swap(true) {
		return nil
	}
	b.pool.settle(time.Second)
	b.pool.close()
	return nil
}
