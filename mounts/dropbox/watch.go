package dropbox

import (
	"context"
	"encoding/hex"
	"errors"
	"iter"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Hash implements mounts.Hasher for "dropbox", the content_hash of Dropbox: the SHA-256 of the SHA-256 digests of blocks of 4 MiB.
func (b *Backend) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	if err := b.begin(ctx, "Hash", name, false); err != nil {
		return nil, err
	}
	if algo != "dropbox" {
		return nil, fault.New("mounts/dropbox.Hash", name, fault.Unsupported, errors.New("the only digest there is has the name dropbox"))
	}
	if name == "." {
		return nil, fault.New("mounts/dropbox.Hash", name, fault.IsDir, nil)
	}
	m, info, err := b.metadata(ctx, "Hash", name)
	if err != nil {
		return nil, err
	}
	file, ok := m.(*files.FileMetadata)
	if !ok || info.Type != mounts.File {
		return nil, fault.New("mounts/dropbox.Hash", name, fault.IsDir, nil)
	}
	sum, err := hex.DecodeString(file.ContentHash)
	if err != nil || len(sum) != 32 {
		return nil, fail("Hash", name, errAnswer)
	}
	return sum, nil
}

// Space implements mounts.Spacer: that of the account, or of its team where it shares the room.
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return mounts.Space{}, err
	}
	u, err := b.users.GetSpaceUsageContext(ctx)
	if err != nil {
		return mounts.Space{}, fail("Space", "", err)
	}
	if u == nil {
		return mounts.Space{}, fail("Space", "", errAnswer)
	}
	used, total := u.Used, uint64(math.MaxUint64)
	if a := u.Allocation; a != nil && a.Individual != nil {
		total = a.Individual.Allocated
	} else if a != nil && a.Team != nil {
		used, total = a.Team.Used, a.Team.Allocated
		if own := a.Team.UserWithinTeamSpaceAllocated; own > 0 && own < total {
			used, total = u.Used, own
		}
	}
	s := mounts.Space{Total: -1, Used: int64(min(used, math.MaxInt64)), Free: -1}
	if total <= math.MaxInt64 {
		s.Total = int64(total)
		s.Free = max(s.Total-s.Used, 0)
	}
	return s, nil
}

var errMissed = errors.New("the cursor was lost, so changes may have been missed")

const (
	watchRest     = time.Second // after a first failure, doubled with each
	watchRestMost = time.Minute
)

// Watch implements mounts.Watcher with a cursor over everything and Dropbox's long polling. What this backend did itself is left out, as far
// as it is sure that nobody else had a part in it. While Dropbox cannot be reached it tries again; the cursor stays good, so nothing is
// missed by that. What does not pass by itself, such as a revoked token, is yielded once.
func (b *Backend) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		if err := b.begin(ctx, "Watch", ".", false); err != nil {
			yield(mounts.Change{}, err)
			return
		}
		ctx, cancel := context.WithCancel(ctx)
		var closing sync.WaitGroup
		defer closing.Wait()
		defer cancel()
		closing.Go(func() {
			select {
			case <-b.done:
				cancel()
			case <-ctx.Done():
			}
		})
		w := watch{b: b, yield: yield}
		for ctx.Err() == nil && !w.stopped {
			err := w.step(ctx)
			if err == nil {
				w.failures, w.told = 0, false
				continue
			}
			if ctx.Err() != nil {
				return
			}
			w.failed(err)
			select {
			case <-ctx.Done():
			case <-time.After(min(watchRest<<min(w.failures-1, 10), watchRestMost)):
			}
		}
	}
}

// watch is one watch on its way.
type watch struct {
	b        *Backend
	yield    func(mounts.Change, error) bool
	stopped  bool // the caller has enough
	cursor   string
	lost     bool // Dropbox gave the cursor up: to be told once there is a new one
	failures int  // in a row
	told     bool
}

// failed decides whether an error is worth telling.
func (w *watch) failed(err error) {
	w.failures++
	passing := fault.KindOf(err) == fault.Unavailable || fault.KindOf(err) == fault.Timeout || fault.KindOf(err) == fault.Busy
	w.b.logger.Debug("watch failed", "err", err)
	if !passing && !w.told {
		w.told = true
		w.stopped = !w.yield(mounts.Change{}, err)
	}
}

