package s3

import (
	"bytes"
	"context"
	"encoding/hex"
	"time"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// seen is what one name stands for. A file has the name when there is a folder, too.
type seen struct {
	file   bool
	info   mounts.Info // of the file
	folder bool
	marker bool // the folder has its marker
	filled bool // there is more than an empty marker in the folder
}

func (s seen) none() bool { return !s.file && !s.folder }

// look asks for the object and for what lies below it at once: one round trip.
func (b *Backend) look(ctx context.Context, name string) (seen, error) {
	var s seen
	var headErr error
	asked := b.facts.now()
	if known, ok := b.facts.get(name); ok && known.file { // which it still is, most likely: then one request does
		if s.info, headErr = b.head(ctx, name); headErr == nil || !missing(headErr) {
			s.file = headErr == nil
			return s, headErr
		}
	}
	headed := make(chan struct{})
	go func() {
		defer close(headed)
		if headErr == nil { // not asked just now
			s.info, headErr = b.head(ctx, name)
		}
	}()
	below, err := b.peek(ctx, b.folder(name), 2)
	<-headed
	if headErr != nil && !missing(headErr) {
		if err != nil && codeOf(err) != "" {
			return seen{}, err // it has words, which the answer to HEAD has not
		}
		return seen{}, headErr
	}
	if err != nil {
		return seen{}, err
	}
	s.file = headErr == nil
	s.folder = len(below) > 0
	for _, o := range below {
		if o.Key == b.folder(name) {
			s.marker = true
			s.filled = s.filled || o.Size > 0
		} else {
			s.filled = true
		}
	}
	switch {
	case s.folder && !s.file:
		b.facts.isFolder(name, s.marker)
	case s.file && !s.folder:
		b.facts.wereFiles(asked, ".", name)
	case !s.folder:
		b.facts.isNone(name)
	}
	return s, nil
}

// head asks for the object of a name.
func (b *Backend) head(ctx context.Context, name string) (mounts.Info, error) {
	o, err := b.core.StatObject(ctx, b.bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return mounts.Info{}, err
	}
	return fileInfo(name, o), nil
}

// fileInfo describes the object of a name.
func fileInfo(name string, o minio.ObjectInfo) mounts.Info {
	_, base := mounts.Split(name)
	i := mounts.Info{Name: base, Type: mounts.File, Size: max(o.Size, -1), Tag: clean(o.ETag)}
	if !o.LastModified.IsZero() {
		i.ModTime = o.LastModified.UTC().Truncate(time.Second) // listings may be finer than the answers to HEAD
	}
	return i
}

func dirInfo(name string) mounts.Info {
	_, base := mounts.Split(name)
	return mounts.Info{Name: base, Type: mounts.Dir}
}

// Stat costs one round trip: the object and what lies below it are asked for at once.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		_, err := b.peek(ctx, b.prefix, 1) // so that a server that is gone shows
		return dirInfo("."), b.fail(ctx, "Stat", name, err)
	}
	s, err := b.look(ctx, name)
	switch {
	case err != nil:
		return mounts.Info{}, b.fail(ctx, "Stat", name, err)
	case s.file:
		return s.info, nil
	case s.folder:
		return dirInfo(name), nil
	}
	return mounts.Info{}, fault.New("mounts/s3.Stat", name, fault.NotExist, nil)
}

// Hash returns the MD5 that the tag of an object is when it was put whole and not encrypted with a key of its own.
func (b *Backend) Hash(ctx context.Context, name, algo string) ([]byte, error) {
	const op = "mounts/s3.Hash"
	if err := b.begin(ctx, "Hash", name, false); err != nil {
		return nil, err
	}
	if algo != "md5" || !b.able.MD5 {
		return nil, fault.New(op, name, fault.Unsupported, errNoDigest)
	}
	o, err := b.core.StatObject(ctx, b.bucket, b.key(name), minio.StatObjectOptions{})
	if err != nil {
		return nil, b.fail(ctx, "Hash", name, err)
	}
	h := o.Headers
	sum, err := hex.DecodeString(o.ETag)
	if err != nil || len(sum) != 16 || h.Get("X-Amz-Server-Side-Encryption") == "aws:kms" || h.Get("X-Amz-Server-Side-Encryption") == "aws:kms:dsse" ||
		h.Get("X-Amz-Server-Side-Encryption-Customer-Algorithm") != "" {
		return nil, fault.New(op, name, fault.Unsupported, errNoDigest)
	}
	return sum, nil
}

