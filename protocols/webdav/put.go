package webdav

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// put replaces or creates a file. Nothing is published unless the body came to its declared end and what the client says of it is true.
func (q *request) put() error {
	hd := q.r.Header
	switch {
	case hd.Get("Content-Range") != "": // RFC 9110 §14.5: it must not be taken for the whole
		return refuse(http.StatusBadRequest, "Content-Range is not possible with PUT")
	case !identityCoding(hd.Get("Content-Encoding")):
		return refuse(http.StatusUnsupportedMediaType, "Content-Encoding is not supported")
	case strings.HasSuffix(q.r.URL.Path, "/"): // RFC 4918 §9.7.2: a folder's URL
		return q.refuseFolder()
	}
	o := gateway.CreateOptions{Size: q.r.ContentLength, Cond: q.cond(), Checksum: hd.Get("Oc-Checksum"),
		Expect: hd.Get("Expect") != ""}
	if v := hd.Get("X-Oc-Mtime"); v != "" {
		var err error
		if o.ModTime, err = unixTime(v); err != nil {
			return err
		}
	}
	up, err := q.s.Create(q.ctx(), q.path, o)
	if err != nil {
		return q.putError(err)
	}
	defer up.Abort()
	// The first read is what sends "100 Continue" to a client that waits for it.
	if _, err := up.ReadFrom(&q.body); err != nil {
		return q.body.cut(err)
	}
	info, created, err := up.Commit(q.ctx())
	if err != nil {
		return q.putError(err)
	}
	out := q.w.Header()
	if info.ETag != "" {
		out["Etag"] = []string{info.ETag}
		out["Oc-Etag"] = out["Etag"]
	}
	if !o.ModTime.IsZero() {
		out["X-Oc-Mtime"] = []string{"accepted"}
	}
	return q.done(created)
}

// putError is what RFC 4918 §9.7 says of a PUT that the core refused.
func (q *request) putError(err error) error {
	switch fault.KindOf(err) {
	case fault.NotExist: // §9.7.1
		return refuse(http.StatusConflict, "the folder to put it in does not exist")
	case fault.IsDir:
		return q.refuseFolder()
	}
	return err
}

func (q *request) refuseFolder() error {
	q.w.Header().Set("Allow", allowFolder)
	return refuse(http.StatusMethodNotAllowed, "is a folder")
}

// done answers 201 for what is new and 204 for what was replaced.
func (q *request) done(created bool) error {
	status := http.StatusNoContent
	if created {
		status = http.StatusCreated
		q.w.Header()["Content-Length"] = []string{"0"}
	}
	q.w.WriteHeader(status)
	return nil
}

func identityCoding(v string) bool { return v == "" || strings.EqualFold(v, "identity") }

// unixTime reads X-OC-Mtime: seconds since 1970, perhaps with a fraction.
func unixTime(v string) (time.Time, error) {
	whole, fraction, _ := strings.Cut(v, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	ns, ok := parseDigits((fraction + "000000000")[:9])
	if err != nil || !ok || sec <= 0 || sec > 1<<36 {
		return time.Time{}, refuse(http.StatusBadRequest, "X-OC-Mtime is no time")
	}
	return time.Unix(sec, ns).UTC(), nil
}