// step waits for changes and yields them.
func (w *watch) step(ctx context.Context) error {
	if w.cursor == "" {
		arg := files.NewListFolderArg(w.b.root)
		arg.Recursive, arg.IncludeDeleted = true, true
		res, err := w.b.files.ListFolderGetLatestCursorContext(ctx, arg)
		if err == nil && res == nil {
			err = errAnswer
		}
		if err != nil {
			return fail("Watch", "", err)
		}
		w.cursor = res.Cursor
	}
	if w.lost {
		w.lost = false
		w.stopped = !w.yield(mounts.Change{}, fault.New("mounts/dropbox.Watch", "", fault.Unavailable, errMissed))
		return nil
	}
	arg := files.NewListFolderLongpollArg(w.cursor)
	arg.Timeout = uint64(longpoll / time.Second)
	res, err := w.b.files.ListFolderLongpollContext(ctx, arg)
	if err == nil && res == nil {
		err = errAnswer
	}
	if err != nil {
		return w.reset(err)
	}
	if res.Changes {
		if err := w.changes(ctx); err != nil {
			return err
		}
	}
	if res.Backoff > 0 { // Dropbox asks not to come back sooner
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(min(res.Backoff, 600)) * time.Second):
		}
	}
	return nil
}

// changes yields all there are since the cursor.
func (w *watch) changes(ctx context.Context) error {
	for more, empty := true, 0; more && !w.stopped && ctx.Err() == nil; {
		asked := time.Now()
		page, err := w.b.files.ListFolderContinueContext(ctx, files.NewListFolderContinueArg(w.cursor))
		if err == nil && page == nil {
			err = errAnswer
		}
		if err != nil {
			return w.reset(err)
		}
		w.cursor, more = page.Cursor, page.HasMore
		if empty++; len(page.Entries) > 0 {
			empty = 0
		}
		if empty > emptyMost {
			return fail("Watch", "", errAnswer)
		}
		settling, stop := context.WithTimeout(ctx, settleMost)
		last := make(map[string]files.IsMetadata, len(page.Entries)) // by path in lower case: what it is in the end
		for _, m := range page.Entries {
			if name, ok := w.b.changed(m); ok {
				last[strings.ToLower(name)] = m
				w.b.seen.settle(w.b.path(name), settling.Done())
			}
		}
		stop()
		for _, m := range page.Entries {
			name, ok := w.b.changed(m)
			if ok && !w.stopped && m == last[strings.ToLower(name)] && !w.b.seen.ours(w.b.path(name), m, asked) {
				w.stopped = !w.yield(mounts.Change{Name: name}, nil)
			}
		}
	}
	return nil
}

// reset begins anew when Dropbox has lost the cursor, and passes other errors.
func (w *watch) reset(err error) error {
	if _, lost := refusedWith(err, "reset"); !lost {
		return fail("Watch", "", err)
	}
	w.cursor, w.lost = "", true
	w.b.seen.forget()
	return nil
}

// changed returns the name that an entry of a cursor is about. Its case is that which Dropbox shows, which may be another than that of a
// listing in the segments before the last.
func (b *Backend) changed(m files.IsMetadata) (string, bool) {
	var meta files.Metadata
	switch m := m.(type) {
	case *files.FileMetadata:
		if m == nil {
			return "", false
		}
		meta = m.Metadata
	case *files.FolderMetadata:
		if m == nil {
			return "", false
		}
		meta = m.Metadata
	case *files.DeletedMetadata:
		if m == nil {
			return "", false
		}
		meta = m.Metadata
	default:
		return "", false
	}
	path := meta.PathDisplay
	if path == "" {
		path = meta.PathLower
	}
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	if len(segments) < b.depth || meta.Name != "" && hidden(meta.Name) {
		return "", false
	}
	name := strings.Join(segments[b.depth:], "/")
	if name == "" {
		name = "."
	}
	return name, mounts.ValidPath(name) == nil
}
