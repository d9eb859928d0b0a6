package smb

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Put implements mounts.Backend: the content goes to a temporary file in the Area, which is then renamed.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "Put", name, true); err != nil {
		return mounts.Info{}, err
	}
	return b.put(ctx, "Put", name, opt, func(ctx context.Context, t *temp) error { return t.fill(ctx, src, opt.Size) })
}

// put makes the file name of what fill writes to a temporary file.
func (b *Backend) put(ctx context.Context, op, name string, opt mounts.PutOptions, fill func(ctx context.Context, t *temp) error) (mounts.Info, error) {
	if name == "." {
		return mounts.Info{}, fault.New("mounts/smb."+op, name, fault.IsDir, nil)
	}
	path, err := b.path(ctx, op, name, true)
	if err != nil {
		return mounts.Info{}, err
	}
	t := &temp{b: b, target: path, looked: make(chan none), opened: make(chan none)}
	if !b.spawn(func() { t.look(ctx, opt.Exclusive) }) || !b.spawn(func() { t.open(ctx) }) {
		return mounts.Info{}, b.fail(op, name, errClosed)
	}
	info, err := t.publish(ctx, opt, fill)
	if err != nil {
		kind := kindOf(err)
		t.discard(ctx, kind != fault.Timeout && kind != fault.Unavailable)
		var f *fault.Error
		if errors.As(err, &f) {
			return mounts.Info{}, fault.Wrap("mounts/smb."+op, name, err)
		}
		return mounts.Info{}, b.fail(op, name, err)
	}
	_, info.Name = mounts.Split(name)
	return info, nil
}

// temp is a temporary file on its way to its target.
type temp struct {
	b      *Backend
	target string

	looked  chan none // closed when lookErr is valid
	lookErr error     // why the target cannot be put

	opened  chan none // closed when what follows is valid
	openErr error
	path    string
	f       *handle

	writes sync.WaitGroup // under way
}

// look finds out whether the target may be put, while the content is on its way.
func (t *temp) look(ctx context.Context, exclusive bool) {
	defer close(t.looked)
	old, err := t.b.lstat(ctx, t.target)
	switch {
	case err != nil:
		if kindOf(err) != fault.NotExist { // it may be the folder that is missing: the rename will tell
			t.lookErr = err
		}
	case exclusive:
		t.lookErr = os.ErrExist
	case old.IsDir():
		t.lookErr = failure{fault.IsDir, "is a folder"}
	case old.Type != mounts.File:
		t.lookErr = errLink
	}
}

// verdict returns what look found, if it has.
func (t *temp) verdict() error {
	select {
	case <-t.looked:
		return t.lookErr
	default:
		return nil
	}
}

// open makes the temporary file: in the Area, or beside the target where the Area cannot be had. It goes on when ctx ends, so that what it makes
// is known and can be removed; the watch of the session ends it.
func (t *temp) open(ctx context.Context) {
	defer close(t.opened)
	ctx = context.WithoutCancel(ctx)
	b := t.b
	create := func(path string) (err error) {
		t.path = path
		excl := os.O_EXCL
		for range 2 {
			var s *session
			if s, err = b.data.get(ctx); err == nil {
				t.f, err = s.open(ctx, path, os.O_RDWR|os.O_CREATE|excl)
			}
			if !expired(err) && !lost(err) {
				break
			}
			excl = 0 // it may have been made; nobody else knows its name
		}
		return err
	}
	if !b.beside.Load() {
		dir, _ := encodePath(b.cfg.root, tempInDir)
		t.openErr = create(dir + `\put-` + random())
		if kindOf(t.openErr) == fault.NotExist {
			area, _ := encodePath(b.cfg.root, mounts.Area)
			for _, folder := range []string{area, dir} {
				if t.openErr = b.mkdir(ctx, folder); errors.Is(t.openErr, os.ErrExist) {
					t.openErr = nil
				}
				if t.openErr != nil {
					break
				}
			}
			if t.openErr == nil {
				t.openErr = create(dir + `\put-` + random())
			}
		}
		switch kindOf(t.openErr) {
		case fault.Denied, fault.NotDir, fault.NotExist:
		default:
			return
		}
	}
	if err := create(t.besidePath()); t.openErr == nil || err == nil {
		b.beside.Store(true)
		t.openErr = err
	}
}

