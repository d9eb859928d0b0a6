package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open costs one request, whose answer also tells the Info; one more where there is nothing to read in the range.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	const op = "mounts/s3.Open"
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	if off < 0 {
		return nil, fault.New(op, name, fault.Invalid, errOffset)
	}
	if name == "." {
		return nil, fault.New(op, name, fault.IsDir, nil)
	}
	if n == 0 {
		return b.openNothing(ctx, name)
	}
	opt := minio.GetObjectOptions{}
	ranged := off > 0 || n > 0
	if ranged {
		last := ""
		if n > 0 && off+n > off {
			last = strconv.FormatInt(off+n-1, 10)
		}
		opt.Set("Range", "bytes="+strconv.FormatInt(off, 10)+"-"+last)
	}
	asked := b.facts.now()
	body, o, header, err := b.core.GetObject(hinted(ctx, hint{kind: reading}), b.bucket, b.key(name), opt)
	var res minio.ErrorResponse
	switch {
	case err == nil:
	case errors.As(err, &res) && (res.Code == "InvalidRange" || res.StatusCode == http.StatusRequestedRangeNotSatisfiable):
		return b.openNothing(ctx, name)
	case missing(err):
		return nil, b.noFile(ctx, name)
	default:
		return nil, b.fail(ctx, "Open", name, err)
	}
	r := &reader{b: b, ctx: ctx, body: body, name: name, info: fileInfo(name, o), left: o.Size}
	if ranged {
		if err := r.place(header.Get("Content-Range"), off, n, o.Size); err != nil {
			r.Close()
			return nil, b.fail(ctx, "Open", name, err)
		}
	}
	b.facts.wereFiles(asked, ".", name)
	return r, nil
}

// openNothing returns an empty reader of a file that is there.
func (b *Backend) openNothing(ctx context.Context, name string) (io.ReadCloser, error) {
	info, err := b.head(ctx, name)
	if missing(err) {
		return nil, b.noFile(ctx, name)
	}
	if err != nil {
		return nil, b.fail(ctx, "Open", name, err)
	}
	return &reader{b: b, ctx: ctx, body: http.NoBody, name: name, info: info}, nil
}

// noFile says what a name is that has no object.
func (b *Backend) noFile(ctx context.Context, name string) error {
	below, err := b.peek(ctx, b.folder(name), 1)
	switch {
	case err != nil:
		return b.fail(ctx, "Open", name, err)
	case len(below) > 0:
		return fault.New("mounts/s3.Open", name, fault.IsDir, nil)
	}
	return fault.New("mounts/s3.Open", name, fault.NotExist, nil)
}

// reader is the body of an answer. It never ends early without an error.
type reader struct {
	b    *Backend
	ctx  context.Context // of Open, which the answer belongs to
	body io.ReadCloser
	name string
	info mounts.Info
	left int64 // bytes to come, -1 unknown
}

var _ mounts.Stater = (*reader)(nil)

// place takes the size of the file and the length of the part from the answer, and goes to where the part begins when the server sent all.
func (r *reader) place(contentRange string, off, n, length int64) error {
	if contentRange == "" { // RFC 9110 §14.2: a server may ignore Range
		skip := off
		if length >= 0 {
			skip = min(off, length)
		}
		if _, err := io.CopyN(io.Discard, r.body, skip); err != nil && err != io.EOF {
			return err
		}
		if r.left = length; length >= 0 {
			r.left = length - skip
		}
		if n > 0 && (r.left < 0 || r.left > n) {
			r.left = n
		}
		return nil
	}
	first, last, size, err := parseRange(contentRange)
	if err != nil {
		return err
	}
	want := size - off
	if n > 0 {
		want = min(want, n)
	}
	if first != off || last-first+1 != want {
		return errRange
	}
	r.info.Size, r.left = size, want
	return nil
}

// parseRange understands "bytes 5-14/100" (RFC 9110 §14.4).
func parseRange(s string) (first, last, size int64, err error) {
	spec, ok := strings.CutPrefix(s, "bytes ")
	span, total, ok2 := strings.Cut(spec, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, errRange
	}
	var nums [3]int64
	for i, text := range []string{from, to, total} {
		n, err := strconv.ParseUint(text, 10, 62)
		if err != nil {
			return 0, 0, 0, errRange
		}
		nums[i] = int64(n)
	}
	if nums[0] > nums[1] || nums[1] >= nums[2] {
		return 0, 0, 0, errRange
	}
	return nums[0], nums[1], nums[2], nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.left > 0 {
		p = p[:min(int64(len(p)), r.left)]
	}
	n, err := r.body.Read(p)
	if r.left > 0 {
		r.left -= int64(n)
	}
	switch {
	case err == nil:
	case err == io.EOF && r.left <= 0:
		return n, io.EOF
	case err == io.EOF, errors.Is(err, io.ErrUnexpectedEOF):
		err = r.b.fail(r.ctx, "Read", r.name, fmt.Errorf("%w", errShort))
	default:
		err = r.b.fail(r.ctx, "Read", r.name, err)
	}
	return n, err
}

// Close implements io.Closer. A body that was read to its end leaves its connection for the next request.
func (r *reader) Close() error {
	if r.left == 0 {
		r.body.Read(make([]byte, 1))
	}
	r.body.Close()
	return nil
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }
