package s3

import (
	"net/http"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// etags splits a list of entity tags, which come with or without quotes.
func etags(hd http.Header, key string) (list []string) {
	for _, v := range hd[key] { // keys given in canonical form
		for t := range strings.SplitSeq(v, ",") {
			if t = unquoted(t); t != "" {
				list = append(list, t)
			}
		}
	}
	return list
}

// unquoted takes an entity tag out of its quotes.
func unquoted(t string) string {
	return strings.Trim(strings.TrimPrefix(strings.TrimSpace(t), "W/"), `"`)
}

func matches(list []string, tag string) bool {
	for _, t := range list {
		if t == "*" || strings.EqualFold(t, tag) {
			return true
		}
	}
	return false
}

// httpTime reads an HTTP date; one that is none counts as absent (RFC 9110 §13.1.3).
func httpTime(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	if t, err := http.ParseTime(s); err == nil {
		return t
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// evaluate applies the conditions of a read in the order of RFC 9110 §13.2.2 and returns 304, 412 or 0. prefix is that of the headers' names
// in canonical form: "" or "X-Amz-Copy-Source-".
func evaluate(hd http.Header, prefix, tag string, modified time.Time) int {
	modified = modified.Truncate(time.Second)
	if m := etags(hd, prefix+"If-Match"); len(m) > 0 {
		if !matches(m, tag) {
			return http.StatusPreconditionFailed
		}
	} else if t := httpTime(hd.Get(prefix + "If-Unmodified-Since")); !t.IsZero() && modified.After(t) {
		return http.StatusPreconditionFailed
	}
	if m := etags(hd, prefix+"If-None-Match"); len(m) > 0 {
		if matches(m, tag) {
			return http.StatusNotModified
		}
	} else if t := httpTime(hd.Get(prefix + "If-Modified-Since")); !t.IsZero() && !modified.After(t) {
		return http.StatusNotModified
	}
	return 0
}

// readable returns nil when the conditions of a read hold.
func readable(hd http.Header, tag string, modified time.Time) error {
	switch evaluate(hd, "", tag, modified) {
	case http.StatusNotModified:
		return refuse(answer{http.StatusNotModified, "NotModified", "Not Modified"})
	case http.StatusPreconditionFailed:
		return refuse(errPrecondition)
	}
	return nil
}

// writeCond returns the conditions of a write for the core. What S3 calls an entity tag is kept in the store, so it is compared with what is
// there now, and the core then makes sure that it is still the same when the content is published.
func (q *request) writeCond(p gateway.Path) (c gateway.Cond, err error) {
	match, none := etags(q.r.Header, "If-Match"), etags(q.r.Header, "If-None-Match")
	switch {
	case len(match) == 0 && len(none) == 0:
		return c, nil
	case len(match) > 0 && len(none) > 0:
		return c, refuseFor(errNotImplemented, "If-Match and If-None-Match together are not implemented")
	case len(none) == 1 && none[0] == "*":
		return gateway.Cond{NoneMatch: none}, nil
	}
	info, err := q.s.Stat(q.ctx(), p)
	exists := err == nil && !info.Dir
	switch kind := fault.KindOf(err); {
	case err != nil && kind != fault.NotExist && kind != fault.NotDir:
		return c, err
	case !exists && len(match) > 0:
		if err := q.bucketThere(); err != nil {
			return c, err
		}
		return c, refuse(errNoSuchKey) // as Amazon: not 412
	case exists && len(match) > 0 && !matches(match, etag(info)), exists && matches(none, etag(info)):
		return c, refuse(errPrecondition)
	}
	return gateway.Cond{Check: same(info, exists)}, nil
}

// unless are the conditions of a deletion. The zero value always holds.
type unless struct {
	tags     []string
	modified time.Time
	size     int64 // -1: whatever
}

// unlessOf reads conditions as DeleteObject has them, of headers, and DeleteObjects, of elements.
func unlessOf(tags []string, modified, size string) (u unless, err error) {
	u.tags, u.size = tags, -1
	if modified != "" {
		if u.modified = httpTime(modified); u.modified.IsZero() {
			return u, refuseFor(errArgument, "The time of a condition is none.")
		}
	}
	if size != "" {
		var ok bool
		if u.size, ok = parseDigits(size); !ok {
			return u, refuseFor(errArgument, "The size of a condition is none.")
		}
	}
	return u, nil
}

// any reports whether there are conditions.
func (u unless) any() bool { return len(u.tags) > 0 || !u.modified.IsZero() || u.size >= 0 }

// hold reports whether they hold of a file.
func (u unless) hold(i gateway.Info) bool {
	return (len(u.tags) == 0 || matches(u.tags, etag(i))) && (u.size < 0 || u.size == i.Size) &&
		(u.modified.IsZero() || u.modified.Equal(stamp(i).Truncate(time.Second)))
}

// same returns a check that a node is still what it was.
func same(was gateway.Info, existed bool) func(cur gateway.Info, exists bool) error {
	return func(cur gateway.Info, exists bool) error {
		if exists != existed || exists && (cur.Dir != was.Dir || cur.ETag != was.ETag || cur.Size != was.Size || !cur.ModTime.Equal(was.ModTime)) {
			return refuse(errPrecondition)
		}
		return nil
	}
}

// noFolder refuses to do to a folder what was meant for an object.
func noFolder(cur gateway.Info, exists bool) error {
	if exists && cur.Dir {
		return refuse(errIsFolder)
	}
	return nil
}
