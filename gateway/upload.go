package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/gateway/event"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// CreateOptions are the wishes that travel with a new file content.
type CreateOptions struct {
	Size      int64     // declared length, -1 unknown; a body of another length is Invalid and publishes nothing
	ModTime   time.Time // zero: when it is published
	Cond      Cond
	Exclusive bool   // fail with Exist when the name is taken
	Expect    bool   // the client waits to hear whether it shall send the body (RFC 9110 §10.1.1): then even a small one is judged before
	Checksum  string // what the content must have: "SHA1:hex", "MD5:…", "SHA256:…", "CRC32C:…", "ADLER32:…"; several separated by spaces
}

// Upload is new content of one file on its way. Nothing of it is seen until Commit succeeds; closing without Commit is Abort. Write and
// ReadFrom append and are for one goroutine; WriteAt may be called concurrently. After Commit or Abort every call fails with Invalid.
type Upload struct {
	o    *op
	opt  CreateOptions
	acts []policy.Action // of which one was allowed at begin

	file   mounts.RandomFile // staged on the backend, or else
	staged string            // its name there
	far    *outbound         // on its way across a network
	sums   *sums
	quota  *hold

	next int64        // where Write goes on
	size atomic.Int64 // highest byte written

	mu   sync.Mutex
	over bool  // guarded by mu
	held int64 // staged bytes on the user's budget, guarded by mu
}

var errOver = errors.New("the upload has ended")

// smallBody is up to what size a body is judged once, at Commit, instead of early and again: it is there as soon as the answer would be.
const smallBody = 64 << 10

// early reports whether the upload is judged before its body.
func (opt CreateOptions) early() bool { return opt.Expect || opt.Size < 0 || opt.Size > smallBody }

// Create begins to replace or make the file p. The right to do so is asked at once; for all but small bodies so are locks, preconditions and
// quota, so that nothing is sent in vain. Everything is asked again at Commit.
func (s *Session) Create(ctx context.Context, p Path, opt CreateOptions) (_ *Upload, err error) {
	o, err := s.coming(opt.Size).begin(ctx, verbCreate, p, policy.Create, policy.Modify)
	if err != nil {
		return nil, err
	}
	u, err := o.upload(ctx, opt)
	if err != nil {
		o.end(&err)
		return nil, err
	}
	return u, nil
}

func (o *op) upload(ctx context.Context, opt CreateOptions) (*Upload, error) {
	u := &Upload{o: o, opt: opt, acts: []policy.Action{policy.Create, policy.Modify}}
	var err error
	if u.sums, err = newSums(opt.Checksum); err != nil {
		return nil, err
	}
	var cur mounts.Info
	var exists bool
	if opt.early() {
		if cur, exists, err = u.judge(ctx); err != nil {
			return nil, err
		}
	}
	if err = o.s.core.budget.open(); err != nil {
		u.quota.release()
		return nil, err
	}
	if !o.m.stages {
		u.far = o.outbound(opt)
		u.far.expect(u, cur, exists)
		return u, nil
	}
	if u.file, u.staged, err = o.stage(ctx, o.m); err != nil {
		u.quota.release()
		o.s.core.budget.close()
		return nil, err
	}
	return u, nil
}

// judge looks at what is at the target now and asks all that can be asked: type, rights, preconditions, locks, the folder, quota.
func (u *Upload) judge(ctx context.Context) (cur mounts.Info, exists bool, err error) {
	o := u.o
	if u.opt.Exclusive || u.opt.Cond.any() {
		ctx = fresh(ctx)
	}
	if cur, exists, err = o.existing(ctx, o.m, &o.target, u.acts...); err != nil {
		return cur, exists, err
	}
	if err := u.check(cur, exists); err != nil {
		return cur, exists, err
	}
	if !exists {
		if err := o.parentOf(ctx, o.m, &o.target); err != nil {
			return cur, exists, err
		}
	}
	old := int64(0)
	if exists {
		old = cur.Size
	}
	if u.quota == nil {
		u.quota, err = o.reserve(ctx, &o.target, u.opt.Size, old)
	} else {
		err = u.quota.rebase(old)
	}
	return cur, exists, err
}

// existing looks at what is there now, following links. A missing node is no error.
func (o *op) existing(ctx context.Context, m *mounted, t *target, acts ...policy.Action) (info mounts.Info, exists bool, err error) {
	info, err = o.stat(ctx, m, t, true, acts...)
	if err != nil && fault.KindOf(err) == fault.NotExist && o.denied == (policy.Place{}) {
		return info, false, nil
	}
	return info, err == nil, err
}

// parentOf reports NotExist or NotDir unless the folder that is to hold t is one.
func (o *op) parentOf(ctx context.Context, m *mounted, t *target) error {
	if t.isRoot() {
		return fault.New("gateway", t.path.String(), fault.Denied, errRoot)
	}
	// What is made in a folder changes its attributes, so that the next one would ask for them again, but not that it is a folder.
	if parent := parentOf(t.name); m.chain.cache == nil || !m.chain.cache.Folder(parent) {
		info, err := m.Stat(ctx, parent)
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fault.New("gateway", t.path.Parent().String(), fault.NotDir, nil)
		}
	}
	return nil
}

// check asks all that can be asked of what is at the target now: type, rights, preconditions, locks.
func (u *Upload) check(cur mounts.Info, exists bool) error {
	o := u.o
	act := policy.Create
	if exists {
		act = policy.Modify
		if cur.IsDir() {
			return fault.New("gateway.create", o.path.String(), fault.IsDir, nil)
		}
		if cur.Type != mounts.File {
			return fault.New("gateway.create", o.path.String(), fault.Unsupported, errors.New("not a regular file"))
		}
	}
	if _, err := o.ask(act, &o.target); err != nil {
		return err
	}
	if err := u.opt.Cond.hold(o.info(o.path, cur), exists, !o.known); err != nil {
		return err
	}
	if exists && u.opt.Exclusive {
		return fault.New("gateway.create", o.path.String(), fault.Exist, nil)
	}
	return o.unlocked(&o.target, lockScope{member: !exists})
}

// stage opens a new file in the datasource's area.
func (o *op) stage(ctx context.Context, m *mounted) (mounts.RandomFile, string, error) {
	name := o.g.newName(m, o.name, staging)
	f, err := m.random.OpenFile(ctx, name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0)
	if err != nil {
		o.g.live.drop(m, name)
	}
	return f, name, err
}

// Size returns how many bytes have been written, up to the highest.
func (u *Upload) Size() int64 { return u.size.Load() }

// Write appends p.
func (u *Upload) Write(p []byte) (int, error) {
	n, err := u.put(p, u.next, true)
	u.next += int64(n)
	u.sums.write(p[:n])
	return n, err
}

// WriteAt writes p at off. Where a checksum was declared, a file that is not written from start to end in order is read once more at Commit.
// After a Write of more than a small body to a backend across a network it is Unsupported.
func (u *Upload) WriteAt(p []byte, off int64) (int, error) {
	u.sums.disorder()
	return u.put(p, off, false)
}

func (u *Upload) put(p []byte, off int64, ordered bool) (n int, err error) {
	u.mu.Lock()
	over := u.over
	u.mu.Unlock()
	end := off + int64(len(p))
	switch {
	case over:
		return 0, fault.New("gateway.Upload", u.o.path.String(), fault.Invalid, errOver)
	case u.opt.Size >= 0 && end > u.opt.Size:
		return 0, fault.New("gateway.Upload", u.o.path.String(), fault.Invalid, fmt.Errorf("more than the %d bytes declared", u.opt.Size))
	}
	if u.far != nil && !ordered && u.o.g.room != nil && end>>roomStep != u.size.Load()>>roomStep {
		if err := u.o.g.room(); err != nil { // the spool lies beside the store
			return 0, err
		}
	}
	if err := u.grow(end); err != nil {
		return 0, err
	}
	switch {
	case u.far == nil:
		n, err = u.file.WriteAt(p, off)
	case ordered:
		n, err = u.far.write(p)
	default:
		n, err = u.far.writeAt(p, off)
	}
	u.o.g.stats.in.Add(int64(n))
	if err != nil {
		return n, fault.Wrap("gateway.Upload", u.o.path.String(), err)
	}
	return n, nil
}

// roomStep is how much is spooled, as a power of two, between two looks at the room there is.
const roomStep = 23

// grow accounts for a file that now ends at end, before it is written. What is refused is not counted.
func (u *Upload) grow(end int64) error {
	if end <= u.size.Load() {
		return nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	size := u.size.Load()
	if end <= size {
		return nil
	}
	if err := u.o.s.core.budget.stage(end - size); err != nil {
		return err
	}
	if err := u.quota.grow(end); err != nil {
		return errors.Join(err, u.o.s.core.budget.stage(size-end))
	}
	u.held += end - size
	u.size.Store(end)
	return nil
}

// buffers are what bodies pass through: large, so that a fast client costs few calls, and shared, so that memory does not grow with clients
// that send now and then.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// ReadFrom appends everything r yields. A failure of r is returned as it is; what was read until then is staged, never published.
func (u *Upload) ReadFrom(r io.Reader) (n int64, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		k, rerr := fill(r, *buf)
		if k > 0 {
			w, err := u.Write((*buf)[:k])
			n += int64(w)
			if err != nil {
				return n, err
			}
		}
		if rerr == io.EOF {
			return n, nil
		}
		if rerr != nil {
			return n, rerr
		}
	}
}

// fill reads until buf is full or r ends.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	return n, err
}

// Commit publishes the content and reports whether the name was new. It verifies the declared length and checksum first. On success the
// content, its metadata and the audit record are durable as the datasource promises; on failure the old content stands.
func (u *Upload) Commit(ctx context.Context) (_ Info, created bool, err error) {
	if !u.finish() {
		return Info{}, false, fault.New("gateway.Upload", u.o.path.String(), fault.Invalid, errOver)
	}
	defer u.o.end(&err)
	defer u.drop(&err)
	if err := u.verify(); err != nil {
		return Info{}, false, err
	}
	return u.publish(ctx)
}

// Abort throws the content away. It is safe to call after Commit, where it does nothing.
func (u *Upload) Abort() error {
	if !u.finish() {
		return nil
	}
	err := fault.New("gateway.Upload", u.o.path.String(), fault.Canceled, nil)
	u.drop(&err)
	u.o.leave()
	return nil
}

// Close is Abort, for those who defer it.
func (u *Upload) Close() error { return u.Abort() }

// finish ends the upload for its writers. It reports false when it has ended before.
func (u *Upload) finish() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	was := u.over
	u.over = true
	return !was
}

// drop returns what the upload held, and removes the staged file when it was not published.
func (u *Upload) drop(err *error) {
	if u.file != nil {
		if cerr := u.file.Close(); cerr != nil && *err == nil {
			u.o.g.log.Warn("closing a published file failed", "path", u.o.path, "err", cerr)
		}
	}
	if u.far != nil {
		if cerr := u.far.close(); cerr != nil {
			u.o.g.log.Warn("closing a spooled upload failed", "path", u.o.path, "err", cerr)
		}
	} else if *err != nil {
		if rerr := u.o.m.Remove(context.WithoutCancel(u.o.g.life), u.staged); rerr != nil && fault.KindOf(rerr) != fault.NotExist {
			u.o.g.log.Warn("a staged file is left behind until the next start", "name", u.staged, "err", rerr)
		}
	}
	if u.staged != "" {
		u.o.g.live.drop(u.o.m, u.staged)
	}
	u.quota.release()
	_ = u.o.s.core.budget.stage(-u.held)
	u.o.s.core.budget.close()
}

// verify compares what arrived with what was declared.
func (u *Upload) verify() error {
	if size := u.size.Load(); u.opt.Size >= 0 && size != u.opt.Size {
		return fault.New("gateway.Upload", u.o.path.String(), fault.Invalid, fmt.Errorf("%d bytes arrived, %d were declared", size, u.opt.Size))
	}
	return u.sums.verify(u.o.path, io.NewSectionReader(u.content(), 0, u.size.Load()))
}

// truncate sets the size of what was written.
func (u *Upload) truncate(size int64) error {
	if u.far != nil {
		return u.far.truncate(size)
	}
	return u.file.Truncate(size)
}

// content is what was written, as long as it has not left.
func (u *Upload) content() io.ReaderAt {
	if u.far != nil {
		return u.far
	}
	return u.file
}

// publish makes the content that of the target.
func (u *Upload) publish(ctx context.Context) (_ Info, created bool, err error) {
	o := u.o
	if u.far != nil {
		return u.send(ctx)
	}
	// The staged bytes are made durable before the publish lock is taken: it is held for the short last steps only.
	if err := u.settle(ctx); err != nil {
		return Info{}, false, err
	}
	cur, exists, release, err := u.claim(ctx)
	if err != nil {
		return Info{}, false, err
	}
	defer release()
	if exists {
		if err := o.keepMode(ctx, u.staged, cur); err != nil {
			return Info{}, false, err
		}
	}
	info, err := u.file.Stat()
	if err != nil {
		return Info{}, false, err
	}
	e := o.entry(o.m, stepOf(u.staged, o.name, info))
	if err := o.replace(ctx, o.row(o.at, info, u.sums.String()), e, cur, exists, u.quota); err != nil {
		return Info{}, false, err
	}
	if err := o.perform(ctx, o.m, e); err != nil {
		return Info{}, false, err
	}
	o.replaced(exists, info.Size)
	// The stamps of the file have moved with the rename: the entity tag is that of now.
	if info, err = u.file.Stat(); err != nil {
		return Info{}, false, err
	}
	info.Name = o.path.Base()
	return o.info(o.path, info), !exists || !o.known, nil
}

