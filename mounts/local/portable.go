//go:build !linux || portable

package local

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a folder of this machine, reached through os.Root. It is safe for concurrent use. It has no more abilities than every system
// has; exclusive names are given by hard links, and folders are kept from being replaced by a look before, under a lock of this process.
type Backend struct {
	settings
	features mounts.Features
	root     *os.Root
	mu       sync.RWMutex // held for reading by calls, for writing by Close
	closed   bool         // guarded by mu
	names    sync.Mutex   // held while names are given that must be free
}

var (
	_ mounts.Backend      = (*Backend)(nil)
	_ mounts.RandomAccess = (*Backend)(nil)
	_ mounts.TimeSetter   = (*Backend)(nil)
	_ mounts.ModeSetter   = (*Backend)(nil)
)

var stagePath = path.Join(mounts.Area, "tmp")

// kindOf is fault.KindOf, but an escape from the root, which os.Root has no sentinel for, is Denied.
func kindOf(err error) fault.Kind {
	var p *fs.PathError
	if k := fault.KindOf(err); k != fault.Internal || !errors.As(err, &p) || !strings.Contains(p.Err.Error(), "escapes") {
		return k
	}
	return fault.Denied
}

func open(_ context.Context, s settings) (*Backend, error) {
	if s.create && !s.readOnly {
		if err := os.MkdirAll(s.path, s.dirMode); err != nil {
			return nil, fail("Open", s.path, err)
		}
	}
	if info, err := os.Stat(s.path); err == nil && !info.IsDir() {
		return nil, refuse("Open", s.path, fault.NotDir, nil) // which os.OpenRoot has no sentinel for
	}
	root, err := os.OpenRoot(s.path)
	if err != nil {
		return nil, fail("Open", s.path, err)
	}
	b := &Backend{settings: s, root: root}
	b.features = mounts.Features{RandomAccess: mounts.Native, MaxName: mounts.MaxName, CaseSensitive: true}
	if s.readOnly {
		return b, nil
	}
	if err := b.probe(); err != nil {
		root.Close()
		return nil, fail("Open", s.path, err)
	}
	return b, nil
}

// probe proves that the folder can be written and finds out what its times and names are like.
func (b *Backend) probe() error {
	name, f, err := b.temp()
	if err != nil {
		return err
	}
	defer b.root.Remove(name)
	f.Close()
	want := time.Unix(1e9, 0)
	if err := b.root.Chtimes(name, time.Time{}, want); err != nil {
		return err
	}
	_, err = b.root.Lstat(path.Join(stagePath, strings.ToUpper(path.Base(name))))
	ft := &b.features
	ft.AtomicReplace, ft.Rename, ft.ModTime, ft.ModTimeGrain = mounts.Native, mounts.Native, mounts.Native, time.Second
	ft.CaseSensitive = err != nil
	if !b.unsynced {
		ft.Durable = mounts.Native
	}
	return nil
}

// Features implements mounts.Backend.
func (b *Backend) Features() mounts.Features { return b.features }

// Close implements mounts.Backend. It waits for calls in flight but for readers and files.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	return fail("Close", "", b.root.Close())
}

// begin is the door of every call, see the one of Linux. It refuses links on the way as far as a look before can; os.Root holds what slips by.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fail(op, name, err)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fail(op, name, err)
	}
	if write && b.readOnly {
		return refuse(op, name, fault.Denied, errReadOnly)
	}
	b.mu.RLock()
	if b.closed {
		b.mu.RUnlock()
		return refuse(op, name, fault.Unavailable, errClosed)
	}
	if err := b.plain(name); err != nil {
		b.mu.RUnlock()
		return fail(op, name, err)
	}
	return nil
}

// plain returns nil when everything above name is a folder.
func (b *Backend) plain(name string) error {
	for i := 0; i < len(name); i++ {
		if name[i] != '/' {
			continue
		}
		info, err := b.root.Lstat(name[:i])
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fault.New("mounts/local.walk", name[:i], fault.NotDir, nil)
		}
	}
	return nil
}

// regular returns nil when name is a file.
func (b *Backend) regular(name string) error {
	info, err := b.root.Lstat(name)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fault.New("mounts/local.open", name, fault.IsDir, nil)
	case info.Mode()&fs.ModeSymlink != 0:
		return fault.New("mounts/local.open", name, fault.Denied, errSymlink)
	case !info.Mode().IsRegular():
		return fault.New("mounts/local.open", name, fault.Denied, errSpecial)
	}
	return nil
}

