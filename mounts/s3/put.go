package s3

import (
	"context"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	small     = 1 << 20         // up to here a file is taken into memory, so that it can be sent again and an idle source costs no connection
	maxObject = 5 << 40         // of S3
	maxParts  = 10_000          // of S3
	grace     = 5 * time.Second // for cleaning up after a context has ended
)

// Put sends a file of up to a part's size in one request, which publishes it, and a longer one in parts, which become the file when all are
// there. The source is read by nobody when Put returns.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return b.put(ctx, "Put", name, "", src, opt)
}

// PutIf is Put with If-Match.
func (b *Backend) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	const op = "mounts/s3.PutIf"
	if err := b.begin(ctx, "PutIf", name, true); err != nil {
		return mounts.Info{}, err
	}
	if !b.able.Conditional {
		return mounts.Info{}, fault.New(op, name, fault.Unsupported, errNoIf)
	}
	if tag == "" || strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == '"' || r >= 0x7f }) {
		return mounts.Info{}, fault.New(op, name, fault.Precondition, nil) // no object has such a tag, nor can a header hold it
	}
	return b.put(ctx, "PutIf", name, tag, src, opt)
}

func (b *Backend) put(ctx context.Context, op, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, op, name, true); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, fault.New("mounts/s3."+op, name, fault.IsDir, nil)
	}
	if opt.Size > maxObject {
		return mounts.Info{}, fault.New("mounts/s3."+op, name, fault.TooLarge, nil)
	}
	u := &upload{b: b, op: op, name: name, key: b.key(name), tag: tag, opt: opt, src: &source{src: src, want: max(opt.Size, -1)}}
	// While the first bytes come, the folder is looked at.
	looked := make(chan error, 1)
	go func() { looked <- b.room(ctx, op, name) }()
	u.room = sync.OnceValue(func() error { return <-looked })
	defer u.room()
	defer u.src.stop()
	info, err := u.run(ctx)
	if u.unlock != nil {
		u.unlock()
	}
	if err != nil {
		return mounts.Info{}, u.fail(ctx, err)
	}
	b.placed(name)
	return info, nil
}

// placed notes that name is a file now.
func (b *Backend) placed(name string) {
	dir, _ := mounts.Split(name)
	b.facts.isFolder(dir, false)
	b.facts.isFile(name)
}

// upload is one Put on its way.
type upload struct {
	b             *Backend
	op, name, key string
	tag           string // of If-Match
	opt           mounts.PutOptions
	src           *source
	room          func() error // waits for what the folder turned out to be
	unlock        func()       // of the name, when the server does not honour conditions
}

func (u *upload) fail(ctx context.Context, err error) error {
	op := "mounts/s3." + u.op
	switch own := u.src.failure(); {
	case ctx.Err() != nil:
	case own == errLength:
		return fault.New(op, u.name, fault.Invalid, errLength)
	case own != nil:
		return fault.Wrap(op, u.name, own)
	case u.opt.Exclusive && conflicting(err):
		return fault.New(op, u.name, fault.Exist, nil)
	case u.tag != "" && missing(err):
		return fault.New(op, u.name, fault.Precondition, nil)
	}
	return u.b.fail(ctx, u.op, u.name, err)
}

func (u *upload) run(ctx context.Context) (mounts.Info, error) {
	b, size := u.b, u.opt.Size
	switch {
	case size > b.partSize:
		if err := u.ready(ctx); err != nil {
			return mounts.Info{}, err
		}
		return u.inParts(ctx, nil)
	case size > small:
		if err := u.ready(ctx); err != nil {
			return mounts.Info{}, err
		}
		return u.stream(ctx)
	}
	most := size
	if size < 0 {
		most = b.partSize
	}
	p := b.newPart()
	err := p.fill(u.src, most)
	if size >= 0 && err == nil {
		if err = u.src.ended(); err == nil {
			err = io.EOF
		}
	}
	if err == nil || err == io.EOF {
		if err := u.ready(ctx); err != nil {
			p.free()
			return mounts.Info{}, err
		}
	}
	switch err {
	case nil:
		return u.inParts(ctx, p)
	case io.EOF:
		defer p.free()
		return u.send(ctx, p)
	}
	p.free()
	return mounts.Info{}, err
}

// ready waits for what the folder turned out to be. Where the server does not honour If-None-Match it looks itself, and lets nobody here put
// the same name until the end.
func (u *upload) ready(ctx context.Context) (err error) {
	if err := u.room(); err != nil {
		return err
	}
	if !u.opt.Exclusive || u.b.able.Conditional {
		return nil
	}
	if u.unlock, err = u.b.names.lock(ctx, u.key); err != nil {
		return err
	}
	switch _, err := u.b.head(ctx, u.name); {
	case err == nil:
		return fault.New("mounts/s3."+u.op, u.name, fault.Exist, nil)
	case missing(err):
		return nil
	default:
		return err
	}
}

// options are what goes with the request that publishes; conditions go with no other.
func (u *upload) options(publish bool) minio.PutObjectOptions {
	opt := minio.PutObjectOptions{ServerSideEncryption: u.b.sse}
	if !u.opt.ModTime.IsZero() { // as rclone writes it, for programs that look
		t := u.opt.ModTime.UTC()
		opt.UserMetadata = map[string]string{"mtime": strconv.FormatInt(t.Unix(), 10) + "." + strconv.Itoa(1e9 + t.Nanosecond())[1:]}
	}
	if publish && u.tag != "" {
		opt.SetMatchETag(u.tag)
	}
	if publish && u.opt.Exclusive && u.b.able.Conditional {
		opt.SetMatchETagExcept("*")
	}
	return opt
}

// send puts a file that is in memory.
func (u *upload) send(ctx context.Context, p *part) (mounts.Info, error) {
	opt := u.options(true)
	opt.DisableContentSha256 = true // the digest of the whole goes with it instead, or TLS guards it
	var done minio.UploadInfo
	err := retry(ctx, u.tag == "" && !u.opt.Exclusive, func() (err error) {
		body := p.open()
		defer body.stop()
		done, err = u.b.core.PutObject(hinted(ctx, hint{kind: writing}), u.b.bucket, u.key, body, p.n, "", p.digest(), opt)
		return err
	})
	return u.done(ctx, done.ETag, p.n, err)
}

// stream puts a file as it comes.
func (u *upload) stream(ctx context.Context) (mounts.Info, error) {
	opt := u.options(true)
	opt.DisableContentSha256 = u.b.secure // else each piece is signed
	done, err := u.b.core.PutObject(hinted(ctx, hint{kind: writing}), u.b.bucket, u.key, &whole{source: u.src, left: u.opt.Size}, u.opt.Size, "", "", opt)
	return u.done(ctx, done.ETag, u.opt.Size, err)
}

// done describes the new file by what the answer tells, without the time, which it does not.
func (u *upload) done(ctx context.Context, etag string, size int64, err error) (mounts.Info, error) {
	if err != nil {
		return mounts.Info{}, err
	}
	if etag == "" {
		return u.b.head(ctx, u.name)
	}
	return fileInfo(u.name, minio.ObjectInfo{ETag: etag, Size: size}), nil
}

// retry does it up to three times while it fails with what passes. Who calls the driver cannot repeat what a source gave, or the steps of
// what takes many.
func retry(ctx context.Context, twice bool, do func() error) error {
	for wait := 200 * time.Millisecond; ; wait *= 4 {
		err := do()
		if err == nil || wait > time.Second || ctx.Err() != nil || !passing(err, twice) {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
