// Package cache is a wrapper that remembers attributes, listings and blocks of content for a while.
//
// # Attributes and listings
//
// Stat and List answer from memory what the backend said at most Config.Age ago; Age tells how old an answer is. A listing that was streamed to
// its end answers Stat for all names in the folder, those that are not there included. Calls that ask the same at the same time share one call
// of the backend. Where several names of a folder are asked for within Age, the folder is listed once instead.
//
// What is changed through the wrapper shows at once. A change takes what it touches out of memory when it is over, and every answer that was
// under way meanwhile is given to those who wait for it but not kept. When it went well and nothing else touched the same names at the time, the
// new state is remembered instead. A name that is open for writing is never answered from memory, nor is a file with several hard links. Changes
// that a Watcher below reports are seen at once, others after Age; Fresh asks the backend itself.
//
// Keys of a backend that ignores case are folded widely (full case folding, canonical composition), so that a change reaches every spelling;
// answers are given only for a spelling that differs in simple case, since what else the server holds for the same is its own affair.
//
// # Content
//
// With Config.Dir and Size, blocks of files lie in one file of that folder, sealed with a key that is only in memory, so that the disk never
// sees plain content that a wrapper below encrypts. The file is unlinked while it is used and nothing outlives the process. Only content that is
// identified by an entity tag, a change stamp, or a size with a modification time that is some seconds past, is kept. A reader gives one content
// to its end: at its opening it pins the blocks it needs, or opens a stream of the backend at the first that is missing and looks that this is
// of the same content. Blocks are sealed and written while the client takes them. A reader of more than half of the cache stores nothing, so that
// a scan does not push out what others use. A failing disk turns the block cache off; reading goes on.
package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	defaultAge     = 5 * time.Second
	defaultEntries = 50_000
	defaultBlock   = 1 << 20
)

// Config is what New needs; the zero value remembers attributes for 5 seconds and no content.
type Config struct {
	Age     time.Duration // how long attributes and listings are believed, 0: 5 seconds; negative: not at all
	Entries int           // the most names remembered, 0: 50,000; a listing of more than a fifth of it is not kept

	Dir       string // folder of the block cache, made when missing; "": none
	Size      int64  // bytes of it on disk, 0: none
	Block     int64  // bytes of a block, 0: 1 MiB; at least 64 KiB and a multiple of that
	ReadAhead int64  // bytes fetched ahead of clients that read a file piece by piece, 0: none

	Clock  *clock.Clock // nil is the real one
	Logger *slog.Logger // nil discards
}

// Backend is a backend that remembers. It is safe for concurrent use.
type Backend struct {
	next   mounts.Backend
	m      *memory
	blocks *blocks // nil without
	ahead  int64
	clock  *clock.Clock
	logger *slog.Logger

	closed atomic.Bool
	once   sync.Once
	failed error // of Close, set by once
	cancel context.CancelFunc
	ctx    func() context.Context // of what runs in the background
	tasks  sync.WaitGroup
	busy   chan struct{} // a place for each fetch ahead

	partsMu sync.Mutex
	parts   map[string]string // names of uploads in parts by id, guarded by partsMu
}

var (
	_ mounts.Backend  = (*Backend)(nil)
	_ mounts.Provider = (*Backend)(nil)
)

