package mem

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func cut(path string) (segment, rest string, more bool) { return strings.Cut(path, "/") }

func modeOf(m uint32) fs.FileMode { return fs.FileMode(m) & fs.ModePerm }

// fail is the fault of op; a kind of 0 with a nil cause stands for no error, so that lookups read as one line.
func fail(op, name string, kind fault.Kind, cause error) error {
	if kind == 0 && cause == nil {
		return nil
	}
	return fault.New("mounts/mem."+op, name, kind, cause)
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	n, kind := b.find(name)
	if kind != 0 {
		return mounts.Info{}, fail("Stat", name, kind, nil)
	}
	_, base := mounts.Split(name)
	return b.info(n, base), nil
}

// List implements mounts.Backend: sorted by name, as of the moment it starts but for names that vanish meanwhile.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		names, n, err := b.names(ctx, dir)
		if err != nil {
			yield(mounts.Info{}, err)
			return
		}
		const batch = 64
		infos := make([]mounts.Info, 0, batch)
		for len(names) > 0 {
			if err := b.begin(ctx, "List", dir, false); err != nil {
				yield(mounts.Info{}, err)
				return
			}
			k := min(batch, len(names))
			infos = infos[:0]
			b.mu.RLock()
			for _, name := range names[:k] {
				if child := n.children[name]; child != nil {
					infos = append(infos, b.info(child, name))
				}
			}
			b.mu.RUnlock()
			names = names[k:]
			for _, info := range infos {
				if !yield(info, nil) {
					return
				}
			}
		}
	}
}

