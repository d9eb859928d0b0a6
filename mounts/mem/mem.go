// Package mem is a backend in memory with every capability a backend can have. Tests of the core run on it: it is exact about who sees what
// when, its inode numbers stay with a node, and its change stamps grow strictly.
//
// One lock guards the tree, one lock each inode's bytes. Put makes a new inode from the finished content, so readers of the former one keep
// what they opened; RandomAccess writes change an inode in place.
package mem

import (
	"context"
	"errors"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Config is what New needs; the zero value is an empty storage without a limit.
type Config struct {
	Capacity int64 // bytes of content, 0: no limit
	ReadOnly bool
	Clock    *clock.Clock // nil is the real one
}

// Backend is a storage in memory. It is safe for concurrent use; its content dies with it.
type Backend struct {
	clock    *clock.Clock
	readOnly bool
	closed   atomic.Bool
	capacity atomic.Int64
	used     atomic.Int64
	change   atomic.Int64 // the last change stamp given out
	ids      atomic.Uint64

	mu      sync.RWMutex // guards the tree: children and links of all inodes
	root    *inode
	watchMu sync.Mutex
	watches map[*watch]bool // guarded by watchMu
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
	_ mounts.Xattrer      = (*Backend)(nil)
	_ mounts.Watcher      = (*Backend)(nil)
	_ mounts.Spacer       = (*Backend)(nil)
	_ mounts.Hasher       = (*Backend)(nil)
	_ mounts.Conditional  = (*Backend)(nil)
	_ mounts.Purger       = (*Backend)(nil)
)

// New returns an empty storage.
func New(cfg Config) *Backend {
	b := &Backend{clock: cfg.Clock, readOnly: cfg.ReadOnly, watches: map[*watch]bool{}}
	b.capacity.Store(cfg.Capacity)
	b.root = b.inode(mounts.Dir, 0o750)
	return b
}

// Driver returns the driver "mem".
func Driver() mounts.Driver {
	return mounts.Driver{
		Local:   true,
		Name:    "mem",
		Options: []mounts.Option{{Name: "capacity", Help: "bytes it holds; without a limit when absent"}},
		Open: func(_ context.Context, cfg mounts.Config) (mounts.Backend, error) {
			c := Config{ReadOnly: cfg.ReadOnly}
			for name, value := range cfg.Options {
				n, err := strconv.ParseInt(value, 10, 64)
				if name != "capacity" {
					return nil, fault.New("mounts/mem.Open", cfg.Name, fault.Invalid, errors.New("unknown option "+strconv.Quote(name)))
				}
				if err != nil || n < 0 {
					return nil, fault.New("mounts/mem.Open", cfg.Name, fault.Invalid, errors.New("option capacity is no number of bytes"))
				}
				c.Capacity = n
			}
			return New(c), nil
		},
	}
}

// SetCapacity sets the bytes of content the storage holds, 0 for no limit. What is there stays.
func (b *Backend) SetCapacity(n int64) { b.capacity.Store(n) }

// Close makes later calls fail with Unavailable and ends watches.
func (b *Backend) Close() error {
	b.closed.Store(true)
	b.watchMu.Lock()
	defer b.watchMu.Unlock()
	for w := range b.watches {
		w.end()
	}
	return nil
}

// Features returns what it is: everything natively but surviving a power cut.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{
		AtomicReplace: mounts.Native, ConditionalWrite: mounts.Native, Rename: mounts.Native, ModTime: mounts.Native, ModTimeGrain: 1,
		Hash: mounts.Native, RandomAccess: mounts.Native, HardLink: mounts.Native, Symlink: mounts.Native, Xattr: mounts.Native,
		Watch: mounts.Native, Space: mounts.Native, CaseSensitive: true, MaxName: mounts.MaxName,
	}
	if b.readOnly {
		f.AtomicReplace, f.ConditionalWrite, f.Rename, f.ModTime, f.HardLink, f.Symlink = 0, 0, 0, 0, 0, 0
	}
	return f
}

// inode is a node whatever its names.
type inode struct {
	id       uint64
	typ      mounts.Type
	target   string            // of a symlink
	children map[string]*inode // of a folder, guarded by Backend.mu
	order    []string          // the children's names as last sorted for a listing, nil when stale; guarded by Backend.mu
	links    uint32            // guarded by Backend.mu

	mu     sync.RWMutex // guards what follows
	data   []byte
	mode   uint32
	mtime  time.Time
	change int64
	xattrs map[string][]byte
	open   int  // handles
	gone   bool // no name left: its bytes are given back when the last handle closes
}