// New returns next with a memory. It fails when the folder of the block cache cannot be used. Closing it closes next.
func New(next mounts.Backend, cfg Config) (*Backend, error) {
	if cfg.Age == 0 {
		cfg.Age = defaultAge
	}
	if cfg.Entries <= 0 {
		cfg.Entries = defaultEntries
	}
	if cfg.Block <= 0 {
		cfg.Block = defaultBlock
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Backend{
		next: next, clock: cfg.Clock, logger: cfg.Logger, ahead: cfg.ReadAhead, cancel: cancel, ctx: func() context.Context { return ctx },
		busy: make(chan struct{}, 4), parts: map[string]string{},
	}
	b.m = newMemory(cfg.Age, cfg.Entries, cfg.Clock, !next.Features().CaseSensitive)
	if cfg.Dir != "" && cfg.Size > 0 {
		var err error
		if b.blocks, err = newBlocks(cfg.Dir, cfg.Size, cfg.Block, cfg.Logger); err != nil {
			cancel()
			return nil, fault.Wrap("mounts/cache.New", "", err)
		}
	}
	if w, ok := mounts.As[mounts.Watcher](next); ok && next.Features().Watch != mounts.Refused && cfg.Age > 0 {
		b.tasks.Go(func() { b.watch(ctx, w) })
	}
	return b, nil
}

type freshKey struct{}

// Fresh returns a context whose Stat, List and Open ask the backend itself; what it says is remembered.
func Fresh(ctx context.Context) context.Context { return context.WithValue(ctx, freshKey{}, true) }

func isFresh(ctx context.Context) bool { return ctx.Value(freshKey{}) != nil }

type untimedKey struct{}

// Untimed returns a context whose Stat may leave out the time and the tag of a file: of one that was just written they are often not known, and
// who replaces or removes it need not ask for them.
func Untimed(ctx context.Context) context.Context { return context.WithValue(ctx, untimedKey{}, true) }

var errClosed = errors.New("closed")

// begin is the door of every call.
func (b *Backend) begin(ctx context.Context, op string, names ...string) error {
	for _, name := range names {
		if err := mounts.ValidPath(name); err != nil {
			return fault.Wrap("mounts/cache."+op, name, err)
		}
	}
	if b.closed.Load() {
		return fault.New("mounts/cache."+op, names[0], fault.Unavailable, errClosed)
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/cache."+op, names[0], err)
	}
	return nil
}

// Age returns how old is what List of the folder, or else Stat, would say of name, and false when they would ask the backend.
func (b *Backend) Age(name string) (time.Duration, bool) { return b.m.ageOf(name) }

// Folder reports whether it is remembered, from at most Age ago, that name is a folder.
func (b *Backend) Folder(name string) bool { return b.m.folder(name) }

// Invalidate forgets name, all below it, and the listing it is in.
func (b *Backend) Invalidate(name string) {
	if mounts.ValidPath(name) != nil {
		return
	}
	b.m.invalidate(name)
	b.blocks.forget(b.m.key(name))
}

// Forget forgets everything.
func (b *Backend) Forget() { b.Invalidate(".") }

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name); err != nil {
		return mounts.Info{}, err
	}
	fresh := isFresh(ctx)
	if !fresh {
		if ctx.Value(untimedKey{}) != nil {
			if info, ok := b.m.untimed(name); ok {
				return info, nil
			}
		}
		info, what := b.m.stat(name)
		if what == unknown && b.m.missed(name) {
			dir, _ := mounts.Split(name)
			b.listAhead(ctx, dir)
			info, what = b.m.stat(name)
		}
		switch what {
		case present:
			return info, nil
		case absent:
			return mounts.Info{}, fault.New("mounts/cache.Stat", name, fault.NotExist, nil)
		}
	}
	for {
		f, lead := b.m.join(name, false, fresh)
		if lead {
			return b.askStat(ctx, f, name)
		}
		select {
		case <-ctx.Done():
			return mounts.Info{}, fault.Wrap("mounts/cache.Stat", name, ctx.Err())
		case <-f.done:
		}
		if !f.again {
			return f.info, f.err
		}
	}
}

// askStat asks the backend for all who wait for f.
func (b *Backend) askStat(ctx context.Context, f *flight, name string) (info mounts.Info, err error) {
	again := true // stays so when the backend panics
	defer func() { b.m.landStat(f, info, err, again) }()
	info, err = b.next.Stat(ctx, name)
	again = err != nil && ctx.Err() != nil // our client went away, not theirs
	return info, err
}

// List implements mounts.Backend. A remembered listing comes as it was, with what was changed here since.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		fresh := isFresh(ctx)
		for {
			if infos, ok := b.m.list(dir); ok && !fresh {
				b.replay(ctx, dir, infos, yield)
				return
			}
			f, lead := b.m.join(dir, true, fresh)
			if lead {
				b.stream(ctx, f, dir, yield)
				return
			}
			if !f.wait(ctx) {
				if err := ctx.Err(); err != nil {
					yield(mounts.Info{}, fault.Wrap("mounts/cache.List", dir, err))
					return
				}
				fresh = true // others are too slow, or it was not to be kept: alone then
			}
		}
	}
}

func (b *Backend) replay(ctx context.Context, dir string, infos []mounts.Info, yield func(mounts.Info, error) bool) {
	for i, info := range infos {
		if i%64 == 0 && i > 0 {
			if err := b.begin(ctx, "List", dir); err != nil {
				yield(mounts.Info{}, err)
				return
			}
		}
		if !yield(info, nil) {
			return
		}
	}
}

