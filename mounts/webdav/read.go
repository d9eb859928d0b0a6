package webdav

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Open implements mounts.Backend, by one request. What reads ahead is the connection: its window grows with the delay.
func (b *Backend) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if err := b.begin(ctx, "Open", name, false); err != nil {
		return nil, err
	}
	switch {
	case off < 0:
		return nil, fail("Open", name, fault.Invalid, nil)
	case name == ".":
		return nil, fail("Open", name, fault.IsDir, nil)
	case n == 0:
		return b.openEmpty(ctx, name)
	}
	r, err := b.get(ctx, name, off, n)
	if err == nil {
		return r, nil
	}
	if statusOf(err) == http.StatusRequestedRangeNotSatisfiable {
		return b.openEmpty(ctx, name)
	}
	if !vague(err) {
		return nil, wrap("Open", name, err)
	}
	info, serr := b.stat(ctx, name)
	switch {
	case serr == nil && info.IsDir():
		return nil, fail("Open", name, fault.IsDir, nil)
	case serr != nil && fault.KindOf(serr) == fault.NotExist:
		return nil, wrap("Open", name, serr)
	case serr == nil: // it was being replaced, perhaps
		if r, err = b.get(ctx, name, off, n); err == nil {
			return r, nil
		}
	}
	return nil, b.explain(ctx, "Open", name, err)
}

// get asks for a part of a file.
func (b *Backend) get(ctx context.Context, name string, off, n int64) (*reader, error) {
	header := http.Header{"Accept-Encoding": {"identity"}}
	switch {
	case n > 0 && off+n > off:
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1))
	case off > 0:
		header.Set("Range", fmt.Sprintf("bytes=%d-", off))
	}
	unlock := func() {}
	if !b.kind.replaces {
		var err error
		if unlock, err = b.names.rlock(ctx, name); err != nil {
			return nil, err
		}
	}
	resp, err := b.do(ctx, request{method: http.MethodGet, path: b.path(name), header: header, again: true, stream: true})
	unlock() // the server has it open
	if err != nil {
		return nil, err
	}
	r, err := b.reader(ctx, name, resp, off, n)
	if err != nil || r.want == 0 {
		resp.finish()
	}
	return r, err
}

// openEmpty opens nothing of a file that is there.
func (b *Backend) openEmpty(ctx context.Context, name string) (io.ReadCloser, error) {
	info, err := b.stat(ctx, name)
	if err != nil {
		return nil, b.explain(ctx, "Open", name, err)
	}
	if info.IsDir() {
		return nil, fail("Open", name, fault.IsDir, nil)
	}
	return &reader{rc: strings.NewReader(""), end: func() {}, name: name, info: info}, nil
}

// reader reads a file of the server.
type reader struct {
	rc     io.Reader
	end    func() // gives the connection back
	name   string
	info   mounts.Info
	want   int64 // bytes that are still to come
	closed bool
}

var _ mounts.Stater = (*reader)(nil)

// reader makes sense of an answer to GET.
func (b *Backend) reader(ctx context.Context, name string, resp *response, off, n int64) (*reader, error) {
	h, size, skip := resp.Header, resp.ContentLength, int64(0)
	switch resp.StatusCode {
	case http.StatusOK: // a server may ignore ranges
		skip = off
	case http.StatusPartialContent:
		first, total, ok := contentRange(h.Get("Content-Range"))
		if !ok || first != off {
			return nil, fault.New("mounts/webdav.request", "", fault.Unavailable, errors.New("the server answered with another range than asked for"))
		}
		size = total
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect: // to itself with a slash
		return nil, fault.New("mounts/webdav.request", "", fault.IsDir, nil)
	default:
		return nil, b.status(resp.StatusCode)
	}
	if coding := h.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, fault.New("mounts/webdav.request", "", fault.Unavailable, errors.New("the server sends another form of the file than asked for"))
	}
	_, base := mounts.Split(name)
	info := mounts.Info{Name: base, Type: mounts.File, Size: size, ModTime: modified(h.Get("Last-Modified"))}
	if b.tags.Load() >= 0 {
		info.Tag = strong(h.Get("Etag"))
	}
	// A page that shows a folder has neither a time nor a tag. Where the length is not told, only PROPFIND tells whether all came.
	if size < 0 || info.ModTime.IsZero() && h.Get("Etag") == "" {
		var err error
		if info, err = b.stat(ctx, name); err != nil {
			return nil, err
		}
		if info.IsDir() {
			return nil, fault.New("mounts/webdav.request", "", fault.IsDir, nil)
		}
	}
	r := &reader{rc: resp.Body, name: name, info: info, want: max(0, info.Size-off)}
	r.end = func() {
		if r.want > 0 {
			resp.Body.Close() // the rest may be long, so the connection goes
		} else {
			resp.finish()
		}
	}
	if info.Size < 0 {
		return nil, fault.New("mounts/webdav.request", "", fault.Unavailable, errors.New("the server does not tell how long the file is"))
	}
	if n >= 0 {
		r.want = min(r.want, n)
	}
	if skip = min(skip, info.Size); skip > 0 && r.want > 0 {
		if _, err := io.CopyN(io.Discard, resp.Body, skip); err != nil {
			return nil, broken(err)
		}
	}
	return r, nil
}

// contentRange reads "bytes 5-9/100" (RFC 9110 §14.4).
func contentRange(v string) (first, total int64, ok bool) {
	rest, ok := strings.CutPrefix(v, "bytes ")
	span, all, ok2 := strings.Cut(rest, "/")
	from, to, ok3 := strings.Cut(span, "-")
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	total, err3 := strconv.ParseInt(all, 10, 64)
	ok = ok && ok2 && ok3 && err1 == nil && err2 == nil && err3 == nil && first >= 0 && last >= first && total > last
	return first, total, ok
}

// Read implements io.Reader. A file that ends before its size is an error.
func (r *reader) Read(p []byte) (int, error) {
	switch {
	case r.closed:
		return 0, fail("Read", r.name, fault.Invalid, os.ErrClosed)
	case r.want == 0:
		return 0, io.EOF
	case int64(len(p)) > r.want:
		p = p[:r.want]
	}
	n, err := r.rc.Read(p)
	r.want -= int64(n)
	switch {
	case r.want == 0:
		return n, nil // the rest is nobody's
	case err == io.EOF:
		return n, fail("Read", r.name, fault.Unavailable, errCut)
	case err != nil:
		return n, wrap("Read", r.name, err)
	}
	return n, nil
}

// Stat implements mounts.Stater.
func (r *reader) Stat() (mounts.Info, error) { return r.info, nil }

// Close implements io.Closer.
func (r *reader) Close() error {
	if !r.closed {
		r.closed = true
		r.end()
	}
	return nil
}