func (b *Backend) info(name string, i fs.FileInfo) mounts.Info {
	_, base := mounts.Split(name)
	info := mounts.Info{Name: base, ModTime: i.ModTime().UTC(), Mode: i.Mode().Perm()}
	switch {
	case i.Mode().IsRegular():
		info.Size = i.Size()
	case i.IsDir():
		info.Type = mounts.Dir
	case i.Mode()&fs.ModeSymlink != 0:
		info.Type = mounts.Symlink
		info.Target, _ = b.root.Readlink(name)
	default:
		info.Type = mounts.Other
	}
	return info
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	defer b.mu.RUnlock()
	i, err := b.root.Lstat(name)
	if err != nil {
		return mounts.Info{}, fail("Stat", name, err)
	}
	return b.info(name, i), nil
}

// List implements mounts.Backend.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		d, err := b.folder(ctx, dir)
		if err != nil {
			yield(mounts.Info{}, err)
			return
		}
		defer d.Close()
		for {
			batch, err := d.ReadDir(512)
			for _, e := range batch {
				if mounts.ValidName(e.Name()) != nil {
					continue
				}
				info, err := b.Stat(ctx, mounts.Join(dir, e.Name()))
				if fault.KindOf(err) == fault.NotExist && err != nil {
					continue
				}
				if !yield(info, err) || err != nil {
					return
				}
			}
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(mounts.Info{}, fail("List", dir, err))
				return
			}
		}
	}
}

func (b *Backend) folder(ctx context.Context, dir string) (*os.File, error) {
	if err := b.begin(ctx, "List", dir, false); err != nil {
		return nil, err
	}
	defer b.mu.RUnlock()
	i, err := b.root.Lstat(dir)
	if err != nil {
		return nil, fail("List", dir, err)
	}
	if !i.IsDir() {
		return nil, refuse("List", dir, fault.NotDir, nil)
	}
	d, err := b.root.Open(dir)
	return d, fail("List", dir, err)
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	defer b.mu.RUnlock()
	if name == "." {
		return refuse("Mkdir", name, fault.Exist, nil)
	}
	err := b.root.Mkdir(name, b.dirMode)
	if err == nil {
		err = b.root.Chmod(name, b.dirMode)
	}
	if err == nil {
		err = b.sync(name)
	}
	return fail("Mkdir", name, err)
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	defer b.mu.RUnlock()
	if name == "." {
		return refuse("Remove", name, fault.Invalid, errRoot)
	}
	err := b.root.Remove(name)
	if err == nil {
		err = b.sync(name)
	}
	return fail("Remove", name, err)
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	defer b.mu.RUnlock()
	if err := mounts.ValidPath(to); err != nil {
		return fail("Rename", to, err)
	}
	if from == "." || to == "." {
		return refuse("Rename", from, fault.Invalid, errRoot)
	}
	old, err := b.root.Lstat(from)
	if err != nil || from == to {
		return fail("Rename", from, err)
	}
	if mounts.Below(to, from) && old.IsDir() {
		return refuse("Rename", to, fault.Invalid, errBelow)
	}
	if err := b.plain(to); err != nil {
		return fail("Rename", to, err)
	}
	b.names.Lock()
	defer b.names.Unlock()
	if taken, err := b.root.Lstat(to); err == nil && !os.SameFile(old, taken) {
		switch {
		case taken.IsDir() && old.IsDir():
			return refuse("Rename", to, fault.Exist, nil)
		case taken.IsDir():
			return refuse("Rename", to, fault.IsDir, nil)
		case old.IsDir():
			return refuse("Rename", to, fault.NotDir, nil)
		}
	}
	if err = b.root.Rename(from, to); err == nil {
		err = errors.Join(b.sync(to), b.sync(from))
	}
	return fail("Rename", from, err)
}

// sync makes the name durable where folders can be synced; Windows has no such thing and needs none.
func (b *Backend) sync(name string) error {
	if b.unsynced || os.PathSeparator == '\\' {
		return nil
	}
	dir, _ := mounts.Split(name)
	d, err := b.root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
