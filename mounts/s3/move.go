package s3

import (
	"context"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Mkdir makes the marker of a folder.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	const op = "mounts/s3.Mkdir"
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New(op, name, fault.Exist, nil)
	}
	parent := make(chan error, 1)
	go func() { parent <- b.inFolder(ctx, "Mkdir", name) }()
	s, err := b.look(ctx, name)
	if perr := <-parent; perr != nil {
		return perr
	}
	if err != nil {
		return b.fail(ctx, "Mkdir", name, err)
	}
	if s.none() {
		err = b.mark(ctx, b.folder(name))
	}
	switch {
	case !s.none(), conflicting(err):
		return fault.New(op, name, fault.Exist, nil)
	case err != nil:
		return b.fail(ctx, "Mkdir", name, err)
	}
	dir, _ := mounts.Split(name)
	b.facts.isFolder(dir, false)
	b.facts.isNew(name)
	return nil
}

// Remove deletes an object, or the marker of a folder without other keys. The folder it was in stays. What was a file a moment ago is deleted
// by one request without looking again; S3 does not tell whether it still was there.
func (b *Backend) Remove(ctx context.Context, name string) error {
	const op = "mounts/s3.Remove"
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New(op, name, fault.Invalid, errRoot)
	}
	if known, ok := b.facts.get(name); ok && known.file {
		err := b.keepParent(ctx, name, true)
		if err == nil {
			err = b.core.RemoveObject(ctx, b.bucket, b.key(name), minio.RemoveObjectOptions{})
		}
		b.facts.forgetFile(name)
		return b.fail(ctx, "Remove", name, err)
	}
	kept := make(chan error, 1)
	go func() { kept <- b.keepParent(ctx, name, false) }() // meanwhile: it does no harm where nothing is removed
	s, err := b.look(ctx, name)
	keptErr := <-kept
	switch {
	case err != nil:
		return b.fail(ctx, "Remove", name, err)
	case s.none():
		return fault.New(op, name, fault.NotExist, nil)
	case !s.file && s.filled:
		return fault.New(op, name, fault.NotEmpty, nil)
	}
	key := b.key(name)
	if !s.file {
		key = b.folder(name)
	}
	if err = keptErr; err == nil {
		err = b.core.RemoveObject(ctx, b.bucket, key, minio.RemoveObjectOptions{})
	}
	b.facts.forget(name)
	return b.fail(ctx, "Remove", name, err)
}

// CopyFile copies an object at the server.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	const op = "mounts/s3.CopyFile"
	if err := b.begin(ctx, "CopyFile", from, false); err != nil {
		return mounts.Info{}, err
	}
	if err := b.begin(ctx, "CopyFile", to, true); err != nil {
		return mounts.Info{}, err
	}
	if from == "." || to == "." {
		return mounts.Info{}, fault.New(op, from, fault.IsDir, nil)
	}
	target := make(chan error, 1)
	go func() { target <- b.room(ctx, "CopyFile", to) }()
	s, err := b.look(ctx, from)
	roomErr := <-target
	switch {
	case err != nil:
		return mounts.Info{}, b.fail(ctx, "CopyFile", from, err)
	case s.none():
		return mounts.Info{}, fault.New(op, from, fault.NotExist, nil)
	case !s.file:
		return mounts.Info{}, fault.New(op, from, fault.IsDir, nil)
	case roomErr != nil:
		return mounts.Info{}, roomErr
	case from == to:
		return s.info, nil
	}
	o, err := b.copy(ctx, b.key(from), b.key(to), s.info.Size, s.info.Tag)
	if err != nil {
		return mounts.Info{}, b.fail(ctx, "CopyFile", from, err)
	}
	b.placed(to)
	o.Size = s.info.Size
	return fileInfo(to, o), nil
}

// Rename of a file copies the object and deletes the former; of a folder, see moveTree.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	return b.rename(ctx, "Rename", from, to, false)
}

// ResumeRename finishes a Rename that was cut off at any point, or has happened already. Unlike Rename it goes on where the target is a
// folder: it copies what is missing there or differs, and then removes the source. Nothing is removed that was not seen at the target.
func (b *Backend) ResumeRename(ctx context.Context, from, to string) error {
	return b.rename(ctx, "ResumeRename", from, to, true)
}

