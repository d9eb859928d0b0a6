package webdav

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/policy/identity"
)

// statusClientGone is nginx's word for a client that did not wait. Nobody is there to read it, but whoever counts statuses is not misled.
const statusClientGone = 499

// statuses is the one table from kinds to HTTP. Verbs for which RFC 4918 says otherwise turn the error into a *refusal themselves.
var statuses = map[fault.Kind]int{
	fault.Internal:        http.StatusInternalServerError,
	fault.NotExist:        http.StatusNotFound,
	fault.Exist:           http.StatusConflict,
	fault.Denied:          http.StatusForbidden,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Invalid:         http.StatusBadRequest,
	fault.IsDir:           http.StatusMethodNotAllowed,
	fault.NotDir:          http.StatusConflict,
	fault.NotEmpty:        http.StatusConflict,
	fault.Locked:          http.StatusLocked,
	fault.Precondition:    http.StatusPreconditionFailed,
	fault.TooLarge:        http.StatusRequestEntityTooLarge,
	fault.Quota:           http.StatusInsufficientStorage,
	fault.NoSpace:         http.StatusInsufficientStorage,
	fault.Unsupported:     http.StatusNotImplemented,
	fault.Busy:            http.StatusServiceUnavailable,
	fault.Timeout:         http.StatusGatewayTimeout,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Corrupt:         http.StatusInternalServerError,
	fault.Canceled:        statusClientGone,
}

// refusal is an answer decided here: a status, words, and the DAV: precondition that failed, if RFC 4918 §16 names one.
type refusal struct {
	status int
	words  string
	cond   string        // local name in DAV:
	at     *gateway.Path // the href inside cond
}

func (r *refusal) Error() string { return r.words }

func refuse(status int, words string) error { return &refusal{status: status, words: words} }

// statusOf returns what err means to a client.
func statusOf(err error) int {
	var r *refusal
	if errors.As(err, &r) {
		return r.status
	}
	var throttled *identity.Throttled
	if errors.As(err, &throttled) {
		return http.StatusTooManyRequests // unlike other budgets: this client is to blame
	}
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return http.StatusRequestEntityTooLarge
	}
	if s, ok := statuses[fault.KindOf(err)]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// fail answers the request with err. When the answer has begun already, it can only be cut: a listing or file that looks complete and is
// not would be taken for the truth.
func (q *request) fail(err error) {
	status := statusOf(err)
	var asked *refusal // what the client asked for is no failure of ours, whatever the status
	if gone := q.w.broken != nil || q.body.broken != nil; !gone && status >= 500 && status != http.StatusInsufficientStorage && !errors.As(err, &asked) {
		q.h.cfg.Logger.ErrorContext(q.r.Context(), "webdav request failed",
			"request", q.client.RequestID, "method", q.r.Method, "path", q.path.String(), "status", status, "err", err)
	}
	if q.w.wrote {
		panic(http.ErrAbortHandler)
	}
	hd := q.w.Header()
	for _, k := range [...]string{"Etag", "Last-Modified", "Content-Disposition", "Accept-Ranges", "Cache-Control", "Content-Length"} {
		hd.Del(k)
	}
	switch status {
	case http.StatusUnauthorized:
		hd.Set("Www-Authenticate", q.h.challenge)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		hd.Set("Retry-After", retryAfter(err))
	case http.StatusMethodNotAllowed:
		if hd.Get("Allow") == "" {
			hd.Set("Allow", allowAll)
		}
	}
	q.w.explain(status, q.r.Method, q.errorBody(err, status))
}

// explain sends a short body: XML when it starts like it, else text.
func (w *response) explain(status int, method string, body []byte) {
	kind := "text/plain; charset=utf-8"
	if len(body) > 0 && body[0] == '<' {
		kind = xmlType
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if method != http.MethodHead {
		w.Write(body)
	}
}

// errorBody says what went wrong in the kind's words, or as a DAV:error where a precondition has a name (RFC 4918 §16).
func (q *request) errorBody(err error, status int) []byte {
	var r *refusal
	if !errors.As(err, &r) {
		r = &refusal{words: fault.KindOf(err).String()}
		if status == http.StatusRequestEntityTooLarge {
			r.words = fault.TooLarge.String()
		}
		if root, ok := lockRoot(err); ok {
			r.cond, r.at = "lock-token-submitted", &root
		}
		switch fault.KindOf(err) {
		case fault.Quota:
			r.cond = "quota-not-exceeded" // RFC 4331 §6
		case fault.NoSpace:
			r.cond = "sufficient-disk-space"
		}
	}
	if r.cond == "" {
		return append([]byte(r.words), '\n')
	}
	b := append([]byte(xmlHeader), `<D:error xmlns:D="DAV:">`...)
	return append(q.appendCond(b, r), "</D:error>\n"...)
}

// appendCond writes the precondition element of r.
func (q *request) appendCond(b []byte, r *refusal) []byte {
	b = append(append(b, "<D:"...), r.cond...)
	if r.at == nil {
		return append(b, "/>"...)
	}
	b = append(b, "><D:href>"...)
	b = q.h.appendHref(b, *r.at, false)
	b = append(b, "</D:href></D:"...)
	return append(append(b, r.cond...), '>')
}

// lockRoot returns which lock stood in the way.
func lockRoot(err error) (gateway.Path, bool) {
	var l *gateway.LockedError
	if errors.As(err, &l) {
		return l.Lock.Root, true
	}
	return gateway.Path{}, false
}

// retryAfter returns the seconds a client should wait: what the login's budget says, or a few.
func retryAfter(err error) string {
	var throttled *identity.Throttled
	if errors.As(err, &throttled) {
		return strconv.Itoa(max(1, int((throttled.RetryAfter+time.Second-1)/time.Second)))
	}
	return "5"
}