// claim takes the publish lock of the target and asks everything once more under it. Following a link may show that the target is elsewhere
// than it was: then it is that place's lock that counts.
func (u *Upload) claim(ctx context.Context) (cur mounts.Info, exists bool, release func(), err error) {
	o := u.o
	for range maxFollow {
		at := o.at.Path
		if release, err = o.ds.serial.claim(ctx, span{path: at}); err != nil {
			return cur, false, nil, err
		}
		if err = o.again(ctx, u.acts...); err == nil {
			cur, exists, err = u.judge(ctx)
		}
		if err == nil && o.at.Path == at {
			return cur, exists, release, nil
		}
		release()
		if err != nil {
			return cur, false, nil, err
		}
	}
	return cur, false, nil, fault.New("gateway.Upload", o.path.String(), fault.Busy, errLinks)
}

// maxFollow is how often the target of an upload may change by a link before it is given up.
const maxFollow = 8

var errLinks = errors.New("the links on the way keep changing")

// settle makes the staged bytes durable and gives them their time.
func (u *Upload) settle(ctx context.Context) error {
	o := u.o
	if !u.opt.ModTime.IsZero() {
		if t, ok := mounts.As[mounts.TimeSetter](o.m.Backend); ok {
			if err := t.SetModTime(ctx, u.staged, u.opt.ModTime); err != nil {
				return err
			}
		}
	}
	if o.ds.cfg.Durability == Synced {
		return fault.Wrap("gateway.Upload", o.path.String(), u.file.Sync())
	}
	return nil
}

// keepMode gives a staged file the permission bits of the one it replaces.
func (o *op) keepMode(ctx context.Context, staged string, cur mounts.Info) error {
	if cur.Mode == 0 {
		return nil
	}
	m, ok := mounts.As[mounts.ModeSetter](o.m.Backend)
	if !ok {
		return nil
	}
	if info, err := o.m.Stat(ctx, staged); err != nil || info.Mode == cur.Mode {
		return err
	}
	return m.SetMode(ctx, staged, cur.Mode)
}

// send publishes what goes across a network: the transaction first, and then the backend gets what was held back.
func (u *Upload) send(ctx context.Context) (_ Info, created bool, err error) {
	o := u.o
	cur, exists, release, err := u.claim(ctx)
	if err != nil {
		return Info{}, false, err
	}
	defer release()
	u.far.expect(u, cur, exists)
	size := u.size.Load()
	row := o.row(o.at, mounts.Info{Size: size, ModTime: u.opt.ModTime}, u.sums.String())
	e := o.entry(o.m, step{Do: doPut, To: o.name, Stamp: stampOf(cur, exists)})
	if err := o.replace(ctx, row, e, cur, exists, u.quota); err != nil {
		return Info{}, false, err
	}
	info, err := u.far.publish(context.WithoutCancel(ctx), size)
	if err = o.performed(ctx, o.m, e, err); err != nil {
		return Info{}, false, err
	}
	// The row shall say what the file is there, so that a change from outside is told from this one.
	info.Name = o.path.Base()
	o.g.db.Later(func(tx *store.Tx) error { return renewRow(tx, *row, info) })
	o.replaced(exists, size)
	return o.info(o.path, info), !exists || !o.known, nil
}

// replace commits that the file of row becomes the target. What is still to be done is in e. The caller holds the publish lock.
func (o *op) replace(ctx context.Context, row *node, e *entry, cur mounts.Info, exists bool, quota *hold) error {
	return o.commit(ctx, func(tx *store.Tx) error {
		e.Undo = inverse{Gone: &o.at}
		was, had := node{}, false
		if exists {
			var err error
			if was, had, err = loadNode(tx.QueryRow, o.at); err != nil {
				return err
			}
		}
		usage := quota.usage(row.Size, cur.Size, was, had)
		if had {
			if cur.Tag == "" && cur.Change == 0 {
				was.Sums = "" // should this come back, nothing tells for sure that the content is still that
			}
			e.Undo = inverse{Was: &was}
		}
		o.g.count(tx, usage, 1)
		e.Undo.Usage = negated(usage)
		tx.Collect(nodes{o.g}, row)
		return nil
	}, e)
}

// replaced tells of a file that was published.
func (o *op) replaced(existed bool, size int64) {
	o.g.stats.published.Add(1)
	kind := event.Created
	if existed {
		kind = event.Modified
	}
	o.publish(kind, o.at, policy.Place{}, false, size)
}
