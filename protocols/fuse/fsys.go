package fuse

import (
	"context"
	"io/fs"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/gateway"
	"cellgate/gateway/event"
)

// fsys answers the kernel's requests.
type fsys struct {
	gofuse.RawFileSystem // refuses what is not answered here
	cfg                  Config
	s                    *gateway.Session
	tree                 *tree
	srv                  *gofuse.Server
	passes               atomic.Bool // the kernel may be asked to pass through

	life  context.Context // ends when nobody is to be served any more
	end   context.CancelFunc
	calls sync.WaitGroup // of the core
	sub   *event.Subscription

	mu      sync.Mutex
	handles map[uint64]*handle // guarded by mu
	dirs    map[uint64]*dir    // guarded by mu
	next    uint64             // file handle, guarded by mu
	places  map[string]place   // by datasource, guarded by mu
	own     map[string]deed    // what this mount itself does, by path, guarded by mu
}

func newFsys(cfg Config) *fsys {
	f := &fsys{RawFileSystem: gofuse.NewDefaultRawFileSystem(), cfg: cfg, handles: map[uint64]*handle{}, dirs: map[uint64]*dir{}, places: map[string]place{}, own: map[string]deed{}}
	f.s = cfg.Session.With(gateway.Client{Protocol: "fuse", Credential: cfg.Credential, OwnLocks: true, Posix: true})
	f.life, f.end = context.WithCancel(context.Background())
	f.tree = newTree(func(p gateway.Path) (string, bool) {
		if cfg.Place == nil {
			return "", false
		}
		at, err := cfg.Place(p)
		return at.Datasource, err == nil && at.Datasource != ""
	})
	return f
}

// String implements gofuse.RawFileSystem.
func (f *fsys) String() string { return "cellgate" }

// Init implements gofuse.RawFileSystem.
func (f *fsys) Init(srv *gofuse.Server) {
	f.srv = srv
	f.passes.Store(!f.cfg.NoPassthrough && !f.cfg.WriteBack && srv.KernelSettings().Flags64()&gofuse.CAP_PASSTHROUGH != 0)
}

// shutdown publishes what is still open when nobody is served any more.
func (f *fsys) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), f.cfg.UnmountTimeout)
	defer cancel()
	f.closeAll(ctx)
	for _, n := range f.tree.all() {
		f.giveBack(ctx, n, true)
	}
	f.end()
	if f.sub != nil {
		f.sub.Close()
	}
	over := make(chan struct{})
	go func() { f.calls.Wait(); close(over) }()
	select {
	case <-over:
	case <-ctx.Done():
		f.cfg.Logger.Warn("a datasource does not answer; what was asked of it is left to itself")
	}
}

// Forget implements gofuse.RawFileSystem.
func (f *fsys) Forget(id, count uint64) { f.tree.forget(id, count) }

// blockSize is what statfs counts in.
const blockSize = 4096

// unknownSpace is shown where nobody knows how much room there is.
const unknownSpace = 1 << 50

// StatFs implements gofuse.RawFileSystem: df shows the quota that binds tightest.
func (f *fsys) StatFs(cancel <-chan struct{}, in *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	space, st := do(f, "statfs", cancel, func(ctx context.Context) (space gateway.Space, err error) {
		err = f.at(n, func(p gateway.Path) error {
			space, err = f.s.Space(ctx, p)
			return err
		})
		return space, err
	}, nil)
	if !st.Ok() {
		return st
	}
	used, free := max(space.Used, 0), space.Available
	if free < 0 {
		free = unknownSpace
	}
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	out.Bfree = uint64(free) / blockSize
	out.Bavail = out.Bfree
	out.Blocks = out.Bfree + (uint64(used)+blockSize-1)/blockSize
	return gofuse.OK
}

// fill makes the kernel's attributes of what is known of n.
func (f *fsys) fill(n *node, i gateway.Info, out *gofuse.Attr) {
	n.mu.Lock()
	ctime := n.ctime
	n.mu.Unlock()
	mode := uint32(f.mode(n, i))
	size := uint64(max(i.Size, 0))
	mtime := i.ModTime
	if mtime.IsZero() {
		mtime = time.Unix(0, 0)
	}
	if ctime.Before(mtime) {
		ctime = mtime
	}
	*out = gofuse.Attr{
		Ino: n.ino, Size: size, Blocks: (size + 511) / 512, Blksize: blockSize, Mode: n.kind | mode, Nlink: max(i.Links, 1),
		Owner: gofuse.Owner{Uid: f.cfg.UID, Gid: f.cfg.GID},
	}
	out.SetTimes(&mtime, &mtime, &ctime)
	if n.kind == syscall.S_IFDIR {
		out.Nlink = 2
	}
}

// mode returns the permission bits that are shown of n.
func (f *fsys) mode(n *node, i gateway.Info) fs.FileMode {
	f.tree.mu.Lock()
	virtual := n.root == nil
	f.tree.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	switch mode := i.Mode.Perm(); {
	case n.kind == syscall.S_IFLNK:
		return 0o777
	case mode != 0 || n.bare:
		return mode
	case n.kind == syscall.S_IFDIR && virtual:
		return 0o555 // a folder that only this tree has: nothing is made in it
	case n.kind == syscall.S_IFDIR:
		return 0o755
	}
	return 0o644
}

