// Package fault is the one error of the house: what was tried, on which path, what kind of failure it was, and why.
//
// Drivers and the core make faults; protocols turn the kind into a status; people see the kind's words while the cause goes to the log.
package fault

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// Kind says what went wrong, in the terms that decide what a client is told.
type Kind uint8

// The kinds. Internal is the zero value: an error nobody classified is ours.
const (
	Internal        Kind = iota // a bug or an inconsistency of our own
	NotExist                    // no such node, or the subject may not know of it
	Exist                       // the name is taken
	Denied                      // known to exist, not allowed
	Unauthenticated             // no or wrong credentials
	Invalid                     // the request makes no sense: a bad name, a bad argument
	IsDir                       // a folder where a file is needed
	NotDir                      // a file where a folder is needed
	NotEmpty                    // a folder that still has children
	Locked                      // somebody else's lock
	Precondition                // If-Match and the like do not hold
	TooLarge                    // over a limit of the gateway
	Quota                       // over the quota of a user or workspace
	NoSpace                     // the backend is full
	Unsupported                 // the backend or protocol cannot do it
	Busy                        // a budget is used up; try again later
	Timeout                     // a deadline passed
	Unavailable                 // the backend is down
	Corrupt                     // stored data fails its integrity check
	Canceled                    // the client went away
	kinds
)

var names = [kinds]string{
	Internal: "internal error", NotExist: "does not exist", Exist: "already exists", Denied: "permission denied",
	Unauthenticated: "not authenticated", Invalid: "invalid", IsDir: "is a folder", NotDir: "is not a folder",
	NotEmpty: "folder is not empty", Locked: "locked", Precondition: "precondition failed", TooLarge: "too large",
	Quota: "quota exceeded", NoSpace: "no space left", Unsupported: "not supported", Busy: "busy",
	Timeout: "timed out", Unavailable: "unavailable", Corrupt: "corrupt data", Canceled: "canceled",
}

// String returns the kind in words fit for people.
func (k Kind) String() string {
	if k < kinds {
		return names[k]
	}
	return names[Internal]
}

// Kinds returns every kind, for the tests which prove that a status table misses none.
func Kinds() []Kind {
	all := make([]Kind, kinds)
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

// Error is a failed operation. Path is a path the caller knows, never an address or a secret; Err may be nil.
type Error struct {
	Op   string // package.Function, such as "mounts/local.Put"
	Path string
	Kind Kind
	Err  error
}

// New returns the error of op on path. A nil cause is fine: the kind says it all.
func New(op, path string, kind Kind, cause error) error {
	return &Error{Op: op, Path: path, Kind: kind, Err: cause}
}

// Wrap is New with the kind taken from the cause, and nil for a nil cause.
func Wrap(op, path string, cause error) error {
	if cause == nil {
		return nil
	}
	return New(op, path, KindOf(cause), cause)
}

// Error returns "op path: kind: cause"; a cause that is itself a fault of the same kind is not named twice.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Path != "" {
		b.WriteString(" ")
		b.WriteString(quote(e.Path))
	}
	var below *Error
	if !errors.As(e.Err, &below) || below.Kind != e.Kind {
		b.WriteString(": ")
		b.WriteString(e.Kind.String())
	}
	if e.Err != nil {
		b.WriteString(": ")
		b.WriteString(e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, fs.ErrNotExist) and its siblings hold for the kinds that have such a sentinel.
func (e *Error) Is(target error) bool {
	switch target {
	case fs.ErrNotExist:
		return e.Kind == NotExist
	case fs.ErrExist:
		return e.Kind == Exist
	case fs.ErrPermission:
		return e.Kind == Denied
	case fs.ErrInvalid:
		return e.Kind == Invalid
	case context.Canceled:
		return e.Kind == Canceled
	case context.DeadlineExceeded, os.ErrDeadlineExceeded:
		return e.Kind == Timeout
	}
	return false
}

// KindOf returns the kind of err: that of the outermost fault in its chain, or what the standard library's errors and errno values mean.
// It returns Internal for anything else, nil included.
func KindOf(err error) Kind {
	var f *Error
	if errors.As(err, &f) {
		return f.Kind
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		if k, ok := errnoKinds[errno]; ok {
			return k
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NotExist
	case errors.Is(err, fs.ErrExist):
		return Exist
	case errors.Is(err, fs.ErrPermission):
		return Denied
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, fs.ErrInvalid):
		return Invalid
	}
	return Internal
}

var errnoKinds = map[syscall.Errno]Kind{
	syscall.ENOENT: NotExist, syscall.EEXIST: Exist, syscall.EACCES: Denied, syscall.EPERM: Denied, syscall.EROFS: Denied,
	syscall.EINVAL: Invalid, syscall.ENAMETOOLONG: Invalid, syscall.EILSEQ: Invalid, syscall.ELOOP: Invalid,
	syscall.EISDIR: IsDir, syscall.ENOTDIR: NotDir, syscall.ENOTEMPTY: NotEmpty, syscall.ENOSPC: NoSpace, syscall.EDQUOT: NoSpace,
	syscall.EFBIG: TooLarge, syscall.EBUSY: Busy, syscall.EMFILE: Busy, syscall.ENFILE: Busy, syscall.EXDEV: Unsupported,
	syscall.ENOSYS: Unsupported, syscall.EOPNOTSUPP: Unsupported, syscall.ETIMEDOUT: Timeout, syscall.EIO: Unavailable,
	syscall.ESTALE: Unavailable, syscall.ENODEV: Unavailable, syscall.ENXIO: Unavailable, syscall.ENOTCONN: Unavailable,
	syscall.ECONNREFUSED: Unavailable, syscall.EHOSTUNREACH: Unavailable,
}

// quote keeps control characters of a hostile name out of logs and terminals.
func quote(s string) string {
	clean := strings.IndexFunc(s, func(r rune) bool {
		return r < ' ' || r == 0x7f || r == '"' || r == 0x2028 || r == 0x2029 || r == '\uFFFD'
	}) < 0
	if clean {
		return s
	}
	q := make([]rune, 0, len(s)+8)
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == 0x2028 || r == 0x2029 {
			r = '\uFFFD'
		}
		q = append(q, r)
	}
	return string(q)
}
