package dropbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	small = 2 * block // what is shorter goes up in one call, where there is room
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
	u := &uploads{buffers: b.buffers, free: make(chan []byte, 1)}
	defer u.end()
	id := func() (string, error) { return b.start(ctx) }
	if size >= small { // it will take a session, which begins while the first block is read
		begin, cancel := context.WithCancel(ctx)
		id = b.startLater(begin)
		defer id()
		defer cancel()
	}
	head, err := s.head(u)
	if err != nil {
		return mounts.Info{}, err
	}
	var m *files.FileMetadata
	if s.ended {
		if err := above(); err != nil {
			return mounts.Info{}, err
		}
		defer b.seen.changing(b.path(name))()
		m, err = b.files.UploadContext(ctx, &files.UploadArg{CommitInfo: *commit, ContentHash: contentHash(head)}, bytes.NewReader(head))
	} else {
		var publish func() (*files.FileMetadata, error)
		if publish, err = b.session(ctx, &s, u, head, id, commit); err == nil {
			err = above() // the blocks went before the parent was known to be there, but published nothing
		}
		if err == nil {
			defer b.seen.changing(b.path(name))()
			m, err = publish()
		}
	}
	if err != nil {
		return mounts.Info{}, err
	}
	info, ok := describe(m)
	if !ok || info.Type == mounts.File && info.Size != s.read {
		return mounts.Info{}, errAnswer
	}
	b.seen.did(b.path(name), m)
	dir, _ := mounts.Split(name)
	b.folders.learn(b.path(dir))
	return info, nil
}

// contentHash is the digest by which Dropbox notices what was damaged on the way. The library would copy the content for it.
func contentHash(data []byte) string {
	var sums []byte
	for len(data) > 0 {
		n := min(len(data), block)
		sum := sha256.Sum256(data[:n])
		sums, data = append(sums, sum[:]...), data[n:]
	}
	sum := sha256.Sum256(sums)
	return hex.EncodeToString(sum[:])
}

// source reads what is put and counts it.
type source struct {
	ctx      context.Context
	src      io.Reader
	op, name string
	size     int64 // declared, -1 when not
	read     int64
	peeked   []byte // read, but not yet given out
	ended    bool   // the source said so, and the length is right
}

