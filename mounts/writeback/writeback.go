// Package writeback is a wrapper that acknowledges files when they are safe on a local disk, and brings them to the backend afterwards.
//
// # What is promised
//
// Put returns when the content and all that is to be known of it lie in a file of Config.Dir that is synced, and its name too: what was
// acknowledged survives a kill and a power cut, and is uploaded by the next process that opens the folder. FORMAT.md describes the files. Until
// it is uploaded, Stat, List and Open through the wrapper tell of the pending content; whoever looks at the backend itself does not see it yet.
// The content lies there as it came: the place for this wrapper is below one that encrypts.
//
// Uploads go on in the background, several names at a time, the versions of one name in order; a version that a newer one replaced before its
// upload began is never uploaded. An upload that fails is tried again for ever, with pauses that grow, and stays in the spool meanwhile; Pending
// lists it with its error. Whether the name is a folder or its parent is missing is looked at before Put acknowledges, by what was heard of the
// backend in the last seconds; where that was wrong, the upload fails and stays pending. So Put fails while the backend cannot be asked.
//
// The last writer wins: what came to the name from outside after the Put is replaced by the upload, which is logged where it is noticed.
//
// Put goes straight through to the backend when it is exclusive, larger than Config.MaxFile, or does not fit into the spool (which is then
// full, or its disk is), and waits for the backend then. All other changes wait for the uploads of the names they are about, and fail as
// those fail; Remove and Purge drop them instead, together with what the backend has.
//
// # The Info of a pending file
//
// It has the size, the time and the mode that were put, no ID, Change and Links, and a Tag of its own where the backend has conditional writes.
// It stays as it is until the upload, and is the backend's from then on. PutIf takes the former Tag for the one it became, for the last 10,000
// uploads of this process.
package writeback

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/cache"
)

// Config is what New needs; Dir is required.
type Config struct {
	Dir     string        // the spool, of this backend only; made when missing
	Size    int64         // bytes that may be pending, 0: 1 GiB; each file counts as 4 KiB at least
	MaxFile int64         // larger files go straight through, 0: 64 MiB
	Workers int           // uploads at a time, 0: 16
	Delay   time.Duration // how long an upload waits for a newer content of its name, 0: not at all

	Clock    *clock.Clock      // nil is the real one
	Logger   *slog.Logger      // nil discards
	OnChange func(name string) // told, from many goroutines, when a file was uploaded, an upload failed, or a pending file was dropped
}

// Entry is a file that is not uploaded yet.
type Entry struct {
	Name  string
	Size  int64
	Since time.Time // when it was put
	Tries int       // uploads that failed
	Err   error     // of the last of them, nil: none yet
}

const (
	defaultSize    = 1 << 30
	defaultMaxFile = 64 << 20
	defaultWorkers = 16
	leastCost      = 4 << 10
	maxAliases     = 10_000
)

// Backend is a backend with a spool. It is safe for concurrent use.
type Backend struct {
	cfg   Config
	next  *cache.Backend // what is below, and what was heard of it lately
	tags  bool           // the backend has conditional writes
	modes bool           // and permission bits
	folds bool           // and ignores case
	spool *spool

	once   sync.Once
	failed error // of Close, set by once
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	wake   chan struct{} // of capacity 1: something may be uploaded
	closed atomic.Bool

	mu      sync.Mutex // guards all below
	slots   map[string]*slot
	folders map[string]map[string]*slot // by the keys of folder and name, those that have a pending content
	queue   []*slot
	running int
	used    int64 // bytes pending or being spooled
	fences  map[*fence]struct{}
	stages  map[*stage]struct{}
	aliases map[string]string // what Tags of pending files became
	oldest  []string          // the keys of aliases, in order
	parts   map[string]string // names of uploads in parts
	watches map[*watch]struct{}
}

// slot is a name that has something pending.
type slot struct {
	key     string
	newest  *entry // the content that everybody sees; nil when the backend has it
	running *entry // on its way to the backend, or being removed from the spool after that
	held    int    // calls that need it to stay where it is
	queued  bool
	tries   int // uploads of newest that failed
	fails   int // uploads of any that failed
	err     error
	changed chan struct{} // closed and made anew when something of this changes
}

// entry is one pending content of a name.
type entry struct {
	manifest
	seq  uint64
	info mounts.Info
}

var (
	_ mounts.Backend  = (*Backend)(nil)
	_ mounts.Provider = (*Backend)(nil)
)