func (b *Backend) inode(t mounts.Type, mode uint32) *inode {
	n := &inode{id: b.ids.Add(1), typ: t, mode: mode, links: 1, mtime: b.clock.Now(), change: b.stamp()}
	if t == mounts.Dir {
		n.children = map[string]*inode{}
	}
	return n
}

// stamp returns a number greater than all before, near the time in nanoseconds.
func (b *Backend) stamp() int64 {
	now := b.clock.Now().UnixNano()
	for {
		last := b.change.Load()
		if next := max(now, last+1); b.change.CompareAndSwap(last, next) {
			return next
		}
	}
}

// touch marks n as changed; with modified, its modification time too.
func (b *Backend) touch(n *inode, modified bool) {
	n.mu.Lock()
	b.touchLocked(n, modified)
	n.mu.Unlock()
}

func (b *Backend) touchLocked(n *inode, modified bool) {
	n.change = b.stamp()
	if modified {
		n.mtime = b.clock.Now()
	}
}

// info describes n under name. The caller holds Backend.mu.
func (b *Backend) info(n *inode, name string) mounts.Info {
	n.mu.RLock()
	defer n.mu.RUnlock()
	i := mounts.Info{Name: name, Type: n.typ, ModTime: n.mtime, Mode: modeOf(n.mode), ID: n.id, Change: n.change, Target: n.target, Links: n.links}
	if n.typ == mounts.File {
		i.Size = int64(len(n.data))
		i.Tag = tag(n.id, n.change)
	}
	return i
}

func tag(id uint64, change int64) string {
	return strconv.FormatUint(id, 36) + "-" + strconv.FormatInt(change, 36)
}

// begin is the door of every call: it refuses ended contexts, a closed backend, bad names and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/mem."+op, name, err)
	}
	if b.closed.Load() {
		return fault.New("mounts/mem."+op, name, fault.Unavailable, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/mem."+op, name, err)
	}
	if write && b.readOnly {
		return fault.New("mounts/mem."+op, name, fault.Denied, errReadOnly)
	}
	return nil
}

var (
	errClosed   = errors.New("closed")
	errReadOnly = errors.New("the datasource is read-only")
	errRoot     = errors.New("the root stays where it is")
	errNoFile   = errors.New("is a symbolic link")
	errLength   = errors.New("the source has another length than declared")
	errBelow    = errors.New("a folder cannot move below itself")
)

// find returns the inode of name. The caller holds mu.
func (b *Backend) find(name string) (*inode, fault.Kind) {
	n := b.root
	if name == "." {
		return n, 0
	}
	for rest, more := name, true; more; {
		var segment string
		if segment, rest, more = cut(rest); n.typ != mounts.Dir {
			return nil, fault.NotDir
		}
		next, ok := n.children[segment]
		if !ok {
			return nil, fault.NotExist
		}
		n = next
	}
	return n, 0
}

// parent returns the folder that name is in, or will be in, and its last segment. The caller holds mu.
func (b *Backend) parent(name string) (*inode, string, fault.Kind) {
	if name == "." {
		return nil, "", fault.Invalid
	}
	dir, base := mounts.Split(name)
	n, kind := b.find(dir)
	if kind == 0 && n.typ != mounts.Dir {
		kind = fault.NotDir
	}
	return n, base, kind
}

// enter gives n the name base in dir, in place of what had it. The caller holds mu.
func (b *Backend) enter(dir *inode, base string, n *inode) {
	if old := dir.children[base]; old != nil {
		b.drop(old)
	} else {
		dir.order = nil
	}
	dir.children[base] = n
	b.touch(dir, true)
}

// leave takes the name base out of dir. The caller holds mu.
func (b *Backend) leave(dir *inode, base string) {
	delete(dir.children, base)
	dir.order = nil
	b.touch(dir, true)
}

// drop takes a name from n, and its bytes back with the last one. The caller holds mu.
func (b *Backend) drop(n *inode) {
	n.links--
	n.mu.Lock()
	n.change = b.stamp()
	if n.links == 0 {
		n.gone = true
		if n.open == 0 {
			b.used.Add(-int64(len(n.data)))
		}
	}
	n.mu.Unlock()
}

// claim takes n more bytes (or gives back, when negative) and fails when the storage is full.
func (b *Backend) claim(n int64) bool {
	used := b.used.Add(n)
	if limit := b.capacity.Load(); n > 0 && limit > 0 && used > limit {
		b.used.Add(-n)
		return false
	}
	return true
}

// names returns the sorted names in dir. The slice is not changed later.
func (n *inode) names() []string {
	if n.order == nil {
		n.order = make([]string, 0, len(n.children))
		for name := range n.children {
			n.order = append(n.order, name)
		}
		sort.Strings(n.order)
	}
	return n.order
}
