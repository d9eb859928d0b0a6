package sftp

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Put implements mounts.Backend: a temporary file, then a rename.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (info mounts.Info, err error) {
	const op = "Put"
	if err := b.begin(ctx, op, true, name); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, refusal(op, name, fault.IsDir, nil)
	}
	err = b.run(ctx, op, name, false, func(w *wire) error {
		info, err = b.put(ctx, w, op, name, src, opt, b.beside.needed(name))
		return err // marked by put as one to try again or not
	})
	return info, err
}

// put stages src, in the Area or beside the target, and publishes it.
func (b *Backend) put(ctx context.Context, w *wire, op, name string, src io.Reader, opt mounts.PutOptions, beside bool) (mounts.Info, error) {
	s, err := b.stage(ctx, w, op, name, opt, beside)
	if err != nil {
		return mounts.Info{}, sent(err, false) // nothing has been read from src
	}
	u := b.newUpload(ctx, s, opt.Size)
	size, err := u.copy(src)
	if err == nil {
		err = u.finish(opt.ModTime, size)
	}
	u.end()
	if err == nil {
		err = s.publish(ctx, opt.Exclusive)
	}
	if errors.Is(err, errForeign) {
		info, err := b.relocate(ctx, w, op, s, opt, size)
		s.discard(ctx)
		return info, sent(err, true)
	}
	if err != nil {
		err = b.explain(ctx, w, op, name, err) // while the disk is as full as it was
		s.discard(ctx)
		return mounts.Info{}, sent(err, true)
	}
	_, base := mounts.Split(name)
	return s.result.info(base), nil
}

// sent says of a lost connection whether the call that failed may be tried again: when it was not sent, as a whole.
func sent(err error, sent bool) error {
	var l *lostError
	if errors.As(err, &l) {
		return &lostError{cause: l.cause, stalled: l.stalled, sent: sent}
	}
	return err
}

// errForeign says that a rename out of the Area failed although both ends look right: the target lies on another file system.
var errForeign = errors.New("the target lies on another file system than the Area")

// relocate puts a staged file, which could not be renamed, again beside its target.
func (b *Backend) relocate(ctx context.Context, w *wire, op string, s *staged, opt mounts.PutOptions, size int64) (mounts.Info, error) {
	dir, _ := mounts.Split(s.name)
	b.beside.add(dir)
	r, err := b.openPath(ctx, w, op, s.temp, s.name)
	if err != nil {
		return mounts.Info{}, err
	}
	defer r.Close()
	opt.Size = size
	return b.put(ctx, w, op, s.name, r, opt, true)
}

// staged is a temporary file that is being filled.
type staged struct {
	b      *Backend
	w      *wire
	op     string
	name   string       // of the target
	temp   string       // path of the file, "" when it is gone
	inArea bool         // and not beside the target
	handle string       // of the file
	dir    string       // handle of the target's folder, to sync it; "" when there is none
	exists bool         // the target, a file
	mode   *fs.FileMode // to be given to the file
	result attrs        // what the finished file is
}

// stage opens a temporary file, and looks at the target and at the folders on the way, in one flight where the Area exists.
func (b *Backend) stage(ctx context.Context, w *wire, op, name string, opt mounts.PutOptions, beside bool) (*staged, error) {
	s := &staged{b: b, w: w, op: op, name: name, inArea: !beside}
	dir, _ := mounts.Split(name)
	temp := tempDir + "/put-" + rand.Text()
	if beside {
		temp = mounts.Join(dir, tempPrefix+rand.Text())
	}
	s.temp = b.path(temp)
	var set wishes
	if opt.Mode != 0 {
		set.mode = &opt.Mode
		s.mode = &opt.Mode
	}
	g, area := b.guard(ctx, w, name), b.guard(ctx, w, temp)
	target := w.lstat(ctx, b.path(name))
	var folder *call
	if b.syncs() && b.orderly {
		folder = w.open(ctx, b.path(dir), openRead, wishes{})
	}
	open := func() *call { return w.open(ctx, s.temp, openWrite|openCreate|openExcl, set) }
	file := open()
	guarded, staging := g.wait(ctx), area.wait(ctx)
	a, missing := target.attrs(ctx)
	if folder != nil {
		s.dir, _ = folder.handle(ctx)
	}
	var err error
	s.handle, err = file.handle(ctx)
	if problem := s.refused(guarded, a, missing, opt.Exclusive); problem != nil {
		s.discard(ctx)
		return nil, problem
	}
	if s.exists {
		mode := fs.FileMode(a.mode & 0o777)
		s.mode = &mode
	}
	if !s.inArea || err == nil && staging == nil {
		if err != nil {
			s.discard(ctx)
			return nil, b.explain(ctx, w, op, name, err)
		}
		return s, nil
	}
	return b.stageAgain(ctx, s, set, opt, err, staging)
}

