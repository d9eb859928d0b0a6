package dropbox

import (
	"context"
	"errors"
	"hash/fnv"
	"hash/maphash"
	"iter"
	"math"
	"net/http"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Stat implements mounts.Backend. The name in the Info is written as Dropbox has it.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	return b.stat(ctx, "Stat", name)
}

func (b *Backend) stat(ctx context.Context, op, name string) (mounts.Info, error) {
	if b.path(name) == "" { // Dropbox has no metadata of its root; a look at it tells whether it can be reached
		if _, err := b.list(ctx, op, name, 1); err != nil {
			return mounts.Info{}, err
		}
		return mounts.Info{Name: ".", Type: mounts.Dir}, nil
	}
	_, info, err := b.metadata(ctx, op, name)
	return info, err
}

// metadata asks for one name. The metadata is never nil, nor that of something deleted.
func (b *Backend) metadata(ctx context.Context, op, name string) (files.IsMetadata, mounts.Info, error) {
	m, err := b.files.GetMetadataContext(ctx, files.NewGetMetadataArg(b.path(name)))
	if err != nil {
		if _, missing := refusedWith(err, "not_found"); missing {
			b.seen.told(b.path(name), nil)
		}
		return nil, mounts.Info{}, fail(op, name, err)
	}
	info, ok := describe(m)
	if !ok {
		return nil, mounts.Info{}, fail(op, name, errAnswer)
	}
	b.seen.told(b.path(name), m)
	if name == "." {
		info.Name = "."
	}
	if info.IsDir() {
		b.folders.learn(b.path(name))
	}
	return m, info, nil
}

// describe turns metadata into an Info. It fails for what is no file or folder, or has a name that none may have.
func describe(m files.IsMetadata) (mounts.Info, bool) {
	switch m := m.(type) {
	case *files.FolderMetadata:
		if m == nil || mounts.ValidName(m.Name) != nil {
			return mounts.Info{}, false
		}
		return mounts.Info{Name: m.Name, Type: mounts.Dir, ID: number(m.Id)}, true
	case *files.FileMetadata:
		if m == nil || mounts.ValidName(m.Name) != nil || m.Size > math.MaxInt64 {
			return mounts.Info{}, false
		}
		i := mounts.Info{Name: m.Name, Type: mounts.File, Size: int64(m.Size), ModTime: time.Time(m.ClientModified).UTC(), ID: number(m.Id), Tag: m.Rev}
		switch {
		case m.SymlinkInfo != nil:
			i.Type, i.Size, i.Target = mounts.Symlink, 0, m.SymlinkInfo.Target
		case m.ExportInfo != nil:
			i.Type, i.Size = mounts.Other, 0
		}
		return i, true
	}
	return mounts.Info{}, false
}

// number makes a stable number of an id such as "id:a4ayc_80_OEAAAAAAAAAXw".
func number(id string) uint64 {
	if id == "" {
		return 0
	}
	h := fnv.New64a()
	h.Write([]byte(id))
	return max(h.Sum64(), 1)
}

const (
	page      = 2000    // entries, the most that Dropbox gives at a time
	seenMost  = 1 << 18 // entries of one listing that are remembered, so that none comes twice
	emptyMost = 100     // pages without an entry, one after the other
	resetMost = 3
)

// list asks for the first page of a folder.
func (b *Backend) list(ctx context.Context, op, dir string, limit uint32) (*files.ListFolderResult, error) {
	arg := files.NewListFolderArg(b.path(dir))
	arg.Limit = limit
	res, err := b.files.ListFolderContext(ctx, arg)
	if err == nil && res == nil {
		err = errAnswer
	}
	if err != nil {
		return nil, fail(op, dir, err)
	}
	b.folders.learn(b.path(dir))
	return res, nil
}

// List implements mounts.Backend. Dropbox tells of changes made meanwhile on the later pages, so entries of a listing with several pages are
// remembered in 8 bytes each, up to a bound.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir, false); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		l := lister{b: b, dir: dir, seed: maphash.MakeSeed()}
		res, err := b.list(ctx, "List", dir, page)
		for err == nil {
			if !l.page(res, yield) || !res.HasMore {
				return
			}
			res, err = l.next(ctx, res.Cursor)
		}
		yield(mounts.Info{}, err)
	}
}

// lister is one listing on its way.
type lister struct {
	b      *Backend
	dir    string
	seed   maphash.Seed
	seen   map[uint64]struct{} // nil while there is one page only
	empty  int                 // pages without entries in a row
	resets int
}

// page yields what is new in res, and returns false when the caller has enough.
func (l *lister) page(res *files.ListFolderResult, yield func(mounts.Info, error) bool) bool {
	if res.HasMore && l.seen == nil {
		l.seen = map[uint64]struct{}{}
	}
	if l.empty++; len(res.Entries) > 0 {
		l.empty = 0
	}
	for _, m := range res.Entries {
		info, ok := describe(m)
		if !ok || hidden(info.Name) {
			continue
		}
		if l.seen != nil {
			key := maphash.String(l.seed, info.Name)
			if _, twice := l.seen[key]; twice {
				continue
			}
			if len(l.seen) < seenMost {
				l.seen[key] = struct{}{}
			}
		}
		if !res.HasMore && l.seen == nil { // of large folders the revs would push out all others
			l.b.seen.told(l.b.path(mounts.Join(l.dir, info.Name)), m)
		}
		if !yield(info, nil) {
			return false
		}
	}
	return true
}