// entry answers with n, which the kernel then holds one more reference of.
func (f *fsys) entry(n *node, i gateway.Info, out *gofuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	f.fill(n, f.live(n, i), &out.Attr)
	out.SetEntryTimeout(f.cfg.EntryTimeout)
	out.SetAttrTimeout(f.cfg.AttrTimeout)
}

// touched notes that n was changed in a way that the core keeps no time of.
func (n *node) touched() {
	n.mu.Lock()
	n.ctime = time.Now()
	n.mu.Unlock()
}

// GetAttr implements gofuse.RawFileSystem.
func (f *fsys) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return gofuse.ENOENT
	}
	out.SetTimeout(f.cfg.AttrTimeout)
	if i, ok := f.openInfo(n); ok {
		f.fill(n, i, &out.Attr)
		f.nlink(n, i, &out.Attr)
		return gofuse.OK
	}
	i, st := do(f, "getattr", cancel, func(ctx context.Context) (gateway.Info, error) { return f.stat(ctx, n) }, nil)
	if !st.Ok() {
		return st
	}
	f.fill(n, f.live(n, i), &out.Attr)
	return gofuse.OK
}

// stat asks the core what n is now.
func (f *fsys) stat(ctx context.Context, n *node) (i gateway.Info, err error) {
	err = f.at(n, func(p gateway.Path) error {
		i, err = f.s.Stat(ctx, p)
		return err
	})
	if err != nil {
		return i, err
	}
	f.tree.mu.Lock()
	other := n.key != key{} && i.ID != 0 && i.ID != n.key.id || n != f.tree.top && kindOf(i) != n.kind
	f.tree.mu.Unlock()
	if other {
		return i, syscall.ESTALE // another file has its name: the kernel looks the name up again
	}
	n.mu.Lock()
	n.info = i
	n.mu.Unlock()
	return i, nil
}

// SetAttr implements gofuse.RawFileSystem.
func (f *fsys) SetAttr(cancel <-chan struct{}, in *gofuse.SetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	n := f.tree.node(in.NodeId)
	switch {
	case n == nil:
		return gofuse.ENOENT
	case f.cfg.ReadOnly:
		return gofuse.EROFS
	}
	if uid, ok := in.GetUID(); ok && uid != f.cfg.UID && !f.cfg.IgnoreOwners {
		return gofuse.EPERM
	}
	if gid, ok := in.GetGID(); ok && gid != f.cfg.GID && !f.cfg.IgnoreOwners {
		return gofuse.EPERM
	}
	want := *in // the request is used again when the call is left alone
	i, st := do(f, "setattr", cancel, func(ctx context.Context) (gateway.Info, error) { return f.setAttr(ctx, n, &want) }, nil)
	if !st.Ok() {
		return st
	}
	out.SetTimeout(f.cfg.AttrTimeout)
	f.fill(n, i, &out.Attr)
	f.nlink(n, i, &out.Attr)
	return gofuse.OK
}

// nlink corrects the number of names of a node that may have none.
func (f *fsys) nlink(n *node, i gateway.Info, out *gofuse.Attr) {
	if f.tree.isGone(n) {
		out.Nlink = i.Links
	}
}

func (f *fsys) setAttr(ctx context.Context, n *node, in *gofuse.SetAttrIn) (gateway.Info, error) {
	if size, ok := in.GetSize(); ok {
		if n.kind != syscall.S_IFREG {
			return gateway.Info{}, syscall.EINVAL
		}
		if size > 1<<62 {
			return gateway.Info{}, syscall.EFBIG
		}
		if err := f.truncate(ctx, n, int64(size)); err != nil {
			return gateway.Info{}, err
		}
	}
	var a gateway.Attr
	if mode, ok := in.GetMode(); ok && n.kind != syscall.S_IFLNK {
		m := fsMode(mode)
		a.Mode = &m
	}
	if t, ok := in.GetMTime(); ok && n.kind != syscall.S_IFLNK {
		a.ModTime = t
	}
	if a != (gateway.Attr{}) {
		if err := f.change(ctx, n, a); err != nil {
			return gateway.Info{}, err
		}
	}
	n.touched()
	if i, ok := f.openInfo(n); ok {
		return i, nil
	}
	i, err := f.stat(ctx, n)
	return f.live(n, i), err
}

// change sets mode and time of n, of a file that is not published yet when it is.
func (f *fsys) change(ctx context.Context, n *node, a gateway.Attr) error {
	if done, err := f.changeOpen(n, a); done {
		return err
	}
	err := f.at(n, func(p gateway.Path) error {
		defer f.doing(p)()
		return f.setKept(ctx, p, a)
	})
	if err == nil && a.Mode != nil {
		n.mu.Lock()
		n.bare = *a.Mode == 0
		n.mu.Unlock()
	}
	return err
}

// setKept is SetAttr that leaves out a time which the datasource does not keep.
func (f *fsys) setKept(ctx context.Context, p gateway.Path, a gateway.Attr) error {
	err := f.s.SetAttr(ctx, p, a)
	if errnoOf(err) != syscall.EOPNOTSUPP || a.ModTime.IsZero() {
		return err
	}
	f.cfg.Logger.Debug("the datasource keeps no times", "path", p.String())
	if a.ModTime = (time.Time{}); a.Mode == nil {
		return nil
	}
	return f.s.SetAttr(ctx, p, a)
}
