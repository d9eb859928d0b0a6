package dropbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend with one request; its reader is a mounts.Stater.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	switch {
	case off < 0:
		return nil, fault.New("mounts/dropbox.Open", name, fault.Invalid, nil)
	case name == ".":
		return nil, fault.New("mounts/dropbox.Open", name, fault.IsDir, nil)
	case n == 0:
		return b.nothing(ctx, name, math.MaxInt64)
	}
	if n > math.MaxInt64-off {
		n = -1
	}
	arg := files.NewDownloadArg(b.path(name))
	switch {
	case n > 0:
		arg.ExtraHeaders = map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", off, off+n-1)}
	case off > 0:
		arg.ExtraHeaders = map[string]string{"Range": fmt.Sprintf("bytes=%d-", off)}
	}
	m, content, err := b.files.DownloadContext(ctx, arg)
	if err != nil {
		if content != nil {
			content.Close()
		}
		var no *refusal
		if errors.As(err, &no) && no.status == http.StatusRequestedRangeNotSatisfiable {
			return b.nothing(ctx, name, off)
		}
		return nil, fail("Open", name, err)
	}
	r, err := newReader(ctx, name, m, content, off, n)
	if err != nil {
		content.Close()
		return nil, err
	}
	b.seen.told(b.path(name), m)
	dir, _ := mounts.Split(name)
	b.folders.learn(b.path(dir))
	return r, nil
}

// nothing returns a reader of no bytes, once it is sure that there is a file that ends before off.
func (b *Backend) nothing(ctx context.Context, name string, off int64) (io.ReadCloser, error) {
	_, info, err := b.metadata(ctx, "Open", name)
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fault.New("mounts/dropbox.Open", name, fault.IsDir, nil)
	case info.Type != mounts.File:
		return nil, fault.New("mounts/dropbox.Open", name, fault.Denied, errNoFile)
	case off < info.Size:
		return nil, fault.New("mounts/dropbox.Open", name, fault.Unavailable, errRange)
	}
	return &reader{ctx: ctx, name: name, info: info, body: http.NoBody}, nil
}

var errRange = errors.New("the answer holds another range of the file than was asked for")

// reader reads a download to its end, which is where the file's size says.
type reader struct {
	ctx  context.Context
	name string
	info mounts.Info
	body io.ReadCloser
	left int64
	err  error
}

var _ mounts.Stater = (*reader)(nil)

func newReader(ctx context.Context, name string, m *files.FileMetadata, content io.ReadCloser, off, n int64) (*reader, error) {
	info, ok := describe(m)
	a, came := content.(*answer)
	switch {
	case !ok || !came:
		return nil, fail("Open", name, errAnswer)
	case info.Type != mounts.File:
		return nil, fault.New("mounts/dropbox.Open", name, fault.Denied, errNoFile)
	}
	r := &reader{ctx: ctx, name: name, info: info, body: content, left: max(info.Size-off, 0)}
	if n >= 0 {
		r.left = min(r.left, n)
	}
	if a.resp.StatusCode == http.StatusPartialContent && !strings.HasPrefix(a.resp.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(off, 10)+"-") ||
		a.resp.StatusCode != http.StatusPartialContent && off > 0 {
		return nil, fault.New("mounts/dropbox.Open", name, fault.Unavailable, errRange)
	}
	return r, nil
}

// Stat returns the Info of the whole file, as of its opening.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if err := r.ctx.Err(); err != nil {
		return 0, fault.Wrap("mounts/dropbox.Read", r.name, err)
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.body.Read(p)
	if r.left -= int64(n); r.left == 0 || err == nil {
		return n, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF // the rest of the file is missing
	}
	if cause := r.ctx.Err(); cause != nil {
		err = cause
	}
	r.err = fail("Read", r.name, &url.Error{Op: "read", Err: err})
	return n, r.err
}

// Close ends the download. What was not read costs the connection.
func (r *reader) Close() error {
	r.err = fault.New("mounts/dropbox.Read", r.name, fault.Invalid, errClosed)
	r.body.Close()
	return nil
}