func (t *temp) besidePath() string {
	for i := len(t.target) - 1; i >= 0; i-- {
		if t.target[i] == '\\' {
			return t.target[:i+1] + tempName + random()
		}
	}
	return tempName + random()
}

// ready waits for the temporary file.
func (t *temp) ready(ctx context.Context) error {
	select {
	case <-t.opened:
		return t.openErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// publish fills the file, gives it its name and returns what it is then.
func (t *temp) publish(ctx context.Context, opt mounts.PutOptions, fill func(ctx context.Context, t *temp) error) (mounts.Info, error) {
	b := t.b
	err := fill(ctx, t)
	var stat *later[*smb2.FileStat]
	if err == nil {
		stat, err = t.finish(ctx, opt.ModTime)
	}
	if err != nil {
		return mounts.Info{}, err
	}
	select {
	case <-t.looked:
	case <-ctx.Done():
		return mounts.Info{}, ctx.Err()
	}
	if t.lookErr != nil {
		return mounts.Info{}, t.lookErr
	}
	if opt.Exclusive {
		unlock, err := b.name(ctx, t.target)
		if err != nil {
			return mounts.Info{}, err
		}
		defer unlock()
		t.looked = make(chan none)
		if t.look(ctx, true); t.lookErr != nil { // once more: the content may have taken hours to come
			return mounts.Info{}, t.lookErr
		}
	}
	err = b.rename(ctx, t.path, t.target, t.f.s)
	moved := kindOf(err) == fault.Unsupported && !b.beside.Swap(true) // to another disk
	if moved {
		err = t.move(ctx, opt)
	}
	if err != nil {
		return mounts.Info{}, t.explain(ctx, err)
	}
	t.path = ""
	if stat, err := stat.wait(ctx); err == nil && !moved && stat.FileAttributes&(attrDir|attrReparse) == 0 {
		if info := infoOf(stat, ""); info.Change == 0 { // else renaming has moved it
			return info, nil
		}
	}
	return b.lstat(ctx, t.target)
}

// explain says in our terms why a rename failed: servers say "access denied" of a folder at the target.
func (t *temp) explain(ctx context.Context, err error) error {
	if kind := kindOf(err); kind == fault.Denied || kind == fault.Exist || kind == fault.Invalid {
		if info, e := t.b.lstat(ctx, t.target); e == nil && info.IsDir() {
			return failure{fault.IsDir, "is a folder"}
		}
	}
	return err
}

// move takes the content to a temporary file beside the target, and renames that.
func (t *temp) move(ctx context.Context, opt mounts.PutOptions) error {
	next := &temp{b: t.b, target: t.target, opened: make(chan none)}
	next.open(ctx)
	r, err := with(ctx, t.b.data, true, func(s *session) (*reader, error) { return s.reader(ctx, t.path, t.path, 0, -1) })
	if err == nil {
		err = next.fill(ctx, r, r.info.Size)
		r.Close()
	} else {
		next.ready(ctx)
	}
	if err == nil {
		_, err = next.finish(ctx, opt.ModTime)
	}
	if err == nil {
		err = t.b.rename(ctx, next.path, t.target, next.f.s)
	}
	if err != nil {
		next.discard(ctx, true)
		return err
	}
	return t.b.remove(ctx, t.path)
}

// fill writes what src yields, some blocks at a time, and expects size bytes unless that is negative. It stops at the first thing that goes wrong.
func (t *temp) fill(ctx context.Context, src io.Reader, size int64) error {
	var mu sync.Mutex
	var failed error // guarded by mu
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if failed == nil {
			failed = err
		}
	}
	trouble := func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.verdict(); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		return failed
	}
	under, written := 0, make(chan none, ahead)
	counted := false
	defer func() {
		if counted {
			t.b.streams.Add(-1)
		}
	}()
	for off, end := int64(0), false; !end; {
		if off > 0 && !counted {
			counted = true
			t.b.streams.Add(1)
		}
		for ; under >= t.b.window(); under-- {
			select {
			case <-written:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		buf := blocks.Get().(*[block]byte)
		n, err := readBlock(src, buf[:], trouble)
		if end = err == io.EOF; !end && err != nil {
			blocks.Put(buf)
			return err
		}
		if size >= 0 && (off+int64(n) > size || end && off+int64(n) < size) {
			blocks.Put(buf)
			return errLength
		}
		if n == 0 {
			blocks.Put(buf)
			continue
		}
		if err := t.ready(ctx); err != nil {
			blocks.Put(buf)
			return err
		}
		at := off
		off += int64(n)
		under++
		t.writes.Add(1)
		if !t.b.spawn(func() {
			defer t.writes.Done()
			if _, err := t.f.writeAt(buf[:n], at); err != nil {
				fail(err)
			}
			blocks.Put(buf)
			written <- none{}
		}) {
			t.writes.Done()
			return errClosed
		}
	}
	if err := t.ready(ctx); err != nil {
		return err
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	return trouble()
}

// settle waits for the writes under way.
func (t *temp) settle(ctx context.Context) error {
	settled := make(chan none)
	if !t.b.spawn(func() { t.writes.Wait(); close(settled) }) {
		return errClosed
	}
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readBlock fills p from src, and asks for trouble before each read.
func readBlock(src io.Reader, p []byte, trouble func() error) (n int, err error) {
	for n < len(p) && err == nil {
		if err := trouble(); err != nil {
			return n, err
		}
		var m int
		m, err = src.Read(p[n:])
		n += m
	}
	if err != nil && err != io.EOF {
		err = fault.Wrap("mounts/smb.Put", "", err)
	}
	return n, err
}

// finish makes the content durable, closes the file and sets its time. What the file is then, stat, is asked for while it gets its name: under its
// own while it has that, else under the target's. For what has been made durable and needs no other time, finish does not wait for the close either:
// the server renames no file that is open for writing.
func (t *temp) finish(ctx context.Context, modified time.Time) (stat *later[*smb2.FileStat], err error) {
	path, synced := t.path, !t.b.cfg.unsynced
	ask := func() (*smb2.FileStat, error) {
		stat, err := t.b.lstatRaw(ctx, path)
		if kindOf(err) == fault.NotExist { // renamed
			stat, err = t.b.lstatRaw(ctx, t.target)
		}
		return stat, err
	}
	if synced {
		if _, err := useOn(ctx, t.f, small, func(f *smb2.File) (none, error) { return none{}, f.Sync() }); err != nil {
			return nil, err
		}
	}
	if synced && modified.IsZero() {
		sent := t.f.s.link.sent()
		stat := start(t.b, func() (*smb2.FileStat, error) {
			if err := t.f.close(); err != nil { // which is when servers set the time
				return nil, err
			}
			return ask()
		})
		select {
		case <-sent: // most likely the close: what is sent from now on comes after it
		case <-stat.done:
		}
		return stat, nil
	}
	if _, err := leaving(ctx, t.b, func() (none, error) { return none{}, t.f.close() }, nil); err != nil {
		return nil, err
	}
	if !modified.IsZero() {
		if err := t.b.setTime(ctx, path, time.Now(), modified); err != nil {
			return nil, err
		}
	}
	return start(t.b, ask), nil
}

// discard removes the temporary file, in 5 seconds at most: in the background when ctx has ended, or without wait.
func (t *temp) discard(ctx context.Context, wait bool) {
	clean := func() {
		defer t.b.tidy.Done()
		<-t.opened
		t.writes.Wait()
		if t.f != nil {
			t.f.close()
		}
		if kind := kindOf(t.openErr); t.path == "" || t.openErr != nil && kind != fault.Unavailable && kind != fault.Timeout {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := t.b.remove(ctx, t.path); err != nil && kindOf(err) != fault.NotExist {
			t.b.logger.Warn("a temporary file stays", "mount", t.b.cfg.name, "path", t.path, "err", err)
		}
	}
	cleaned := make(chan none)
	t.b.mu.Lock()
	closed := t.b.closed
	if !closed {
		t.b.tidy.Add(1)
		t.b.work.Go(func() { clean(); close(cleaned) })
	}
	t.b.mu.Unlock()
	if closed || !wait {
		return
	}
	select {
	case <-cleaned:
	case <-ctx.Done():
	}
}
