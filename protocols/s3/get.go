package s3

import (
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// getObject answers GET and HEAD of an object. A GET opens the file once and asks nothing else of the storage; a HEAD does not open it.
func (q *request) getObject() error {
	if err := q.current(); err != nil {
		return err
	}
	p, folder, err := q.source()
	if err != nil {
		return err
	}
	if folder {
		return q.getFolder(p)
	}
	if q.r.Method == http.MethodHead {
		info, err := q.s.Stat(q.ctx(), p)
		if err == nil && info.Dir {
			err = refuse(errNoSuchKey)
		}
		if err != nil {
			return q.missing(err)
		}
		return q.send(info, nil)
	}
	f, err := q.s.Open(q.ctx(), p, q.first())
	if err != nil {
		return q.missing(err)
	}
	defer f.Close()
	return q.send(f.Info(), f)
}

// first is what of the file will be read first, as far as that shows before its size is known.
func (q *request) first() gateway.ReadOptions {
	for _, key := range []string{"If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"} {
		if q.r.Header.Get(key) != "" {
			return gateway.ReadOptions{N: -1}
		}
	}
	v := q.r.Header.Get("Range")
	switch off, n, ok := parseRange(v, math.MaxInt64); {
	case q.query.has("partNumber"):
		return gateway.ReadOptions{N: -1}
	case v == "" || !ok:
		return gateway.ReadOptions{}
	case strings.HasPrefix(v, "bytes=-") || n == 0:
		return gateway.ReadOptions{N: -1}
	case off+n == math.MaxInt64:
		return gateway.ReadOptions{Off: off}
	default:
		return gateway.ReadOptions{Off: off, N: n}
	}
}

// getFolder answers for the key of a folder: an empty object.
func (q *request) getFolder(p gateway.Path) error {
	info, k, err := q.folder(p)
	if err != nil {
		return err
	}
	info.Size = 0
	return q.answer(info, emptyMD5, "", k, nil)
}

// folder looks whether a folder is the key "d/", see the package comment.
func (q *request) folder(p gateway.Path) (info gateway.Info, k kept, err error) {
	info, err = q.s.Stat(q.ctx(), p)
	if err == nil && !info.Dir {
		err = refuse(errNoSuchKey)
	}
	if err != nil {
		return info, k, q.missing(err)
	}
	if k, err = q.kept(info); err == nil && !k.put && (k.implied || !q.hollow(q.ctx(), p)) {
		err = refuse(errNoSuchKey)
	}
	return info, k, err
}

// send answers with info's headers and, unless f is nil, with the bytes of f.
func (q *request) send(info gateway.Info, f *gateway.File) error {
	k, err := q.kept(info)
	if err != nil {
		return err
	}
	return q.answer(info, etag(info), info.Sums, k, f)
}

func (q *request) answer(info gateway.Info, tag, sums string, k kept, f *gateway.File) error {
	hd := q.w.Header()
	modified := stamp(info)
	hd["Etag"] = []string{`"` + tag + `"`}
	hd["Last-Modified"] = []string{modified.Format(http.TimeFormat)}
	if err := readable(q.r.Header, tag, modified); err != nil {
		return err
	}
	k.meta.set(hd, info.Path.Base())
	if info.Dir && k.meta.Type == "" {
		hd["Content-Type"] = []string{"application/x-directory"}
	}
	if n := len(k.tags); n > 0 {
		hd["X-Amz-Tagging-Count"] = []string{itoa(int64(n))}
	}
	hd["Accept-Ranges"] = hdrBytes
	if err := q.override(hd); err != nil {
		return err
	}
	protect(hd)
	off, n, part, err := q.span(info, k)
	if err != nil {
		return err
	}
	if strings.EqualFold(q.r.Header.Get("X-Amz-Checksum-Mode"), "ENABLED") {
		switch number, _ := parseDigits(q.query.get("partNumber")); {
		case !part:
			setChecksum(hd, sums)
		case number > 0 && k.parts.sum(int(number)) != "":
			hd.Set("X-Amz-Checksum-"+k.parts.Algo, k.parts.sum(int(number)))
			hd["X-Amz-Checksum-Type"] = []string{k.parts.Kind}
		}
	}
	status := http.StatusOK
	if part {
		status = http.StatusPartialContent
		hd["Content-Range"] = []string{"bytes " + itoa(off) + "-" + itoa(off+n-1) + "/" + itoa(info.Size)}
	}
	hd["Content-Length"] = []string{itoa(n)}
	q.w.WriteHeader(status)
	if f == nil || q.r.Method == http.MethodHead {
		return nil
	}
	sent, err := f.CopyTo(q.ctx(), &q.w, off, n)
	if err == nil && sent < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// stamp is the time of the last change, that of the epoch where the storage does not tell.
func stamp(info gateway.Info) time.Time {
	if info.ModTime.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	return info.ModTime.UTC()
}

// span returns which bytes are asked for, and whether that is a part.
func (q *request) span(info gateway.Info, k kept) (off, n int64, part bool, err error) {
	v := q.r.Header.Get("Range")
	if q.query.has("partNumber") {
		number, ok := parseDigits(q.query.get("partNumber"))
		switch {
		case !ok || number < 1 || number > gateway.MaxPart:
			return 0, 0, false, refuseFor(errArgument, "Part number must be an integer between 1 and 10000, inclusive")
		case v != "":
			return 0, 0, false, refuseFor(errRequest, "Cannot specify both Range header and partNumber query parameter")
		case k.parts == nil:
			if number > 1 {
				return 0, 0, false, refuse(errPartNumber)
			}
			return 0, info.Size, false, nil
		}
		off, n, ok := k.parts.at(int(number))
		if !ok || off+n > info.Size {
			return 0, 0, false, refuse(errPartNumber)
		}
		q.w.Header().Set("X-Amz-Mp-Parts-Count", itoa(int64(k.parts.count())))
		return off, n, true, nil
	}
	off, n, ok := parseRange(v, info.Size)
	switch {
	case !ok:
		return 0, info.Size, false, nil
	case n == 0:
		q.w.Header()["Content-Range"] = []string{"bytes */" + itoa(info.Size)} // RFC 9110 §15.5.17
		return 0, 0, false, &refusal{errRange, []string{"RangeRequested", v, "ActualObjectSize", itoa(info.Size)}}
	}
	return off, n, true, nil
}

// parseRange reads "bytes=a-b", "bytes=a-" or "bytes=-n" for a file of size bytes (RFC 9110 §14.1.2); n is 0 when that lies beyond it. It is not
// ok when the whole file is to be sent: without a range, with several, and with what is none.
func parseRange(v string, size int64) (off, n int64, ok bool) {
	spec, ok := strings.CutPrefix(v, "bytes=")
	first, last, ok2 := strings.Cut(strings.TrimSpace(spec), "-")
	if !ok || !ok2 {
		return 0, 0, false
	}
	from, okFirst := parseDigits(first)
	to, okLast := parseDigits(last)
	switch {
	case first != "" && !okFirst, last != "" && !okLast, first == "" && last == "":
		return 0, 0, false
	case first == "":
		from, to = max(size-to, 0), size-1
	case last == "":
		to = size - 1
	case to < from:
		return 0, 0, false
	}
	if to = min(to, size-1); from > to {
		return 0, 0, true
	}
	return from, to - from + 1, true
}

// overrides are the parameters that replace headers of the answer. They are part of what is signed.
var overrides = map[string]string{
	"response-content-type": "Content-Type", "response-content-language": "Content-Language", "response-expires": "Expires",
	"response-cache-control": "Cache-Control", "response-content-disposition": "Content-Disposition", "response-content-encoding": "Content-Encoding",
}

func (q *request) override(hd http.Header) error {
	for _, p := range q.query {
		if name := overrides[p.name]; name != "" {
			if strings.ContainsAny(p.value, "\r\n\x00") {
				return refuse(errArgument)
			}
			hd[name] = []string{p.value}
		}
	}
	return nil
}

// protect keeps a browser from running what somebody has stored: it is taken for what it is said to be, and has no rights.
func protect(hd http.Header) {
	hd["X-Content-Type-Options"] = hdrNosniff
	if kind := strings.ToLower(hd["Content-Type"][0]); strings.Contains(kind, "html") || strings.Contains(kind, "xml") || strings.Contains(kind, "script") {
		hd["Content-Security-Policy"] = hdrSandbox
	}
}

// getAttributes answers GetObjectAttributes.
func (q *request) getAttributes() error {
	if err := q.current(); err != nil {
		return err
	}
	p, folder, err := q.source()
	if err != nil {
		return err
	}
	var info gateway.Info
	var k kept
	var tag string
	if folder {
		info, k, err = q.folder(p)
		tag = emptyMD5
	} else if info, err = q.s.Stat(q.ctx(), p); err == nil && info.Dir {
		err = refuse(errNoSuchKey)
	} else if err == nil {
		tag = etag(info)
		k, err = q.kept(info)
	}
	if err != nil {
		return q.missing(err)
	}
	if err := readable(q.r.Header, tag, stamp(info)); err != nil {
		return err
	}
	want := map[string]bool{}
	for _, v := range q.r.Header["X-Amz-Object-Attributes"] {
		for name := range strings.SplitSeq(v, ",") {
			switch name = strings.TrimSpace(name); name {
			case "ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize":
				want[name] = true
			default:
				return refuseFor(errArgument, "Invalid attribute name specified.")
			}
		}
	}
	if len(want) == 0 {
		return refuseFor(errRequest, "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty")
	}
	b := document("GetObjectAttributesResponse")
	if want["ETag"] {
		b = elem(b, "ETag", tag)
	}
	if c, ok := told(info.Sums); ok && want["Checksum"] {
		b = elem(open(b, "Checksum"), "Checksum"+c.algo, c.value)
		b = closed(elem(b, "ChecksumType", c.kind), "Checksum")
	}
	if want["ObjectParts"] && k.parts != nil {
		if b, err = q.appendParts(b, info, k.parts); err != nil {
			return err
		}
	}
	if want["StorageClass"] {
		b = elem(b, "StorageClass", "STANDARD")
	}
	if want["ObjectSize"] {
		b = elemInt(b, "ObjectSize", info.Size)
	}
	q.w.Header()["Last-Modified"] = []string{stamp(info).Format(http.TimeFormat)}
	return q.reply(http.StatusOK, closed(b, "GetObjectAttributesResponse"))
}

// errKind reports whether err is of a kind.
func errKind(err error, kind fault.Kind) bool {
	var r *refusal
	return err != nil && !errors.As(err, &r) && fault.KindOf(err) == kind
}
