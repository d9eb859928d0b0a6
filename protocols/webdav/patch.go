package webdav

import (
	"io"
	"net/http"
	"os"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// patchType is SabreDAV's partial update: the body replaces the bytes that X-Update-Range names.
const patchType = "application/x-sabredav-partialupdate"

// patch changes part of a file. The core writes to a copy, so a body that is cut off changes nothing, and nobody reads a half.
func (q *request) patch() error {
	kind, _, _ := strings.Cut(q.r.Header.Get("Content-Type"), ";")
	switch {
	case !strings.EqualFold(strings.TrimSpace(kind), patchType):
		return refuse(http.StatusUnsupportedMediaType, "PATCH takes "+patchType)
	case !identityCoding(q.r.Header.Get("Content-Encoding")):
		return refuse(http.StatusUnsupportedMediaType, "Content-Encoding is not supported")
	case q.r.ContentLength < 0:
		return refuse(http.StatusLengthRequired, "PATCH needs a Content-Length")
	}
	f, err := q.s.OpenFile(q.ctx(), q.path, gateway.OpenOptions{Flag: os.O_WRONLY, Cond: q.cond(), Base: true})
	if fault.KindOf(err) == fault.IsDir && err != nil {
		return q.refuseFolder()
	}
	if err != nil {
		return err
	}
	defer f.Abort() // nothing is left to abort once it is closed
	off, err := updateRange(q.r.Header.Get("X-Update-Range"), f.Info().Size, q.r.ContentLength)
	if err != nil {
		return err
	}
	if n, err := io.Copy(io.NewOffsetWriter(f, off), &q.body); err != nil || n != q.r.ContentLength {
		return q.body.cut(err)
	}
	if err := f.Close(q.ctx()); err != nil {
		return err
	}
	if etag := f.Info().ETag; etag != "" {
		q.w.Header()["Etag"] = []string{etag}
	}
	return q.done(false)
}

// updateRange reads "append", "bytes=a-b", "bytes=a-" or "bytes=-n" for a file of size bytes and a body of n, and returns where it goes.
func updateRange(v string, size, n int64) (off int64, err error) {
	bad := refuse(http.StatusBadRequest, "X-Update-Range is append, bytes=a-b, bytes=a- or bytes=-n")
	unfit := refuse(http.StatusRequestedRangeNotSatisfiable, "the range does not fit the body or the file")
	v = strings.ToLower(strings.TrimSpace(v))
	if v == "append" {
		return size, nil
	}
	spec, ok := strings.CutPrefix(v, "bytes=")
	first, last, dash := strings.Cut(spec, "-")
	from, okFrom := parseDigits(first)
	to, okTo := parseDigits(last)
	switch {
	case !ok || !dash || first == "" && last == "" || first != "" && !okFrom || last != "" && !okTo:
		return 0, bad
	case first == "" && to > size, first != "" && last != "" && (to < from || to-from+1 != n), first != "" && from > size:
		return 0, unfit // a start beyond the end would leave a hole that nobody wrote
	case first == "":
		return size - to, nil
	}
	return from, nil
}