// refused says why name cannot be replaced.
func (s *staged) refused(guarded error, a attrs, missing error, exclusive bool) error {
	switch {
	case guarded != nil:
		return guarded
	case missing != nil && codeOf(missing) == codeNoSuchFile:
		return nil
	case missing != nil:
		return missing
	case exclusive && a.typ() != mounts.Dir:
		return refusal(s.op, s.name, fault.Exist, nil)
	}
	s.exists = true
	return plainFile(s.op, s.name, a)
}

// stageAgain is for an Area that is missing, which it makes, or of no use, where it stages beside the target.
func (b *Backend) stageAgain(ctx context.Context, s *staged, set wishes, opt mounts.PutOptions, err, staging error) (*staged, error) {
	if codeOf(staging) == codeNoSuchFile || staging == nil && codeOf(err) == codeNoSuchFile {
		private := fs.FileMode(0o700)
		first := s.w.mkdir(ctx, b.path(mounts.Area), wishes{})
		second := s.w.mkdir(ctx, b.path(tempDir), wishes{mode: &private})
		area := b.guard(ctx, s.w, tempDir+"/x")
		file := s.w.open(ctx, s.temp, openWrite|openCreate|openExcl, set)
		first.ok(ctx) // or somebody else just made it: the open tells
		second.ok(ctx)
		staging = area.wait(ctx)
		if s.handle, err = file.handle(ctx); err == nil && staging == nil {
			return s, nil
		}
	}
	s.discard(ctx)
	for _, e := range []error{err, staging} {
		if gone := new(lostError); ctx.Err() != nil || errors.As(e, &gone) {
			return nil, errors.Join(e, ctx.Err())
		}
	}
	b.logger.Debug("staging beside the target: the Area is of no use", "mount", b.name, "err", errors.Join(err, staging))
	b.beside.add(".")
	return b.stage(ctx, s.w, s.op, s.name, opt, true)
}

// syncs reports whether writes are made durable.
func (b *Backend) syncs() bool { return b.can[extFsync] && !b.unsynced }

// seal sends what makes the file complete, in order: its times, a sync, a question what it is now, and the close. It returns how to wait for
// the answers.
func (s *staged) seal(ctx context.Context, modTime time.Time) func(size int64) error {
	b, w := s.b, s.w
	var calls []*call
	if !modTime.IsZero() {
		times := [2]uint32{seconds(time.Now()), seconds(modTime)}
		calls = append(calls, w.setstat(ctx, typeFsetstat, s.handle, wishes{times: &times}))
	}
	if b.syncs() {
		calls = append(calls, w.extended(ctx, extFsync, s.handle))
	}
	stat := w.simple(ctx, typeFstat, s.handle)
	calls = append(calls, w.simple(ctx, typeClose, s.handle))
	s.handle = ""
	return func(size int64) error {
		a, err := stat.attrs(ctx)
		for _, c := range calls {
			if e := c.ok(ctx); err == nil {
				err = e
			}
		}
		if err == nil && a.length() >= 0 && a.length() != size {
			err = refusal(s.op, s.name, fault.Unavailable, errors.New("the server kept another number of bytes than it was given"))
		}
		if err == nil && modTime.IsZero() && a.flags&hasTimes != 0 {
			b.skew.Store(int64(time.Unix(int64(a.mtime), 0).Sub(time.Now().Truncate(time.Second))) | 1)
		}
		s.result = a
		return err
	}
}

// seconds is t as the protocol has it; what lies beyond is moved to the border.
func seconds(t time.Time) uint32 { return uint32(min(max(t.Unix(), 0), maxSeconds)) }

// publish gives the finished file its name.
func (s *staged) publish(ctx context.Context, exclusive bool) (err error) {
	b, w, path := s.b, s.w, s.b.path(s.name)
	changed := b.own.change(s.name)
	defer func() {
		if err != nil {
			changed(nil)
		} else {
			changed(&s.result)
		}
	}()
	switch {
	case exclusive:
		err = s.claim(ctx, path)
	case b.can[extRename]:
		done := w.extended(ctx, extRename, s.temp, path)
		if s.dir != "" {
			synced := w.extended(ctx, extFsync, s.dir)
			if err = done.ok(ctx); err == nil {
				err = synced.ok(ctx)
			} else {
				synced.forget()
			}
		} else {
			err = done.ok(ctx)
		}
	default:
		err = b.move(ctx, w, s.temp, path, s.exists)
	}
	if err == nil {
		s.temp = ""
		s.release()
		return nil
	}
	if codeOf(err) != codeFailure {
		return err
	}
	// The folder may have become something else since it was looked at, or lie on another file system.
	a, missing := w.lstat(ctx, path).attrs(ctx)
	if missing == nil && a.typ() == mounts.Dir {
		return refusal(s.op, s.name, fault.IsDir, nil)
	}
	if s.inArea && (missing == nil || codeOf(missing) == codeNoSuchFile) {
		return errForeign
	}
	return err
}

