package dropbox

import (
	"bytes"
	"context"
	"io"
	"regexp"
	"sync"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	block = 4 << 20   // of an upload session; Dropbox takes multiples of it only
	small = 2 * block // what is shorter goes up in one call
)

// first and more keep the buffers of uploads for the next ones.
var (
	first = sync.Pool{New: func() any { return new([small]byte) }}
	more  = sync.Pool{New: func() any { return new([block]byte) }}
)

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "Put", name, true); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, fault.New("mounts/dropbox.Put", name, fault.IsDir, nil)
	}
	commit := b.commit(name, opt)
	commit.Mode.Tag = "overwrite"
	if opt.Exclusive {
		commit.Mode.Tag, commit.StrictConflict = "add", true // else equal content would be no conflict
	}
	ctx, cancel := context.WithCancel(ctx)
	above := b.parentLater(ctx, "Put", name)
	defer func() { cancel(); _ = above() }() // what still asks ends
	info, err := b.put(ctx, "Put", name, src, opt.Size, commit, above)
	if no, taken := refusedWith(err, "conflict"); taken && no.has("folder") && !opt.Exclusive {
		return mounts.Info{}, fault.New("mounts/dropbox.Put", name, fault.IsDir, no)
	}
	return info, fail("Put", name, err)
}

// rev is what Dropbox takes for one; anything else would be an error of the call and not of its precondition.
var rev = regexp.MustCompile(`^[0-9a-f]{9,64}$`)

// PutIf implements mounts.Conditional.
func (b *Backend) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "PutIf", name, true); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, fault.New("mounts/dropbox.PutIf", name, fault.IsDir, nil)
	}
	if !rev.MatchString(tag) {
		return mounts.Info{}, fault.New("mounts/dropbox.PutIf", name, fault.Precondition, nil)
	}
	commit := b.commit(name, opt)
	commit.Mode.Tag, commit.Mode.Update, commit.StrictConflict = files.WriteModeUpdate, tag, true
	// A missing parent needs no asking: then the file is missing too, which is a conflict.
	info, err := b.put(ctx, "PutIf", name, src, opt.Size, commit, func() error { return nil })
	if no, taken := refusedWith(err, "conflict"); taken {
		return mounts.Info{}, fault.New("mounts/dropbox.PutIf", name, fault.Precondition, no)
	}
	return info, fail("PutIf", name, err)
}

func (b *Backend) commit(name string, opt mounts.PutOptions) *files.CommitInfo {
	c := files.NewCommitInfo(b.path(name))
	c.Mute = true // no message on people's desktops for each file
	if !opt.ModTime.IsZero() {
		t := sdk.DBXTime(opt.ModTime)
		c.ClientModified = &t
	}
	return c
}

// put uploads src and publishes it, once above says that the parent is there. Errors are not yet translated.
func (b *Backend) put(ctx context.Context, op, name string, src io.Reader, size int64, commit *files.CommitInfo, above func() error) (mounts.Info, error) {
	s := source{ctx: ctx, src: src, op: op, name: name, size: size}
	head, pooled, err := s.head()
	if pooled != nil {
		defer first.Put(pooled)
	}
	if err != nil {
		return mounts.Info{}, err
	}
	var m *files.FileMetadata
	if s.ended {
		if err := above(); err != nil {
			return mounts.Info{}, err
		}
		m, err = b.files.UploadContext(ctx, &files.UploadArg{CommitInfo: *commit}, bytes.NewReader(head))
	} else {
		m, err = b.session(ctx, &s, head, commit, above)
	}
	if err != nil {
		return mounts.Info{}, err
	}
	info, ok := describe(m)
	if !ok || info.Type == mounts.File && info.Size != s.read {
		return mounts.Info{}, errAnswer
	}
	dir, _ := mounts.Split(name)
	b.folders.learn(b.path(dir))
	return info, nil
}

// source reads what is put and counts it.
type source struct {
	ctx      context.Context
	src      io.Reader
	op, name string
	size     int64 // declared, -1 when not
	read     int64
	ended    bool // the source said so, and the length is right
}

