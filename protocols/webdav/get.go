package webdav

import (
	"crypto/rand"
	"io"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// Values of headers that are the same in every answer. Shared, so nobody may append to them.
var (
	hdrNosniff    = []string{"nosniff"}
	hdrBytes      = []string{"bytes"}
	hdrAttachment = []string{"attachment"}
	hdrNoCache    = []string{"private, no-cache"}
	hdrSandbox    = []string{"default-src 'none'; img-src 'self'; media-src 'self'; frame-ancestors 'none'; sandbox"}
)

// get answers GET and HEAD. A GET opens the file once and asks nothing else; a HEAD does not open it.
func (q *request) get() error {
	if q.r.Method == http.MethodHead {
		info, err := q.s.Stat(q.ctx(), q.path)
		if err != nil {
			return err
		}
		if info.Dir {
			return q.index()
		}
		return q.send(info, nil)
	}
	f, err := q.s.Open(q.ctx(), q.path, q.first())
	if fault.KindOf(err) == fault.IsDir && err != nil {
		return q.index()
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return q.send(f.Info(), f)
}

// first is what of the file will be read first, as far as that shows before its size is known. Where the answer may well have no body,
// nothing is.
func (q *request) first() gateway.ReadOptions {
	for _, key := range []string{"If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since", "If-Range"} {
		if q.r.Header.Get(key) != "" {
			return gateway.ReadOptions{N: -1}
		}
	}
	v := q.r.Header.Get("Range")
	if v == "" {
		return gateway.ReadOptions{}
	}
	list, valid := parseRanges(v, math.MaxInt64)
	switch {
	case !valid:
		return gateway.ReadOptions{}
	case len(list) != 1 || strings.HasPrefix(strings.TrimSpace(v[6:]), "-"):
		return gateway.ReadOptions{N: -1}
	case list[0].off+list[0].n == math.MaxInt64:
		return gateway.ReadOptions{Off: list[0].off}
	}
	return gateway.ReadOptions{Off: list[0].off, N: list[0].n}
}

// send answers with info's headers and, unless f is nil, with the bytes of f.
func (q *request) send(info gateway.Info, f *gateway.File) error {
	hd := q.w.Header()
	if info.ETag != "" {
		hd["Etag"] = []string{info.ETag}
	}
	if !info.ModTime.IsZero() {
		hd["Last-Modified"] = []string{info.ModTime.UTC().Format(http.TimeFormat)}
	}
	hd["Cache-Control"] = hdrNoCache
	switch evaluate(q.r, info) {
	case http.StatusNotModified: // RFC 9110 §15.4.5: the validators go along
		q.w.WriteHeader(http.StatusNotModified)
		return nil
	case http.StatusPreconditionFailed:
		return errPrecondition()
	}
	kind := info.Type()
	protect(hd, kind)
	hd["Accept-Ranges"] = hdrBytes
	if info.Size < 0 {
		hd["Content-Type"] = []string{kind}
		q.w.WriteHeader(http.StatusOK)
		return q.copy(f, 0, -1)
	}
	ranges, ok := q.ranges(info)
	if !ok {
		hd["Content-Range"] = []string{"bytes */" + strconv.FormatInt(info.Size, 10)} // RFC 9110 §15.5.17
		return refuse(http.StatusRequestedRangeNotSatisfiable, "range not satisfiable")
	}
	if len(ranges) > 1 {
		return q.sendParts(info, kind, f, ranges)
	}
	status, part := http.StatusOK, span{0, info.Size}
	if len(ranges) == 1 {
		status, part = http.StatusPartialContent, ranges[0]
		hd["Content-Range"] = []string{part.contentRange(info.Size)}
	}
	hd["Content-Type"] = []string{kind}
	hd["Content-Length"] = []string{strconv.FormatInt(part.n, 10)}
	q.w.WriteHeader(status)
	return q.copy(f, part.off, part.n)
}

// copy sends n bytes of f from off, all of them when n < 0, nothing for HEAD. A file that turns out shorter than it was said to be ends the
// connection, which is the only way left to tell.
func (q *request) copy(f *gateway.File, off, n int64) error {
	if f == nil {
		return nil
	}
	if n < 0 {
		_, err := io.Copy(&q.w, f)
		return err
	}
	sent, err := f.CopyTo(q.ctx(), &q.w, off, n)
	if err == nil && sent < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// sendParts answers several ranges at once (RFC 9110 §15.3.7.2).
func (q *request) sendParts(info gateway.Info, kind string, f *gateway.File, ranges []span) error {
	boundary := rand.Text()
	heads, total := make([]string, len(ranges)), int64(0)
	for i, s := range ranges {
		heads[i] = "\r\n--" + boundary + "\r\nContent-Type: " + kind + "\r\nContent-Range: " + s.contentRange(info.Size) + "\r\n\r\n"
		total += int64(len(heads[i])) + s.n
	}
	tail := "\r\n--" + boundary + "--\r\n"
	hd := q.w.Header()
	hd["Content-Type"] = []string{"multipart/byteranges; boundary=" + boundary}
	hd["Content-Length"] = []string{strconv.FormatInt(total+int64(len(tail)), 10)}
	q.w.WriteHeader(http.StatusPartialContent)
	if f == nil {
		return nil
	}
	for i, s := range ranges {
		if _, err := io.WriteString(&q.w, heads[i]); err != nil {
			return err
		}
		if err := q.copy(f, s.off, s.n); err != nil {
			return err
		}
	}
	_, err := io.WriteString(&q.w, tail)
	return err
}

// evaluate applies the conditions of a GET or HEAD in the order of RFC 9110 §13.2.2 and returns 304, 412 or 0.
func evaluate(r *http.Request, info gateway.Info) int {
	since := func(key string) bool { // not modified since the header's time
		t := httpTime(r.Header.Get(key))
		return !t.IsZero() && !info.ModTime.IsZero() && !info.ModTime.Truncate(time.Second).After(t)
	}
	if m := etags(r.Header, "If-Match"); len(m) > 0 {
		if !matches(m, info.ETag, false) {
			return http.StatusPreconditionFailed
		}
	} else if t := httpTime(r.Header.Get("If-Unmodified-Since")); !t.IsZero() && !since("If-Unmodified-Since") {
		return http.StatusPreconditionFailed
	}
	if m := etags(r.Header, "If-None-Match"); len(m) > 0 {
		if matches(m, info.ETag, true) {
			return http.StatusNotModified
		}
	} else if since("If-Modified-Since") {
		return http.StatusNotModified
	}
	return 0
}

// span is n bytes from off.
type span struct{ off, n int64 }

func (s span) contentRange(size int64) string {
	b := append(make([]byte, 0, 64), "bytes "...)
	b = append(strconv.AppendInt(b, s.off, 10), '-')
	b = append(strconv.AppendInt(b, s.off+s.n-1, 10), '/')
	return string(strconv.AppendInt(b, size, 10))
}

// maxRanges is how many ranges one request is served with; whoever asks for more gets the whole file, as whoever asks for more bytes than
// there are (RFC 9110 §14.2 and §17.15).
const maxRanges = 64

// ranges returns what the Range header asks for, nothing when it is to be ignored. It is not ok when no range can be satisfied.
func (q *request) ranges(info gateway.Info) (list []span, ok bool) {
	v := q.r.Header.Get("Range")
	if v == "" {
		return nil, true
	}
	if ir := q.r.Header.Get("If-Range"); ir != "" { // RFC 9110 §13.1.5: a strong tag or the exact date
		same := ir == info.ETag && !strings.HasPrefix(ir, "W/")
		if t := httpTime(ir); !t.IsZero() {
			same = !info.ModTime.IsZero() && info.ModTime.Truncate(time.Second).Equal(t)
		}
		if !same {
			return nil, true
		}
	}
	list, valid := parseRanges(v, info.Size)
	if !valid {
		return nil, true
	}
	if len(list) == 0 {
		return nil, false
	}
	var total int64
	for _, s := range list {
		total += s.n
	}
	if len(list) > maxRanges || len(list) > 1 && total > info.Size {
		return nil, true
	}
	return list, true
}

// parseRanges reads "bytes=a-b, c-, -d" for a file of size bytes (RFC 9110 §14.1.2) and leaves out what lies beyond it. It is not valid when
// the syntax or the unit is another.
func parseRanges(v string, size int64) (list []span, valid bool) {
	if len(v) < 6 || !strings.EqualFold(v[:6], "bytes=") {
		return nil, false
	}
	for part := range strings.SplitSeq(v[6:], ",") {
		if part = strings.Trim(part, " \t"); part == "" {
			continue
		}
		first, last, ok := strings.Cut(part, "-")
		from, okFirst := parseDigits(first)
		to, okLast := parseDigits(last)
		switch {
		case !ok || first != "" && !okFirst || last != "" && !okLast || first == "" && last == "":
			return nil, false
		case first == "":
			from, to = max(size-to, 0), size-1
		case last == "":
			to = size - 1
		case to < from:
			return nil, false
		}
		to = min(to, size-1)
		if from <= to {
			list = append(list, span{from, to - from + 1})
		}
		valid = true
	}
	return list, valid
}

// parseDigits reads digits only: no sign, no blank. What overflows is as good as the largest number.
func parseDigits(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	n, _ := strconv.ParseInt(s, 10, 64)
	return n, s != ""
}