func (b *Backend) names(ctx context.Context, dir string) ([]string, *inode, error) {
	if err := b.begin(ctx, "List", dir, false); err != nil {
		return nil, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n, kind := b.find(dir)
	if kind == 0 && n.typ != mounts.Dir {
		kind = fault.NotDir
	}
	if kind != 0 {
		return nil, nil, fail("List", dir, kind, nil)
	}
	return n.names(), n, nil
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	return b.make(ctx, "Mkdir", name, func() *inode { return b.inode(mounts.Dir, 0o750) })
}

// Symlink implements mounts.Symlinker.
func (b *Backend) Symlink(ctx context.Context, target, name string) error {
	if target == "" || len(target) > 4095 || strings.ContainsRune(target, 0) {
		return fault.New("mounts/mem.Symlink", name, fault.Invalid, nil)
	}
	return b.make(ctx, "Symlink", name, func() *inode {
		n := b.inode(mounts.Symlink, 0o777)
		n.target = target
		return n
	})
}

// make gives a new node a free name.
func (b *Backend) make(ctx context.Context, op, name string, node func() *inode) error {
	if err := b.begin(ctx, op, name, true); err != nil {
		return err
	}
	if name == "." {
		return fail(op, name, fault.Exist, nil)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	dir, base, kind := b.parent(name)
	if kind == 0 && dir.children[base] != nil {
		kind = fault.Exist
	}
	if kind != 0 {
		return fail(op, name, kind, nil)
	}
	b.enter(dir, base, node())
	b.tell(name)
	return nil
}

// Link implements mounts.Linker.
func (b *Backend) Link(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Link", from, true); err != nil {
		return err
	}
	if err := mounts.ValidPath(to); err != nil {
		return fault.Wrap("mounts/mem.Link", to, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n, kind := b.find(from)
	if kind != 0 {
		return fail("Link", from, kind, nil)
	}
	if n.typ == mounts.Dir {
		return fail("Link", from, fault.IsDir, nil)
	}
	dir, base, kind := b.parent(to)
	if kind == 0 && dir.children[base] != nil {
		kind = fault.Exist
	}
	if kind != 0 {
		return fail("Link", to, kind, nil)
	}
	n.links++
	b.touch(n, false)
	b.enter(dir, base, n)
	b.tell(to)
	return nil
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return fail("Remove", name, fault.Invalid, errRoot)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	dir, base, kind := b.parent(name)
	if kind != 0 {
		return fail("Remove", name, kind, nil)
	}
	switch n := dir.children[base]; {
	case n == nil:
		return fail("Remove", name, fault.NotExist, nil)
	case len(n.children) > 0:
		return fail("Remove", name, fault.NotEmpty, nil)
	default:
		b.leave(dir, base)
		b.drop(n)
		b.tell(name)
		return nil
	}
}

// Purge implements mounts.Purger, in one step.
func (b *Backend) Purge(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Purge", name, true); err != nil {
		return err
	}
	if name == "." {
		return fail("Purge", name, fault.Invalid, errRoot)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	dir, base, kind := b.parent(name)
	if kind == 0 && dir.children[base] == nil {
		kind = fault.NotExist
	}
	if kind != 0 {
		return fail("Purge", name, kind, nil)
	}
	todo := []*inode{dir.children[base]}
	b.leave(dir, base)
	for len(todo) > 0 {
		n := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, child := range n.children {
			todo = append(todo, child)
		}
		clear(n.children) // a listing that is under way ends
		n.order = nil
		b.drop(n)
	}
	b.tell(name)
	return nil
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	if err := mounts.ValidPath(to); err != nil {
		return fault.Wrap("mounts/mem.Rename", to, err)
	}
	if from == "." || to == "." {
		return fail("Rename", from, fault.Invalid, errRoot)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	src, oldBase, kind := b.parent(from)
	if kind != 0 {
		return fail("Rename", from, kind, nil)
	}
	n := src.children[oldBase]
	if n == nil {
		return fail("Rename", from, fault.NotExist, nil)
	}
	if from == to {
		return nil
	}
	if mounts.Below(to, from) && n.typ == mounts.Dir {
		return fail("Rename", to, fault.Invalid, errBelow)
	}
	dst, newBase, kind := b.parent(to)
	if kind != 0 {
		return fail("Rename", to, kind, nil)
	}
	if old := dst.children[newBase]; old != nil {
		switch {
		case old.typ == mounts.Dir && n.typ == mounts.Dir:
			return fail("Rename", to, fault.Exist, nil)
		case old.typ == mounts.Dir:
			return fail("Rename", to, fault.IsDir, nil)
		case n.typ == mounts.Dir:
			return fail("Rename", to, fault.NotDir, nil)
		}
	}
	b.leave(src, oldBase)
	b.enter(dst, newBase, n)
	b.touch(n, false)
	b.tell(from)
	b.tell(to)
	return nil
}

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return b.put(ctx, "Put", name, src, opt, nil)
}

// PutIf implements mounts.Conditional.
func (b *Backend) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return b.put(ctx, "PutIf", name, src, opt, &tag)
}

func (b *Backend) put(ctx context.Context, op, name string, src io.Reader, opt mounts.PutOptions, want *string) (mounts.Info, error) {
	if err := b.begin(ctx, op, name, true); err != nil {
		return mounts.Info{}, err
	}
	b.mu.RLock()
	_, _, kind, cause := b.putTarget(name, opt, want)
	b.mu.RUnlock()
	if kind != 0 {
		return mounts.Info{}, fail(op, name, kind, cause)
	}
	data, err := b.read(ctx, op, name, src, opt.Size)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.publish(op, name, data, opt, want)
	if err != nil {
		b.claim(-int64(len(data)))
	}
	return info, err
}

// putTarget looks where a Put goes and what is there. The caller holds mu.
func (b *Backend) putTarget(name string, opt mounts.PutOptions, want *string) (dir, old *inode, kind fault.Kind, cause error) {
	if name == "." {
		return nil, nil, fault.IsDir, nil
	}
	dir, base, kind := b.parent(name)
	if kind != 0 {
		return nil, nil, kind, nil
	}
	old = dir.children[base]
	switch {
	case want != nil && (old == nil || old.typ != mounts.File || b.info(old, "").Tag != *want):
		return nil, nil, fault.Precondition, nil
	case old == nil:
	case opt.Exclusive:
		return nil, nil, fault.Exist, nil
	case old.typ == mounts.Dir:
		return nil, nil, fault.IsDir, nil
	case old.typ == mounts.Symlink:
		return nil, nil, fault.Denied, errNoFile
	}
	return dir, old, 0, nil
}

// publish gives name a new inode with data, whose bytes are claimed.
func (b *Backend) publish(op, name string, data []byte, opt mounts.PutOptions, want *string) (mounts.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	dir, old, kind, cause := b.putTarget(name, opt, want)
	if kind != 0 {
		return mounts.Info{}, fail(op, name, kind, cause)
	}
	n := b.inode(mounts.File, 0o640)
	n.data = data
	if old != nil {
		n.mode = old.mode
	} else if opt.Mode != 0 {
		n.mode = uint32(opt.Mode & fs.ModePerm)
	}
	if !opt.ModTime.IsZero() {
		n.mtime = opt.ModTime.UTC()
	}
	_, base := mounts.Split(name)
	b.enter(dir, base, n)
	b.tell(name)
	return b.info(n, base), nil
}

// read takes all of src, claiming its bytes as they come, and gives them back when it fails.
func (b *Backend) read(ctx context.Context, op, name string, src io.Reader, size int64) (data []byte, err error) {
	done := false // stays so when src panics
	defer func() {
		if !done || err != nil {
			b.claim(-int64(len(data)))
		}
	}()
	if size > 0 {
		data = make([]byte, 0, min(size, 64<<20))
	}
	for {
		if len(data) == cap(data) {
			if size >= 0 && int64(len(data)) == size { // full: all that may follow is the end
				var one [1]byte
				n, err := src.Read(one[:])
				if n == 0 && err == nil {
					continue
				}
				if n > 0 {
					return data, fail(op, name, fault.Invalid, errLength)
				}
				done = true
				return data, ended(op, name, err, int64(len(data)), size)
			}
			data = append(data, 0)[:len(data)]
		}
		if err := ctx.Err(); err != nil {
			return data, fault.Wrap("mounts/mem."+op, name, err)
		}
		n, err := src.Read(data[len(data):cap(data)])
		if !b.claim(int64(n)) {
			return data, fail(op, name, fault.NoSpace, nil)
		}
		data = data[:len(data)+n]
		if err != nil {
			done = true
			return data, ended(op, name, err, int64(len(data)), size)
		}
	}
}

// ended judges the error that ended a source after n bytes.
func ended(op, name string, err error, n, size int64) error {
	if err != io.EOF {
		return fault.Wrap("mounts/mem."+op, name, err)
	}
	if size >= 0 && n != size {
		return fail(op, name, fault.Invalid, errLength)
	}
	return nil
}