// room fails unless the parent of name is a folder and name itself is none. What is known costs nothing, what is not one round trip.
func (b *Backend) room(ctx context.Context, op, name string) error {
	parent := make(chan error, 1)
	go func() { parent <- b.inFolder(ctx, op, name) }()
	target := b.noFolder(ctx, op, name)
	if err := <-parent; err != nil {
		return err
	}
	return target
}

// inFolder fails with NotExist when the parent of name is no folder.
func (b *Backend) inFolder(ctx context.Context, op, name string) error {
	dir, _ := mounts.Split(name)
	if dir == "." {
		return nil // the root is always there
	}
	known, ok := b.facts.get(dir)
	exists := known.folder
	if !ok || !exists { // somebody may just have made it
		var err error
		if exists, _, err = b.askFolder(ctx, dir); err != nil {
			return b.fail(ctx, op, name, err)
		}
	}
	if !exists {
		return fault.New("mounts/s3."+op, name, fault.NotExist, nil)
	}
	return nil
}

// askFolder asks whether dir is a folder and whether it has its marker, which is the first of its keys.
func (b *Backend) askFolder(ctx context.Context, dir string) (exists, marker bool, err error) {
	first, err := b.peek(ctx, b.folder(dir), 1)
	if err != nil {
		return false, false, err
	}
	if len(first) == 0 {
		if dir != "." {
			b.facts.isNone(dir)
		}
		return dir == ".", false, nil
	}
	marker = first[0].Key == b.folder(dir)
	b.facts.isFolder(dir, marker)
	return true, marker, nil
}

// noFolder fails with IsDir when name is a folder and no file.
func (b *Backend) noFolder(ctx context.Context, op, name string) error {
	known, ok := b.facts.get(name)
	if ok && !known.folder {
		return nil
	}
	if !ok {
		below, err := b.peek(ctx, b.folder(name), 1)
		if err != nil {
			return b.fail(ctx, op, name, err)
		}
		if len(below) == 0 {
			b.facts.isNone(name)
			return nil
		}
	}
	switch _, err := b.head(ctx, name); {
	case err == nil:
		return nil
	case missing(err):
		return fault.New("mounts/s3."+op, name, fault.IsDir, nil)
	default:
		return b.fail(ctx, op, name, err)
	}
}

// keepParent gives the parent of name its marker, so that it is still there when name is not. It asks nothing where the marker is known, nor
// where something in the folder was just seen and the server does not replace a marker.
func (b *Backend) keepParent(ctx context.Context, name string, seen bool) error {
	dir, _ := mounts.Split(name)
	known, ok := b.facts.get(dir)
	if dir == "." && b.prefix == "" || ok && known.marker {
		return nil
	}
	if !seen || !b.able.Conditional {
		exists, marker, err := b.askFolder(ctx, dir)
		if err != nil || marker || !exists {
			return err
		}
	}
	err := b.mark(ctx, b.folder(dir))
	if err == nil || conflicting(err) {
		b.facts.isFolder(dir, true)
		return nil
	}
	return err
}

// mark makes the marker of a folder. It never replaces one where the server can tell.
func (b *Backend) mark(ctx context.Context, key string) error {
	opt := minio.PutObjectOptions{ContentType: "application/x-directory", DisableContentSha256: true, ServerSideEncryption: b.sse}
	if b.able.Conditional {
		opt.SetMatchETagExcept("*")
	}
	_, err := b.core.PutObject(ctx, b.bucket, key, bytes.NewReader(nil), 0, "", emptySum, opt)
	return err
}

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