// New returns next with a spool and begins to upload what an earlier process left there. It fails with Busy when another one uses the folder.
// Closing it closes next.
func New(next mounts.Backend, cfg Config) (*Backend, error) {
	if cfg.Size <= 0 {
		cfg.Size = defaultSize
	}
	if cfg.MaxFile <= 0 {
		cfg.MaxFile = defaultMaxFile
	}
	if cfg.Workers <= 0 {
		cfg.Workers = defaultWorkers
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(string) {}
	}
	s, left, err := openSpool(cfg.Dir, cfg.Logger)
	if err != nil {
		return nil, fault.Wrap("mounts/writeback.New", cfg.Dir, err)
	}
	known, err := cache.New(next, cache.Config{Clock: cfg.Clock, Logger: cfg.Logger})
	if err != nil {
		s.close()
		return nil, err
	}
	b := &Backend{
		cfg: cfg, next: known, spool: s, wake: make(chan struct{}, 1),
		slots: map[string]*slot{}, folders: map[string]map[string]*slot{}, fences: map[*fence]struct{}{}, stages: map[*stage]struct{}{},
		aliases: map[string]string{}, parts: map[string]string{}, watches: map[*watch]struct{}{},
	}
	b.folds = !next.Features().CaseSensitive
	_, b.tags = mounts.As[mounts.Conditional](next)
	_, b.modes = mounts.As[mounts.ModeSetter](next)
	b.replay(left)
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.tasks.Go(func() { b.dispatch(ctx) })
	return b, nil
}

// replay takes over what was left in the spool: of each name the last content.
func (b *Backend) replay(left []*entry) {
	for _, e := range left { // in the order they were put
		e.info = b.describe(e.manifest, e.seq, mounts.Info{})
		s := b.slot(e.Name)
		if s.newest != nil {
			b.spool.remove(s.newest.seq)
			b.used -= cost(s.newest.Size)
		}
		b.see(s, e)
		b.used += cost(e.Size)
		b.enqueue(s)
	}
	if len(left) > 0 {
		b.cfg.Logger.Info("files are pending from before", "files", len(b.slots), "bytes", b.used)
	}
}

func cost(size int64) int64 { return max(size, leastCost) }

// key is what all spellings of a name share.
func (b *Backend) key(name string) string {
	if b.folds {
		return cache.Fold(name)
	}
	return name
}

// describe is what is told of a pending content in the place of old, the zero Info if there is none.
func (b *Backend) describe(m manifest, seq uint64, old mounts.Info) mounts.Info {
	_, base := mounts.Split(m.Name)
	info := mounts.Info{Name: base, Size: m.Size, ModTime: m.ModTime.UTC()}
	if f := b.next.Features(); f.ModTime != mounts.Refused && f.ModTimeGrain > 0 {
		info.ModTime = info.ModTime.Truncate(f.ModTimeGrain)
	}
	if b.modes {
		if info.Mode = m.Mode & fs.ModePerm; old.Mode != 0 {
			info.Mode = old.Mode
		}
	}
	if b.tags {
		info.Tag = "pending-" + strconv.FormatUint(seq, 36)
	}
	return info
}

// slot returns that of a name, a new one if there is none. The caller holds mu.
func (b *Backend) slot(name string) *slot {
	key := b.key(name)
	s := b.slots[key]
	if s == nil {
		s = &slot{key: key, changed: make(chan struct{})}
		b.slots[key] = s
	}
	return s
}

// see makes e, or nothing, what everybody sees of s. The caller holds mu.
func (b *Backend) see(s *slot, e *entry) {
	dir, base := mounts.Split(s.key)
	s.newest = e
	s.tries, s.err = 0, nil
	if e == nil {
		if delete(b.folders[dir], base); len(b.folders[dir]) == 0 {
			delete(b.folders, dir)
		}
	} else {
		if b.folders[dir] == nil {
			b.folders[dir] = map[string]*slot{}
		}
		b.folders[dir][base] = s
	}
	b.change(s)
}

// change wakes all who wait for s, and lets it go when nothing is left of it. The caller holds mu.
func (b *Backend) change(s *slot) {
	close(s.changed)
	s.changed = make(chan struct{})
	if s.newest == nil && s.running == nil && s.held == 0 && b.slots[s.key] == s {
		delete(b.slots, s.key)
	}
}

var (
	errClosed  = errors.New("closed")
	errPending = errors.New("a file that is pending is on the way")
	errNoFile  = errors.New("is no plain file")
	errMissed  = errors.New("changes may have been missed")
)

// begin is the door of every call.
func (b *Backend) begin(ctx context.Context, op string, names ...string) error {
	for _, name := range names {
		if err := mounts.ValidPath(name); err != nil {
			return fault.Wrap("mounts/writeback."+op, name, err)
		}
	}
	if b.closed.Load() {
		return fault.New("mounts/writeback."+op, names[0], fault.Unavailable, errClosed)
	}
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/writeback."+op, names[0], err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, name := range names {
		if err := b.below(op, name); err != nil {
			return err
		}
	}
	return nil
}