// claim gives the file a name that nobody has. OpenSSH's plain rename does that in one step, as a link; other servers' may replace, so there
// the name is taken by a link, or by an empty file that is then replaced.
func (s *staged) claim(ctx context.Context, path string) error {
	b, w := s.b, s.w
	if b.orderly {
		done := w.simple(ctx, typeRename, s.temp, path)
		if s.dir == "" {
			return b.claimed(ctx, w, s, done.ok(ctx))
		}
		synced := w.extended(ctx, extFsync, s.dir)
		err := b.claimed(ctx, w, s, done.ok(ctx))
		if err != nil {
			synced.forget()
			return err
		}
		return synced.ok(ctx)
	}
	if b.can[extLink] {
		err := w.extended(ctx, extLink, s.temp, path).ok(ctx)
		if err == nil {
			return w.simple(ctx, typeRemove, s.temp).ok(ctx)
		}
		if err = b.claimed(ctx, w, s, err); codeOf(err) != codeFailure && codeOf(err) != codeUnsupported && codeOf(err) != codeDenied {
			return err
		}
	}
	handle, err := w.open(ctx, path, openWrite|openCreate|openExcl, wishes{}).handle(ctx)
	if err != nil {
		return b.claimed(ctx, w, s, err)
	}
	err = w.simple(ctx, typeClose, handle).ok(ctx)
	if err == nil {
		err = b.move(ctx, w, s.temp, path, true)
	}
	if err != nil {
		<-b.clean(func(ctx context.Context, w *wire) error { return w.simple(ctx, typeRemove, path).ok(ctx) })
	}
	return err
}

// claimed turns a refusal into Exist where the name is taken.
func (b *Backend) claimed(ctx context.Context, w *wire, s *staged, err error) error {
	if code := codeOf(err); err == nil || code != codeFailure && code != codeExists {
		return err
	}
	if _, there := w.lstat(ctx, b.path(s.name)).attrs(ctx); there == nil {
		return refusal(s.op, s.name, fault.Exist, nil)
	}
	return err
}

// release closes the folder's handle.
func (s *staged) release() {
	if s.dir != "" {
		s.w.closeHandle(s.dir)
		s.dir = ""
	}
}

// discard removes the temporary file: at once, or behind the back of a caller who went away.
func (s *staged) discard(ctx context.Context) {
	s.release()
	// Where the answer to its open was lost, the server may still be about to carry that out, at the end of a connection that is gone.
	late := s.handle == "" && s.result == attrs{} && s.w.dead()
	if s.handle != "" {
		s.w.closeHandle(s.handle)
		s.handle = ""
	}
	if s.temp == "" {
		return
	}
	temp := s.temp
	done := s.b.clean(func(ctx context.Context, w *wire) error {
		if !s.w.dead() { // there the request comes after an open that may still be under way
			w = s.w
		}
		err := w.simple(ctx, typeRemove, temp).ok(ctx)
		if late && codeOf(err) == codeNoSuchFile {
			select {
			case <-time.After(lateOpen):
				err = w.simple(ctx, typeRemove, temp).ok(ctx)
			case <-ctx.Done():
			}
		}
		return err
	})
	if late {
		return
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// lateOpen is how long a server is given to carry out what lay in its buffers when the connection broke.
const lateOpen = 500 * time.Millisecond

// besideAge is how long the Area is not tried again after it was of no use.
const besideAge = 10 * time.Minute

// beside remembers for which folders temporary files have to lie beside their targets.
type beside struct {
	mu    sync.Mutex
	until map[string]time.Time // guarded by mu; by folder
}

func (s *beside) needed(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.until) == 0 {
		return false
	}
	now := time.Now()
	for dir := name; dir != "."; {
		if dir, _ = mounts.Split(dir); now.Before(s.until[dir]) {
			return true
		}
	}
	return false
}

// add remembers a folder and what is below it; "." is all.
func (s *beside) add(dir string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil || len(s.until) > 1000 {
		s.until = map[string]time.Time{}
	}
	s.until[dir] = time.Now().Add(besideAge)
}
