package webdav

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// maxOwner is how many bytes a lock's owner may take as XML.
const maxOwner = 4 << 10

// lock takes a lock, or refreshes one when there is no body (RFC 4918 §9.10).
func (q *request) lock() error {
	if err := q.check(); err != nil {
		return err
	}
	root, err := q.readXML()
	if err != nil {
		return err
	}
	wait := timeout(q.r.Header.Get("Timeout"))
	if root == nil {
		return q.refresh(wait)
	}
	req, err := lockRequest(root)
	if err != nil {
		return err
	}
	switch depth, _, err := q.depth(infinity); { // §9.10.3
	case err != nil:
		return err
	case depth == depth1:
		return refuse(http.StatusBadRequest, "Depth is 0 or infinity")
	default:
		req.Infinite, req.Timeout = depth == infinity, wait
	}
	l, created, err := q.s.Lock(q.ctx(), q.path, req)
	switch kind := fault.KindOf(err); {
	case err == nil:
	case kind == fault.Locked:
		r := &refusal{status: http.StatusLocked, words: kind.String(), cond: "no-conflicting-lock"} // §9.10.6
		if at, ok := lockRoot(err); ok {
			r.at = &at
		}
		return r
	case kind == fault.NotExist: // §9.10.4: it would have made a file
		return refuse(http.StatusConflict, "the folder to make it in does not exist")
	default:
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	q.w.Header()["Lock-Token"] = []string{"<" + l.Token + ">"} // §10.5
	return q.lockAnswer(status, l)
}

// refresh gives a lock more time (RFC 4918 §9.10.2). The If header, which has held already, names it.
func (q *request) refresh(wait time.Duration) error {
	tokens := q.ifh.tokens()
	if len(tokens) == 0 {
		return refuse(http.StatusBadRequest, "to refresh a lock, name it in If")
	}
	var last error
	for _, t := range tokens {
		l, err := q.s.RefreshLock(q.ctx(), q.path, t, wait)
		if err == nil {
			return q.lockAnswer(http.StatusOK, l)
		}
		if last = err; fault.KindOf(err) != fault.NotExist && fault.KindOf(err) != fault.Precondition {
			return err
		}
	}
	if fault.KindOf(last) == fault.NotExist {
		return errPrecondition()
	}
	return last
}

// lockAnswer shows all locks of the target, the one in question first.
func (q *request) lockAnswer(status int, l gateway.Lock) error {
	list := []gateway.Lock{l}
	all, err := q.s.Locks(q.ctx(), q.path)
	if err == nil {
		for _, other := range all {
			if other.Token != l.Token {
				list = append(list, other)
			}
		}
	}
	b := append([]byte(xmlHeader), `<D:prop xmlns:D="DAV:"><D:lockdiscovery>`...)
	b = append(q.appendLocks(b, list), "</D:lockdiscovery></D:prop>\n"...)
	q.w.Header()["Content-Type"] = []string{xmlType}
	q.w.Header()["Content-Length"] = []string{strconv.Itoa(len(b))}
	q.w.WriteHeader(status)
	_, err = q.w.Write(b)
	return err
}

// unlock gives a lock up (RFC 4918 §9.11).
func (q *request) unlock() error {
	if err := q.noBody(); err != nil {
		return err
	}
	v := strings.TrimSpace(q.r.Header.Get("Lock-Token"))
	token, opened := strings.CutPrefix(v, "<")
	token, closed := strings.CutSuffix(token, ">")
	if !opened || !closed || token == "" || len(token) > 1024 {
		return refuse(http.StatusBadRequest, "Lock-Token is missing or malformed")
	}
	err := q.s.Unlock(q.ctx(), q.path, token)
	switch fault.KindOf(err) {
	case fault.Precondition, fault.NotExist:
		if err != nil { // §9.11.1
			return &refusal{status: http.StatusConflict, words: "there is no such lock here", cond: "lock-token-matches-request-uri"}
		}
	}
	if err != nil {
		return err
	}
	return q.done(false)
}

// lockRequest reads a DAV:lockinfo (RFC 4918 §14.11).
func lockRequest(root *element) (gateway.LockRequest, error) {
	var req gateway.LockRequest
	bad := refuse(http.StatusBadRequest, "body is no DAV:lockinfo")
	if !root.is("lockinfo") {
		return req, bad
	}
	scope, kind := root.find("lockscope"), root.find("locktype")
	if scope == nil || kind == nil {
		return req, bad
	}
	shared, exclusive := scope.find("shared") != nil, scope.find("exclusive") != nil
	if shared == exclusive || kind.find("write") == nil {
		return req, refuse(http.StatusUnprocessableEntity, "locks are write locks, shared or exclusive")
	}
	req.Shared = shared
	if owner := root.find("owner"); owner != nil {
		var b []byte
		for _, k := range owner.kids {
			if b = appendElement(b, k); len(b) > maxOwner {
				return req, refuse(http.StatusRequestEntityTooLarge, "the lock's owner is too long")
			}
		}
		req.OwnerXML = string(b)
	}
	return req, nil
}

// timeout reads the Timeout header: the first value that is understood (RFC 4918 §10.7), 0 for the core's own choice. The core caps it.
func timeout(v string) time.Duration {
	for word := range strings.SplitSeq(v, ",") {
		word = strings.TrimSpace(word)
		if strings.EqualFold(word, "infinite") {
			return maxTimeout
		}
		if len(word) > 7 && strings.EqualFold(word[:7], "second-") {
			if n, ok := parseDigits(word[7:]); ok {
				return min(max(time.Duration(min(n, int64(maxTimeout/time.Second)))*time.Second, time.Second), maxTimeout)
			}
		}
	}
	return 0
}

// maxTimeout stands for "infinite".
const maxTimeout = 365 * 24 * time.Hour

// appendLocks writes DAV:activelock elements (RFC 4918 §14.1). The token is the key to a lock, so it is shown to the lock's owner only.
func (q *request) appendLocks(b []byte, list []gateway.Lock) []byte {
	now, me := q.h.cfg.Clock.Now(), q.s.Subject().Login
	for _, l := range list {
		b = append(b, "<D:activelock><D:locktype><D:write/></D:locktype><D:lockscope>"...)
		if l.Shared {
			b = append(b, "<D:shared/>"...)
		} else {
			b = append(b, "<D:exclusive/>"...)
		}
		b = append(b, "</D:lockscope><D:depth>"...)
		if l.Infinite {
			b = append(b, "infinity"...)
		} else {
			b = append(b, '0')
		}
		b = append(b, "</D:depth>"...)
		if l.OwnerXML != "" {
			b = append(append(append(b, "<D:owner>"...), l.OwnerXML...), "</D:owner>"...)
		}
		left := max(l.Expires.Sub(now), 0)
		b = strconv.AppendInt(append(b, "<D:timeout>Second-"...), int64((left+time.Second/2)/time.Second), 10)
		b = append(b, "</D:timeout>"...)
		if l.Owner == me {
			b = append(appendText(append(b, "<D:locktoken><D:href>"...), l.Token), "</D:href></D:locktoken>"...)
		}
		b = q.h.appendHref(append(b, "<D:lockroot><D:href>"...), l.Root, false)
		b = append(b, "</D:href></D:lockroot></D:activelock>"...)
	}
	return b
}

// readXML reads the body as XML within the limits, nil for an empty one.
func (q *request) readXML() (*element, error) {
	if q.r.ContentLength > q.h.cfg.MaxXML {
		return nil, refuse(http.StatusRequestEntityTooLarge, "the body is too large")
	}
	root, err := readXML(http.MaxBytesReader(nil, io.NopCloser(&q.body), q.h.cfg.MaxXML))
	var tooBig *http.MaxBytesError
	switch {
	case err == nil, errors.As(err, &tooBig):
		return root, err
	case q.body.broken != nil:
		return nil, q.body.cut(err)
	}
	return nil, refuse(http.StatusBadRequest, err.Error())
}