func (b *Backend) rename(ctx context.Context, op, from, to string, resume bool) error {
	for _, name := range []string{from, to} {
		if err := b.begin(ctx, op, name, true); err != nil {
			return err
		}
		if name == "." {
			return fault.New("mounts/s3."+op, from, fault.Invalid, errRoot)
		}
	}
	if from != to && mounts.Below(to, from) {
		return fault.New("mounts/s3."+op, from, fault.Invalid, errBelow)
	}
	parent := make(chan error, 1)
	go func() { parent <- b.inFolder(ctx, op, to) }()
	var target seen
	var targetErr error
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		if from != to {
			target, targetErr = b.look(ctx, to)
		}
	}()
	source, err := b.look(ctx, from)
	<-looked
	parentErr := <-parent
	fail := func(kind fault.Kind) error { return fault.New("mounts/s3."+op, from, kind, nil) }
	switch {
	case err != nil:
		return b.fail(ctx, op, from, err)
	case targetErr != nil:
		return b.fail(ctx, op, from, targetErr)
	case source.none() && resume && !target.none():
		return nil // it was done
	case source.none():
		return fail(fault.NotExist)
	case from == to:
		return nil
	case parentErr != nil:
		return parentErr
	case source.file && target.folder && !target.file:
		return fail(fault.IsDir)
	case !source.file && target.file:
		return fail(fault.NotDir)
	case !source.file && target.folder && !resume:
		return fail(fault.Exist)
	}
	if source.file {
		err = b.moveFile(ctx, from, to, source.info)
	} else {
		err = b.moveTree(ctx, from, to)
	}
	b.facts.forget(from)
	b.facts.forget(to)
	return b.fail(ctx, op, from, err)
}

func (b *Backend) moveFile(ctx context.Context, from, to string, info mounts.Info) error {
	kept := make(chan error, 1)
	go func() { kept <- b.keepParent(ctx, from, true) }()
	_, err := b.copy(ctx, b.key(from), b.key(to), info.Size, info.Tag)
	if keptErr := <-kept; err == nil {
		err = keptErr
	}
	if err != nil {
		return err
	}
	return retry(ctx, true, func() error { return b.core.RemoveObject(ctx, b.bucket, b.key(from), minio.RemoveObjectOptions{}) })
}

// copy makes the object to of the object from, which must still have the tag.
func (b *Backend) copy(ctx context.Context, from, to string, size int64, tag string) (o minio.ObjectInfo, err error) {
	if strings.HasSuffix(from, "/") && size == 0 {
		err := b.mark(ctx, to)
		if conflicting(err) {
			err = nil
		}
		return minio.ObjectInfo{}, err
	}
	if size > b.copyLimit {
		return b.copyInParts(ctx, from, to, size, tag)
	}
	header := map[string]string{}
	if tag != "" {
		header["X-Amz-Copy-Source-If-Match"] = `"` + tag + `"`
	}
	if b.sse != nil {
		h := http.Header{}
		b.sse.Marshal(h)
		for name := range h {
			header[name] = h.Get(name)
		}
	}
	err = retry(ctx, true, func() error {
		o, err = b.core.CopyObject(hinted(ctx, patience(size)), b.bucket, from, b.bucket, to, header, minio.CopySrcOptions{}, minio.PutObjectOptions{})
		if err == nil && o.ETag == "" {
			err = errNoCopy // an error that came after the server had said 200 has no tag
		}
		return err
	})
	return o, changed(err)
}

// changed tells a source that changed meanwhile from a target's condition: trying again is all there is to do.
func changed(err error) error {
	if conflicting(err) {
		return fault.New("mounts/s3.copy", "", fault.Busy, nil)
	}
	return err
}

// copyInParts is copy for what is too large for one request.
func (b *Backend) copyInParts(ctx context.Context, from, to string, size int64, tag string) (minio.ObjectInfo, error) {
	meta, err := b.core.StatObject(ctx, b.bucket, from, minio.StatObjectOptions{})
	if err != nil {
		return minio.ObjectInfo{}, err
	}
	opt := minio.PutObjectOptions{ServerSideEncryption: b.sse, ContentType: meta.ContentType, UserMetadata: meta.UserMetadata}
	id, err := b.core.NewMultipartUpload(ctx, b.bucket, to, opt)
	if err != nil {
		return minio.ObjectInfo{}, err
	}
	length := partSize(min(512<<20, b.copyLimit), size)
	var header map[string]string
	if tag != "" {
		header = map[string]string{"X-Amz-Copy-Source-If-Match": `"` + tag + `"`}
	}
	var sent []minio.CompletePart
	for off := int64(0); off < size && err == nil; off += length {
		n := min(length, size-off)
		err = retry(ctx, true, func() error {
			p, err := b.core.CopyObjectPart(hinted(ctx, patience(n)), b.bucket, from, b.bucket, to, id, len(sent)+1, off, n, header)
			if err == nil && p.ETag == "" {
				err = errNoCopy
			}
			if err == nil {
				p.ETag = strings.Trim(p.ETag, `"`)
				sent = append(sent, p)
			}
			return err
		})
	}
	var info mounts.Info
	if err == nil {
		info, err = b.join(ctx, strings.TrimPrefix(to, b.prefix), id, sent, minio.PutObjectOptions{}, size)
	}
	if err != nil {
		b.abort(ctx, to, id)
		return minio.ObjectInfo{}, changed(err)
	}
	return minio.ObjectInfo{ETag: info.Tag, Size: info.Size, LastModified: info.ModTime}, nil
}