// stream passes a listing of the backend on and collects it meanwhile, as far as it is small enough.
func (b *Backend) stream(ctx context.Context, f *flight, dir string, yield func(mounts.Info, error) bool) {
	var infos []mounts.Info
	keep, complete := b.m.age > 0, false
	var failed error
	defer func() { b.m.landList(f, infos, complete, failed) }()
	for info, err := range b.next.List(ctx, dir) {
		if failed = err; err != nil {
			yield(mounts.Info{}, err)
			return
		}
		if keep {
			if infos = append(infos, info); len(infos) > b.m.largest {
				infos, keep = nil, false
				b.m.abandon(f)
			}
		}
		f.leave()
		more := yield(info, nil)
		f.enter()
		if !more {
			return
		}
	}
	complete = keep
}

// listAhead fetches the listing of a folder for the sake of the names in it, unless it is large.
func (b *Backend) listAhead(ctx context.Context, dir string) {
	f, lead := b.m.join(dir, true, false)
	if !lead {
		f.wait(ctx)
		return
	}
	n, done := 0, false
	defer func() {
		if !done {
			b.m.tooLarge(dir)
		}
	}()
	b.stream(ctx, f, dir, func(_ mounts.Info, err error) bool {
		n++
		return err == nil && n <= b.m.largest/2
	})
	done = f.kept
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	err = b.change(ctx, "Put", func() error { info, err = b.next.Put(ctx, name, src, opt); return err }, func() { b.m.know(name, info) }, name)
	return info, err
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.change(ctx, "Mkdir", func() error { return b.next.Mkdir(ctx, name) }, func() { b.m.emptyFolder(name) }, name)
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	return b.change(ctx, "Remove", func() error { return b.next.Remove(ctx, name) }, func() { b.m.gone(name) }, name)
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	return b.rename(ctx, "Rename", from, to, b.next.Rename)
}

func (b *Backend) rename(ctx context.Context, op, from, to string, do func(ctx context.Context, from, to string) error) error {
	done := func() {
		if from != to {
			b.m.moveOpen(from, to)
			if b.m.key(from) != b.m.key(to) {
				b.m.gone(from)
			}
		}
	}
	return b.change(ctx, op, func() error { return do(ctx, from, to) }, done, from, to)
}

// Features are those of the backend below.
func (b *Backend) Features() mounts.Features { return b.next.Features() }

// Close implements mounts.Backend.
func (b *Backend) Close() error {
	b.once.Do(func() {
		b.closed.Store(true)
		b.cancel()
		b.failed = b.next.Close()
		b.tasks.Wait()
		b.blocks.close()
		b.m.invalidate(".")
	})
	return b.failed
}

// change lets do change names and takes what it touched out of memory. When it went well and nothing else touched the names meanwhile, done
// may remember the new state, with the memory locked.
func (b *Backend) change(ctx context.Context, op string, do func() error, done func(), names ...string) error {
	if err := b.begin(ctx, op, names...); err != nil {
		return err
	}
	w := b.m.beginWrite(names...)
	err := fault.New("mounts/cache."+op, names[0], fault.Internal, nil) // stays so when do panics
	defer func() {
		b.m.endWrite(w, err, done)
		for _, key := range w.keys {
			if op == "Remove" || op == "Rename" || op == "Purge" {
				b.blocks.forget(key)
			} else {
				b.blocks.forgetFile(key)
			}
		}
	}()
	err = do()
	return err
}

// watch forgets what the backend says has changed, until ctx ends. A watch that ends by itself is begun again after a while.
func (b *Backend) watch(ctx context.Context, w mounts.Watcher) {
	pause := time.Second
	for {
		begun := time.Now()
		err := b.watchOnce(ctx, w)
		if ctx.Err() != nil || fault.KindOf(err) == fault.Unsupported && err != nil {
			return
		}
		b.Forget() // what happened in between was missed
		if pause = min(pause*2, time.Minute); time.Since(begun) > time.Minute {
			pause = time.Second
		}
		b.logger.Debug("watching ended, will begin again", "err", err, "pause", pause)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

func (b *Backend) watchOnce(ctx context.Context, w mounts.Watcher) (last error) {
	defer func() {
		if p := recover(); p != nil { // nobody above could catch it
			b.logger.Error("watch panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
		}
	}()
	for change, err := range w.Watch(ctx) {
		b.seen(change, err)
		last = err
	}
	return last
}

// seen forgets what a Watcher says has changed.
func (b *Backend) seen(change mounts.Change, err error) {
	if err != nil {
		b.Forget()
		return
	}
	b.Invalidate(change.Name)
}