// head reads the beginning: all of a source that goes up in one call, else a block. The buffer grows with what comes.
func (s *source) head(u *uploads) (head []byte, err error) {
	want := int64(64 << 10)
	if s.size >= 0 {
		want = s.size + 1 // so that the end shows in the same read
	}
	for ; want < block; want = int64(cap(head)) * 8 {
		head = append(make([]byte, 0, want), head...)
		n, err := s.fill(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if err != nil || s.ended {
			return head, err
		}
	}
	buf := u.first(s.size)
	n := copy(buf, head)
	k, err := s.fill(buf[n:])
	if err == nil && s.size < small { // it may end right there
		err = s.peek()
	}
	return buf[:n+k], err
}

// peek finds out whether the source has ended.
func (s *source) peek() error {
	if s.ended || len(s.peeked) > 0 {
		return nil
	}
	var one [1]byte
	n, err := s.fill(one[:])
	s.peeked = one[:n]
	return err
}

// fill reads until p is full or the source ends, and checks the length against the declared one.
func (s *source) fill(p []byte) (n int, err error) {
	n = copy(p, s.peeked)
	s.peeked = s.peeked[n:]
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

// start begins an upload session and returns its id.
func (b *Backend) start(ctx context.Context) (string, error) {
	arg := files.NewUploadSessionStartArg()
	arg.SessionType = &files.UploadSessionType{Tagged: sdk.Tagged{Tag: files.UploadSessionTypeConcurrent}}
	res, err := b.files.UploadSessionStartContext(ctx, arg, bytes.NewReader(nil))
	if err == nil && (res == nil || res.SessionId == "") {
		err = errAnswer
	}
	if err != nil {
		return "", err
	}
	return res.SessionId, nil
}

// startLater is start in the background, from now on; the returned function waits for it and must be called.
func (b *Backend) startLater(ctx context.Context) (wait func() (string, error)) {
	var id string
	done := make(chan error, 1)
	go func() {
		var err error
		id, err = b.start(ctx)
		done <- err
	}()
	return sync.OnceValues(func() (string, error) { err := <-done; return id, err })
}

// session uploads in blocks, some at a time while another is read, and returns the call that publishes. The blocks may arrive in any order,
// also that which closes the session. Head is the first block, and full.
func (b *Backend) session(ctx context.Context, s *source, u *uploads, head []byte, start func() (string, error), commit *files.CommitInfo) (publish func() (*files.FileMetadata, error), err error) {
	id, err := start()
	if err != nil {
		return nil, err
	}
	sending, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	u.ctx, u.cancel = sending, cancel
	u.send = func(offset int64, data []byte, last bool) error {
		arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(id, uint64(offset)))
		arg.Close, arg.ContentHash = last, contentHash(data)
		return b.append(sending, arg, data)
	}
	data, spare := head, false
	for offset := int64(0); ; offset += block {
		if err := s.peek(); err != nil {
			u.back(data, spare)
			return nil, err
		}
		u.start(data, offset, spare, s.ended)
		if s.ended {
			break
		}
		if data, spare, err = u.take(); err != nil {
			return nil, err
		}
		n, err := s.fill(data)
		if err != nil {
			u.back(data, spare)
			return nil, err
		}
		data = data[:n]
	}
	u.all.Wait()
	if err := context.Cause(sending); err != nil {
		return nil, err
	}
	return func() (*files.FileMetadata, error) {
		finish := files.NewUploadSessionFinishArg(files.NewUploadSessionCursor(id, uint64(s.read)), commit)
		return b.files.UploadSessionFinishContext(ctx, finish, bytes.NewReader(nil))
	}, nil
}

// uploads are the blocks of an upload on their way, and their buffers.
type uploads struct {
	buffers *buffers
	one     []byte       // its own
	two     *[small]byte // instead, for a source that is a little longer than that
	free    chan []byte  // one, when it can be filled
	all     sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelCauseFunc
	send    func(offset int64, data []byte, last bool) error
}

// double keeps the buffers of two blocks.
var double = sync.Pool{New: func() any { return new([small]byte) }}

// first returns the buffer for the beginning of a source: room for all of it and for its end to show where it goes up in one call, else one
// block.
func (u *uploads) first(size int64) []byte {
	if size >= block && size < small && u.buffers.try() {
		u.buffers.use()
		u.two = double.Get().(*[small]byte)
		return u.two[:size+1]
	}
	u.buffers.use()
	u.one = u.buffers.get()
	return u.one
}

// end waits for what is on its way and gives the buffers back.
func (u *uploads) end() {
	u.all.Wait()
	if u.one != nil {
		u.buffers.put(u.one)
		u.buffers.done()
	}
	if u.two != nil {
		double.Put(u.two)
		u.buffers.done()
		u.buffers.done()
	}
}

func (u *uploads) start(data []byte, offset int64, spare, last bool) {
	u.all.Go(func() {
		if err := u.send(offset, data, last); err != nil {
			u.cancel(err)
		}
		u.back(data, spare)
	})
}

// back gives a buffer back, of which data is the beginning.
func (u *uploads) back(data []byte, spare bool) {
	if !spare {
		u.free <- data[:block]
		return
	}
	u.buffers.put(data)
	u.buffers.done()
}

// take waits for a buffer, and returns the error of a block that failed. It takes the own one rather than one that others could use.
func (u *uploads) take() (buf []byte, spare bool, err error) {
	select {
	case buf = <-u.free:
	default:
		select {
		case <-u.ctx.Done():
		case buf = <-u.free:
		case u.buffers.spare <- struct{}{}:
			buf, spare = u.buffers.get(), true
		}
	}
	if err := context.Cause(u.ctx); err != nil {
		if buf != nil {
			u.back(buf, spare)
		}
		return nil, false, err
	}
	return buf, spare, nil
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
