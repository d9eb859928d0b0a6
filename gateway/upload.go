package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

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
	Exclusive bool // fail with Exist when the name is taken
	Expect    bool // the client waits to hear whether it shall send the body (RFC 9110 §10.1.1): then even a small one is judged before
	// Checksum is what the content must have: "SHA1:hex", "MD5:…", "SHA256:…", "CRC32:…", "CRC32C:…", "CRC64NVME:…", "ADLER32:…"; several
	// separated by spaces. They are kept with the content, see Info.Sums.
	Checksum string
	Compute  []string     // algorithms of checksums to compute and keep besides
	Note     string       // words to keep with the content beside its checksums, "WORD:value …"
	Mode     fs.FileMode  // permission bits of a new file where the backend keeps them, 0: its default
	Props    []PropChange // made in the same transaction
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

	kept    bool                     // staged stays when it cannot be published
	within  func(tx *store.Tx) error // what else its transaction does, nil nothing
	live    bool                     // file is the target itself, see rewrite
	lent    bool                     // the kernel writes to it, too
	base    int64                    // bytes of a live file that are counted
	last    mounts.Info              // of a lent file, as it was recorded
	changed atomic.Bool              // something of a live file is not recorded yet

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
	if u.sums, err = newSums(opt.Checksum, opt.Compute); err != nil {
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
	look := noted(ctx, u.opt.Cond)
	if u.opt.Exclusive {
		look = fresh(ctx)
	}
	if cur, exists, err = o.existing(look, o.m, &o.target, u.acts...); err != nil {
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
	if u.live && !over {
		if err := u.permitted(); err != nil {
			return 0, err
		}
	}
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
		u.changed.Store(true)
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
	if u.live {
		info, err := u.settleLive(ctx)
		return info, false, err
	}
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
	} else if *err != nil && !u.live && !u.kept {
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
	u.changed.Store(true)
	return u.file.Truncate(size)
}

// content is what was written, as long as it has not left.
func (u *Upload) content() io.ReaderAt {
	if u.far != nil {
		return u.far
	}
	return u.file
}