// head reads the beginning: all of a source that is shorter than small, else small bytes of it. The buffer grows with what comes; pooled
// is to be given back when it is not nil.
func (s *source) head() (head []byte, pooled *[small]byte, err error) {
	want := int64(64 << 10)
	if s.size >= 0 {
		want = s.size + 1 // so that the end shows in the same read
	}
	for {
		if want >= block {
			pooled = first.Get().(*[small]byte)
			head = pooled[:copy(pooled[:], head)]
		} else {
			head = append(make([]byte, 0, want), head...)
		}
		n, err := s.fill(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil || s.ended || pooled != nil {
			return head, pooled, err
		}
		want = int64(cap(head)) * 8
	}
}

// fill reads until p is full or the source ends, and checks the length against the declared one.
func (s *source) fill(p []byte) (n int, err error) {
	for idle := 0; n < len(p) && !s.ended; {
		if err := s.ctx.Err(); err != nil {
			return n, fault.Wrap("mounts/dropbox."+s.op, s.name, err)
		}
		var k int
		k, err = s.src.Read(p[n:])
		n += k
		s.read += int64(k)
		if idle++; k > 0 {
			idle = 0
		}
		switch {
		case s.size >= 0 && s.read > s.size, err == io.EOF && s.size >= 0 && s.read < s.size:
			return n, fault.New("mounts/dropbox."+s.op, s.name, fault.Invalid, errLength)
		case err == io.EOF:
			s.ended = true
		case err != nil:
			return n, fault.Wrap("mounts/dropbox."+s.op, s.name, err)
		case idle > 100:
			return n, fault.Wrap("mounts/dropbox."+s.op, s.name, io.ErrNoProgress)
		}
	}
	return n, nil
}

// session uploads in blocks, two at a time while a third is read, and publishes with the last call. head is full and not all.
func (b *Backend) session(ctx context.Context, s *source, head []byte, commit *files.CommitInfo, above func() error) (*files.FileMetadata, error) {
	start := files.NewUploadSessionStartArg()
	start.SessionType = &files.UploadSessionType{Tagged: sdk.Tagged{Tag: files.UploadSessionTypeConcurrent}}
	res, err := b.files.UploadSessionStartContext(ctx, start, bytes.NewReader(nil))
	if err == nil && (res == nil || res.SessionId == "") {
		err = errAnswer
	}
	if err != nil {
		return nil, err
	}
	third := more.Get().(*[block]byte)
	defer more.Put(third)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u := uploads{free: make(chan []byte, 3), ctx: ctx, cancel: cancel}
	defer u.all.Wait() // before the buffers go back
	send := func(offset int64, data []byte, last bool) error {
		arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(res.SessionId, uint64(offset)))
		arg.Close = last
		return b.append(ctx, arg, data)
	}
	u.start(head[:block:block], 0, send)
	u.free <- third[:]
	hold, offset := head[block:small:small], int64(block) // read, but not yet known to be the last one or not
	for !s.ended {
		buf, err := u.take()
		if err != nil {
			return nil, err
		}
		n, err := s.fill(buf)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		u.start(hold, offset, send)
		offset += block
		hold = buf[:n:block]
	}
	u.all.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := above(); err != nil { // the last block goes before the parent is known to be there, but publishes nothing
		return nil, err
	}
	if err := send(offset, hold, true); err != nil {
		return nil, err
	}
	finish := files.NewUploadSessionFinishArg(files.NewUploadSessionCursor(res.SessionId, uint64(s.read)), commit)
	return b.files.UploadSessionFinishContext(ctx, finish, bytes.NewReader(nil))
}

// uploads are the blocks on their way.
type uploads struct {
	all    sync.WaitGroup
	free   chan []byte // buffers that can be filled
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (u *uploads) start(data []byte, offset int64, send func(offset int64, data []byte, last bool) error) {
	u.all.Go(func() {
		if err := send(offset, data, false); err != nil {
			u.cancel(err)
		}
		u.free <- data[:cap(data)]
	})
}

// take waits for a buffer, and returns the error of a block that failed.
func (u *uploads) take() ([]byte, error) {
	select {
	case <-u.ctx.Done():
		return nil, context.Cause(u.ctx)
	case buf := <-u.free:
		if err := context.Cause(u.ctx); err != nil {
			return nil, err
		}
		return buf, nil
	}
}

// append sends one block. Where an earlier try arrived although its answer was lost, Dropbox says so.
func (b *Backend) append(ctx context.Context, arg *files.UploadSessionAppendArg, data []byte) error {
	err := b.files.UploadSessionAppendV2Context(ctx, arg, bytes.NewReader(data))
	if no, moved := refusedWith(err, "incorrect_offset"); moved && no.offset == int64(arg.Cursor.Offset)+int64(len(data)) {
		return nil
	}
	if _, closed := refusedWith(err, "closed"); closed && arg.Close {
		return nil // by that earlier try; the last call compares the length
	}
	return err
}
