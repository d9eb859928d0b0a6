package s3

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/minio/minio-go/v7"

	"cellgate/mounts"
)

// abilities are what not every server can and none announces.
type abilities struct {
	Conditional bool // PUT and CompleteMultipartUpload honour If-Match and If-None-Match
	MD5         bool // the tag of an object put whole is its MD5
}

// probeKey is what the abilities of a server are remembered by.
const probeKey = "s3.abilities"

// probe tries out what the server can, with an object of a name of its own that is gone afterwards. What was found out once is remembered: it
// belongs to the endpoint and the bucket. A datasource that may not write promises nothing.
func (b *Backend) probe(ctx context.Context, cfg mounts.Config) (a abilities) {
	about := cfg.Options["endpoint"] + " " + b.bucket + " " + cfg.Options["sse"] + " "
	for _, known := range []abilities{{true, true}, {true, false}, {false, true}, {false, false}} {
		if cfg.Known[probeKey] == about+known.String() {
			return known
		}
	}
	if b.readOnly {
		return a
	}
	random := make([]byte, 12)
	rand.Read(random)
	key := b.prefix + own + "probe-" + hex.EncodeToString(random)
	err := b.tryOut(ctx, key, &a)
	if ctx.Err() == nil && err == nil && cfg.Learn != nil {
		err = cfg.Learn(probeKey, about+a.String())
	}
	if err != nil {
		b.logger.Debug("what the server can is not known for sure", "datasource", cfg.Name, "err", b.fail(ctx, "Open", "", err))
	}
	return a
}

func (a abilities) String() string { return fmt.Sprintf("conditional=%t md5=%t", a.Conditional, a.MD5) }

func (b *Backend) tryOut(ctx context.Context, key string, a *abilities) error {
	content := []byte("This object tells what the server can. It may be removed.\n")
	put := func(set func(*minio.PutObjectOptions)) (minio.UploadInfo, error) {
		opt := minio.PutObjectOptions{ServerSideEncryption: b.sse}
		set(&opt)
		return b.core.PutObject(ctx, b.bucket, key, bytes.NewReader(content), int64(len(content)), "", "", opt)
	}
	done, err := put(func(*minio.PutObjectOptions) {})
	if err != nil {
		return err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		if err := b.core.RemoveObject(ctx, b.bucket, key, minio.RemoveObjectOptions{}); err != nil {
			b.logger.Debug("an object made for trying out could not be removed", "key", key, "err", b.fail(ctx, "Open", "", err))
		}
	}()
	sum := md5.Sum(content)
	a.MD5 = done.ETag == hex.EncodeToString(sum[:])
	exclusive := func(opt *minio.PutObjectOptions) { opt.SetMatchETagExcept("*") }
	matching := func(opt *minio.PutObjectOptions) { opt.SetMatchETag("00000000000000000000000000000000") }
	for _, condition := range []func(*minio.PutObjectOptions){exclusive, matching} {
		if _, err := put(condition); !conflicting(err) {
			return undecided(err)
		}
		honoured, err := b.tryJoin(ctx, key, content, condition)
		if err != nil || !honoured {
			return undecided(err)
		}
	}
	a.Conditional = true
	return nil
}

// undecided returns what may be otherwise another time: a server that is busy or gone, not one that refuses or ignores.
func undecided(err error) error {
	if err != nil && passing(err, true) {
		return err
	}
	return nil
}

// tryJoin reports whether an upload in parts honours a condition that does not hold.
func (b *Backend) tryJoin(ctx context.Context, key string, content []byte, condition func(*minio.PutObjectOptions)) (bool, error) {
	id, err := b.core.NewMultipartUpload(ctx, b.bucket, key, minio.PutObjectOptions{ServerSideEncryption: b.sse})
	if err != nil {
		return false, err
	}
	defer b.abort(ctx, key, id)
	done, err := b.core.PutObjectPart(ctx, b.bucket, key, id, 1, bytes.NewReader(content), int64(len(content)), minio.PutObjectPartOptions{})
	if err != nil {
		return false, err
	}
	var opt minio.PutObjectOptions
	condition(&opt)
	_, err = b.core.CompleteMultipartUpload(ctx, b.bucket, key, id, []minio.CompletePart{{PartNumber: 1, ETag: done.ETag}}, opt)
	if conflicting(err) {
		return true, nil
	}
	return false, err
}
