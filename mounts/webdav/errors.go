package webdav

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/internal/trust"
	"cellgate/mounts"
)

var (
	errClosed      = errors.New("closed")
	errReadOnly    = errors.New("the datasource is read-only")
	errRoot        = errors.New("the root stays where it is")
	errBelow       = errors.New("a folder cannot move below itself")
	errLength      = errors.New("the source has another length than declared")
	errStalled     = errors.New("the server keeps silent")
	errConnections = errors.New("all connections to the server are in use: see the option connections")
	errCut         = errors.New("the server ended its answer early")
	errNoDAV       = errors.New("the server does not speak WebDAV at this address: check the path in the option url")
	errNoCondition = errors.New("this server does not keep conditions")
	errForeign     = errors.New("the server names entries of another address: put the address that it uses itself into the option url")
	errLeft        = errors.New("the server took the former file away and did not bring the new one, which lies under its temporary name")
	errLost        = errors.New("the connection was lost before an answer came")
	errPartial     = errors.New("the server did a part of it only")
)

func fail(op, name string, kind fault.Kind, cause error) error {
	return fault.New("mounts/webdav."+op, name, kind, cause)
}

// statusError is an answer other than success.
type statusError struct {
	code int
	say  string // what to do about it
}

// Error tells the status in the words of the standard: those of the server are not shown.
func (e *statusError) Error() string {
	text := fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
	if e.say != "" {
		text += ": " + e.say
	}
	return text
}

// statusOf returns the status that err is about, 0 when it is about none.
func statusOf(err error) int {
	var s *statusError
	if errors.As(err, &s) {
		return s.code
	}
	return 0
}

// statusKinds are the kinds of the statuses that say something by themselves. Of others, the first digit tells.
var statusKinds = map[int]fault.Kind{
	http.StatusBadRequest: fault.Invalid, http.StatusUnauthorized: fault.Unauthenticated, http.StatusPaymentRequired: fault.Quota,
	http.StatusForbidden: fault.Denied, http.StatusNotFound: fault.NotExist, http.StatusMethodNotAllowed: fault.Unsupported,
	http.StatusRequestTimeout: fault.Timeout, http.StatusConflict: fault.NotExist, http.StatusGone: fault.NotExist,
	http.StatusPreconditionFailed: fault.Precondition, http.StatusRequestEntityTooLarge: fault.TooLarge,
	http.StatusRequestURITooLong: fault.Invalid, http.StatusUnprocessableEntity: fault.Invalid, http.StatusLocked: fault.Locked,
	http.StatusFailedDependency: fault.Denied, http.StatusTooEarly: fault.Busy, http.StatusTooManyRequests: fault.Busy,
	http.StatusRequestHeaderFieldsTooLarge: fault.Invalid, http.StatusNotImplemented: fault.Unsupported,
	http.StatusInsufficientStorage: fault.NoSpace, http.StatusLoopDetected: fault.Invalid,
}

// advice is what to do about a status.
var advice = map[int]string{
	http.StatusForbidden:             "the user has no right to this there, or the server is read-only",
	http.StatusLocked:                "somebody has locked the file or folder there",
	http.StatusRequestEntityTooLarge: "the server limits the size of uploads",
	http.StatusRequestURITooLong:     "the path is too long for the server",
	http.StatusInsufficientStorage:   "the storage there is full, or the user's quota used up",
	http.StatusTooManyRequests:       "the server limits the number of requests",
	http.StatusMethodNotAllowed:      "the server does not allow this there",
}

func kindOfStatus(code int) fault.Kind {
	if k, ok := statusKinds[code]; ok {
		return k
	}
	if code >= 400 && code < 500 {
		return fault.Invalid
	}
	return fault.Unavailable
}

// status returns the error of an answer.
func (b *Backend) status(code int) error {
	say := advice[code]
	if code == http.StatusUnauthorized {
		say = b.login.advice()
	}
	return fault.New("mounts/webdav.request", "", kindOfStatus(code), &statusError{code, say})
}

// trouble is the fault of a request that got no answer, or of an answer that broke off. ctx is the caller's, cause that of the request's own.
func (b *Backend) trouble(ctx context.Context, cause, err error) error {
	const op = "mounts/webdav.request"
	var f *fault.Error
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(op, "", ctx.Err())
	case errors.Is(cause, errStalled):
		return fault.New(op, "", fault.Timeout, fmt.Errorf("%w for %v: see the option timeout", errStalled, b.cfg.timeout))
	case b.life.Err() != nil:
		return fault.New(op, "", fault.Unavailable, errClosed)
	case errors.As(err, &f):
		return err
	case errors.Is(err, dial.ErrRefused):
		return fault.New(op, "", fault.Denied, err)
	case trust.Is(err):
		return fault.New(op, "", fault.Unavailable, trust.Explain(err))
	case fault.KindOf(err) == fault.Timeout, isTimeout(err):
		return fault.New(op, "", fault.Timeout, fmt.Errorf("%w; is the server up, and host and port in the option url right?", err))
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"), strings.Contains(err.Error(), "does not look like a TLS handshake"):
		return fault.New(op, "", fault.Unavailable, fmt.Errorf("%w: is it http:// in the option url?", err))
	}
	return fault.New(op, "", fault.Unavailable, fmt.Errorf("%w; is the server up, and host and port in the option url right?", err))
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// wrap makes err that of op on name.
func wrap(op, name string, err error) error { return fault.Wrap("mounts/webdav."+op, name, err) }

// vague reports whether err is an answer that servers give for several reasons, so that one has to look which. The rest speak for themselves.
func vague(err error) bool {
	switch statusOf(err) {
	case 0, http.StatusUnauthorized, http.StatusPreconditionFailed, http.StatusLocked, http.StatusInsufficientStorage, http.StatusTooManyRequests,
		http.StatusRequestEntityTooLarge, http.StatusRequestURITooLong, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return false
	}
	return true
}

// explain returns the fault of a call whose answer was err, by looking at what is above name: a missing folder and a file in the place of one
// are told apart from bad names, missing rights and failing servers.
func (b *Backend) explain(ctx context.Context, op, name string, err error) error {
	if !vague(err) || name == "." {
		return wrap(op, name, err)
	}
	dir, _ := mounts.Split(name)
	info, above := b.stat(ctx, dir)
	switch {
	case above != nil && fault.KindOf(above) == fault.NotExist, above != nil && fault.KindOf(above) == fault.NotDir:
		return fail(op, name, fault.KindOf(above), err)
	case above != nil:
		return wrap(op, name, err)
	case !info.IsDir():
		return fail(op, name, fault.NotDir, err)
	}
	return wrap(op, name, err)
}