var errEndless = errors.New("page after page comes without an entry")

// next asks for another page. A cursor that has ended means to begin again, without what was yielded already.
func (l *lister) next(ctx context.Context, cursor string) (*files.ListFolderResult, error) {
	if err := l.b.begin(ctx, "List", l.dir, false); err != nil {
		return nil, err
	}
	if l.empty > emptyMost {
		return nil, fault.New("mounts/dropbox.List", l.dir, fault.Unavailable, errEndless)
	}
	res, err := l.b.files.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(cursor))
	if _, reset := refusedWith(err, "reset"); reset && l.resets < resetMost && len(l.seen) < seenMost {
		l.resets++
		return l.b.list(ctx, "List", l.dir, page)
	}
	if err == nil && res == nil {
		err = errAnswer
	}
	return res, fail("List", l.dir, err)
}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New("mounts/dropbox.Mkdir", name, fault.Exist, nil)
	}
	if err := b.parent(ctx, "Mkdir", name); err != nil {
		return fault.Wrap("mounts/dropbox.Mkdir", name, err)
	}
	defer b.seen.changing(b.path(name))()
	res, err := b.files.CreateFolderV2Context(ctx, files.NewCreateFolderArg(b.path(name)))
	if err != nil {
		return fail("Mkdir", name, err)
	}
	if res != nil && res.Metadata != nil {
		b.seen.did(b.path(name), res.Metadata)
	}
	b.folders.learn(b.path(name))
	return nil
}

// Remove implements mounts.Backend. A file is removed by its rev, which no folder has; where that is not known, or another by now, Dropbox is
// asked what there is. Whether a folder is empty is asked before.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New("mounts/dropbox.Remove", name, fault.Invalid, errRoot)
	}
	path := b.path(name)
	var refused string // rev
	var no *refusal
	for range removals {
		rev := b.seen.rev(path)
		if rev == "" && !b.folders.know(path) {
			_, info, err := b.metadata(ctx, "Remove", name)
			if err != nil {
				return err
			}
			if !info.IsDir() {
				rev = info.Tag
			}
		}
		if rev == "" {
			empty, err := b.empty(ctx, name)
			switch {
			case fault.KindOf(err) == fault.NotDir:
				b.folders.forget(path)
				continue
			case err != nil:
				return err
			case !empty:
				return fault.New("mounts/dropbox.Remove", name, fault.NotEmpty, nil)
			}
			return fail("Remove", name, b.remove(ctx, name, ""))
		}
		if rev == refused { // it was not for the rev
			return fail("Remove", name, no)
		}
		err := b.remove(ctx, name, rev)
		if !errors.As(err, &no) || no.status != http.StatusConflict || no.has("not_found") {
			return fail("Remove", name, err)
		}
		refused = rev
		b.seen.told(path, nil) // it has another rev, or is a folder now
	}
	return fault.New("mounts/dropbox.Remove", name, fault.Busy, errRivals)
}

const removals = 5 // tries, while others change the file

// empty reports whether the folder name has no entries. Those that List leaves out count.
func (b *Backend) empty(ctx context.Context, name string) (bool, error) {
	res, err := b.list(ctx, "Remove", name, 1)
	for pages := 0; err == nil; pages++ {
		for _, m := range res.Entries {
			if _, gone := m.(*files.DeletedMetadata); !gone {
				return false, nil
			}
		}
		if !res.HasMore {
			return true, nil
		}
		if pages > emptyMost {
			return false, fault.New("mounts/dropbox.Remove", name, fault.Unavailable, errEndless)
		}
		res, err = b.files.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(res.Cursor))
		if err == nil && res == nil {
			err = errAnswer
		}
		err = fail("Remove", name, err)
	}
	return false, err
}

// remove deletes name, whatever it is, or with a rev only the file that has it. It returns Dropbox's error as it is.
func (b *Backend) remove(ctx context.Context, name, rev string) error {
	path := b.path(name)
	arg := files.NewDeleteArg(path)
	arg.ParentRev = rev
	if rev == "" {
		b.folders.forget(path)
	}
	defer b.seen.changing(path)()
	res, err := b.files.DeleteV2Context(ctx, arg)
	if rev == "" {
		b.folders.forget(path)
	}
	if err == nil && (res == nil || res.Metadata == nil) {
		err = errAnswer
	}
	if _, missing := refusedWith(err, "not_found"); missing {
		b.seen.told(path, nil)
	} else if err == nil {
		b.seen.did(path, nil)
	}
	return err
}

// Purge implements mounts.Purger. A tree that is too large for Dropbox to delete at once is Unsupported: the caller does it by hand.
func (b *Backend) Purge(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Purge", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New("mounts/dropbox.Purge", name, fault.Invalid, errRoot)
	}
	return fail("Purge", name, b.remove(ctx, name, ""))
}
