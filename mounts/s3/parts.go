package s3

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// ticket is the id of an upload in parts. It holds all there is to know, so that an upload outlives a restart of the gateway.
type ticket struct {
	Name, Upload string
	Size         int64
	Exclusive    bool
}

func (t ticket) String() string {
	text, _ := json.Marshal(t) // cannot fail: strings and numbers
	return base64.RawURLEncoding.EncodeToString(text)
}

// ticket understands an id.
func (b *Backend) ticket(ctx context.Context, op, id string) (t ticket, err error) {
	text, err := base64.RawURLEncoding.DecodeString(id)
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err != nil || t.Name == "." || t.Upload == "" {
		return ticket{}, fault.New("mounts/s3."+op, "", fault.NotExist, errUpload)
	}
	return t, b.begin(ctx, op, t.Name, true)
}

// StartParts begins a multipart upload of the server. Its parts need 5 MiB each but the last, and numbers from 1 to 10,000. Exclusive is
// honoured where the server honours conditions, and otherwise looked at now.
func (b *Backend) StartParts(ctx context.Context, name string, opt mounts.PutOptions) (string, error) {
	if err := b.begin(ctx, "StartParts", name, true); err != nil {
		return "", err
	}
	if name == "." {
		return "", fault.New("mounts/s3.StartParts", name, fault.IsDir, nil)
	}
	if err := b.room(ctx, "StartParts", name); err != nil {
		return "", err
	}
	u := &upload{b: b, op: "StartParts", name: name, key: b.key(name), opt: opt, src: &source{}, room: func() error { return nil }}
	err := u.ready(ctx)
	if u.unlock != nil {
		u.unlock()
	}
	if err != nil {
		return "", b.fail(ctx, "StartParts", name, err)
	}
	id, err := b.core.NewMultipartUpload(ctx, b.bucket, u.key, u.options(false))
	if err != nil {
		return "", b.fail(ctx, "StartParts", name, err)
	}
	return ticket{Name: name, Upload: id, Size: max(opt.Size, -1), Exclusive: opt.Exclusive}.String(), nil
}

// PutPart sends a part as it comes. A part that is sent again replaces the former.
func (b *Backend) PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error {
	t, err := b.ticket(ctx, "PutPart", id)
	if err != nil {
		return err
	}
	if number < 1 || number > maxParts || size < 0 {
		return fault.New("mounts/s3.PutPart", t.Name, fault.Invalid, nil)
	}
	u := &upload{b: b, op: "PutPart", name: t.Name, src: &source{src: src, want: size}}
	defer u.src.stop()
	if size == 0 {
		if err := u.src.ended(); err != nil {
			return u.fail(ctx, err)
		}
	}
	opt := minio.PutObjectPartOptions{DisableContentSha256: b.secure}
	_, err = b.core.PutObjectPart(hinted(ctx, hint{kind: writing}), b.bucket, b.key(t.Name), t.Upload, number, &whole{source: u.src, left: size}, size, opt)
	if err != nil {
		return u.fail(ctx, err)
	}
	return nil
}

// FinishParts makes the parts the file, in the order of their numbers.
func (b *Backend) FinishParts(ctx context.Context, id string) (mounts.Info, error) {
	const op = "FinishParts"
	t, err := b.ticket(ctx, op, id)
	if err != nil {
		return mounts.Info{}, err
	}
	var sent []minio.CompletePart
	var size int64
	for after := 0; ; {
		page, err := b.core.ListObjectParts(ctx, b.bucket, b.key(t.Name), t.Upload, after, pageSize)
		if err != nil {
			return mounts.Info{}, b.fail(ctx, op, t.Name, err)
		}
		for _, p := range page.ObjectParts {
			sent = append(sent, minio.CompletePart{PartNumber: p.PartNumber, ETag: p.ETag})
			size += p.Size
		}
		if !page.IsTruncated {
			break
		}
		if page.NextPartNumberMarker <= after || len(sent) > maxParts {
			return mounts.Info{}, b.fail(ctx, op, t.Name, errEndless)
		}
		after = page.NextPartNumberMarker
	}
	if t.Size >= 0 && size != t.Size {
		return mounts.Info{}, fault.New("mounts/s3."+op, t.Name, fault.Invalid, errLength)
	}
	u := &upload{b: b, op: op, name: t.Name, opt: mounts.PutOptions{Exclusive: t.Exclusive}, src: &source{}}
	info, err := b.join(ctx, t.Name, t.Upload, sent, u.options(true), size)
	if err != nil {
		return mounts.Info{}, u.fail(ctx, err)
	}
	b.placed(t.Name)
	return info, nil
}

// AbortParts gives an upload up.
func (b *Backend) AbortParts(ctx context.Context, id string) error {
	t, err := b.ticket(ctx, "AbortParts", id)
	if err != nil {
		return err
	}
	return b.fail(ctx, "AbortParts", t.Name, b.abort(ctx, b.key(t.Name), t.Upload))
}