// below fails when a pending file stands where a folder on the way to name should. The caller holds mu.
func (b *Backend) below(op, name string) error {
	if len(b.slots) == 0 {
		return nil
	}
	for dir, _ := mounts.Split(b.key(name)); dir != "."; dir, _ = mounts.Split(dir) {
		if s := b.slots[dir]; s != nil && s.newest != nil {
			return fault.New("mounts/writeback."+op, name, fault.NotDir, errPending)
		}
	}
	return nil
}

// pending returns the content of name that is not uploaded yet, nil if there is none.
func (b *Backend) pending(name string) *entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.slots[b.key(name)]; s != nil {
		return s.newest
	}
	return nil
}

// Pending returns the files that are not uploaded yet, by name.
func (b *Backend) Pending() []Entry {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []Entry
	for _, s := range b.slots {
		if e := s.newest; e != nil {
			all = append(all, Entry{Name: e.Name, Size: e.Size, Since: e.Put, Tries: s.tries, Err: s.err})
		}
	}
	slices.SortFunc(all, func(a, b Entry) int { return a.Since.Compare(b.Since) })
	return all
}

// Flush uploads all that is pending now, without pauses, and returns when it is there or one of the uploads has failed.
func (b *Backend) Flush(ctx context.Context) error {
	if err := b.begin(ctx, "Flush", "."); err != nil {
		return err
	}
	return b.settle(ctx, "Flush", ".")
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name); err != nil {
		return mounts.Info{}, err
	}
	if e := b.pending(name); e != nil {
		info := e.info
		_, info.Name = mounts.Split(name) // as it was asked for, where case is ignored
		return info, nil
	}
	return b.next.Stat(cache.Fresh(ctx), name)
}

// List implements mounts.Backend: what the backend lists, with what is pending in its place.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		if b.pending(dir) != nil {
			yield(mounts.Info{}, fault.New("mounts/writeback.List", dir, fault.NotDir, nil))
			return
		}
		b.mu.Lock()
		mine := make(map[string]*entry, len(b.folders[b.key(dir)]))
		for base, s := range b.folders[b.key(dir)] {
			mine[base] = s.newest
		}
		b.mu.Unlock()
		for info, err := range b.next.List(cache.Fresh(ctx), dir) {
			if err != nil {
				yield(mounts.Info{}, err)
				return
			}
			if len(mine) > 0 {
				key := b.key(info.Name)
				if e := mine[key]; e != nil && info.Type == mounts.File {
					name := info.Name // as it is stored, where case is ignored
					info = e.info
					info.Name = name
				}
				delete(mine, key)
			}
			if !yield(info, nil) {
				return
			}
		}
		for _, e := range mine {
			if b.spool.dropped(e.seq) { // removed meanwhile, not uploaded
				continue
			}
			if !yield(e.info, nil) {
				return
			}
		}
	}
}

// Open implements mounts.Backend.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fault.New("mounts/writeback.Open", name, fault.Invalid, nil)
	}
	for {
		e := b.pending(name)
		if e == nil {
			return b.next.Open(cache.Fresh(ctx), name, off, n)
		}
		f, err := b.spool.open(e.seq)
		if errors.Is(err, fs.ErrNotExist) && b.pending(name) != e {
			continue // uploaded just now
		}
		if err != nil {
			return nil, fault.Wrap("mounts/writeback.Open", name, err)
		}
		off = min(off, e.Size)
		if n < 0 || n > e.Size-off {
			n = e.Size - off
		}
		return &reader{ctx, b, f, io.NewSectionReader(f, off, n), e.info, name}, nil
	}
}

// reader reads a pending content, also after it was uploaded.
type reader struct {
	ctx  context.Context
	b    *Backend
	file *os.File
	from *io.SectionReader
	info mounts.Info
	name string
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fault.Wrap("mounts/writeback.Read", r.name, err)
	}
	n, err := r.from.Read(p)
	if err != nil && err != io.EOF {
		err = fault.Wrap("mounts/writeback.Read", r.name, err)
	}
	return n, err
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

func (r *reader) Close() error { return fault.Wrap("mounts/writeback.Close", r.name, r.file.Close()) }

// Features are those of the backend below.
func (b *Backend) Features() mounts.Features { return b.next.Features() }

// Close ends the uploads and leaves the rest in the spool.
func (b *Backend) Close() error {
	b.once.Do(func() {
		b.closed.Store(true)
		b.cancel()
		b.tasks.Wait()
		b.mu.Lock()
		for _, s := range b.slots {
			b.change(s) // who waits for it sees that we are closed
		}
		for w := range b.watches {
			w.end()
		}
		b.mu.Unlock()
		b.failed = errors.Join(b.spool.close(), b.next.Close())
	})
	return b.failed
}
