package ftp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"cellgate/internal/fault"
)

var (
	errClosed    = errors.New("closed")
	errReadOnly  = errors.New("the datasource is read-only")
	errRoot      = errors.New("the root stays where it is")
	errBelow     = errors.New("a folder cannot move below itself")
	errLink      = errors.New("is a symbolic link, device, socket or pipe")
	errLength    = errors.New("the source has another length than declared")
	errShort     = errors.New("the server ended the transfer before the end of the file")
	errCommand   = errors.New("the name has a character that would end the command")
	errLongName  = errors.New("the path is longer than FTP servers take")
	errSpace     = errors.New("the server does not keep a space at the end of a name")
	errName      = errors.New("the server keeps the file under another name: one of its characters is not allowed there")
	errBusy      = errors.New("all connections to the server are in use")
	errTruncated = errors.New("the server cuts its listing short: raise its limit (LimitRecursion in Pure-FTPd)")
	errWantsTLS  = errors.New("the server takes no password in the clear: set the option tls to explicit")
	errAuthTLS   = errors.New("the server does not offer AUTH TLS: set the option tls to implicit or off")
)

// replyError is a command the server refused.
type replyError struct {
	verb, arg string
	reply     reply
}

// Error quotes the server, a little.
func (e *replyError) Error() string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '\uFFFD'
		}
		return r
	}, strings.ToValidUTF8(strings.Join(e.reply.lines, "; "), "\uFFFD"))
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	return fmt.Sprintf("the server answers %d %s to %s", e.reply.code, text, e.verb)
}

// refused returns the error of a reply to command, or nil when it was carried out.
func refused(command string, r reply) error {
	if r.ok() {
		return nil
	}
	verb, arg, _ := strings.Cut(command, " ")
	if verb == "PASS" {
		arg = ""
	}
	return &replyError{verb, arg, r}
}

// phrases are what servers say, in lower case. The first that fits decides.
var phrases = []struct {
	kind  fault.Kind
	words []string
}{
	{fault.NotExist, []string{"no such file", "no such dir", "not found", "not exist", "doesn't exist", "cannot find", "can't find", "can't check for file existence"}},
	{fault.NotEmpty, []string{"not empty"}},
	{fault.NotDir, []string{"not a directory"}},
	{fault.IsDir, []string{"is a directory", "not a regular file", "not a plain file"}},
	{fault.Invalid, []string{"prohibited file name", "illegal file name", "invalid file name", "invalid filename", "invalid directory name", "name too long", "filename, directory name, or volume label syntax"}},
	{fault.Unsupported, []string{"cross-device", "different disk"}},
	{fault.Denied, []string{"denied", "not permitted", "not allowed", "forbidden", "prohibited", "read-only", "read only"}},
	{fault.Exist, []string{"exists", "exist already", "already exist"}},
	{fault.NoSpace, []string{"no space", "disk full", "quota", "insufficient storage", "not enough space"}},
	{fault.Busy, []string{"resource busy", "being used by another", "in use"}},
}

// said is the kind that the words of a reply mean, and Internal when they say nothing. The path in them, which many servers repeat, does not
// count.
func (e *replyError) said() fault.Kind {
	text := strings.Join(e.reply.lines, " ")
	if e.arg != "" {
		text = strings.ReplaceAll(text, e.arg, "")
	}
	text = strings.ToLower(text)
	for _, p := range phrases {
		for _, w := range p.words {
			if strings.Contains(text, w) {
				return p.kind
			}
		}
	}
	return fault.Internal
}

// kind is the fault a refused command means.
func (e *replyError) kind() fault.Kind {
	if strings.HasPrefix(e.reply.text(), "OOPS") { // vsftpd in trouble of its own
		return fault.Unavailable
	}
	switch e.reply.code { // RFC 959 §4.2.1; RFC 3659, RFC 4217
	case 421, 425, 426:
		return fault.Unavailable
	case 332, 532:
		return fault.Unauthenticated
	case 530:
		return fault.Denied // once logged in: not for this user
	case 452, 552:
		return fault.NoSpace
	case 500, 502, 504, 522:
		return fault.Unsupported
	}
	if k := e.said(); k != fault.Internal {
		return k
	}
	switch e.reply.code {
	case 451:
		if strings.Contains(e.reply.text(), "writing to local file") { // vsftpd whose disk is full
			return fault.NoSpace
		}
		return fault.Unavailable
	case 450:
		return fault.Unavailable
	case 501:
		return fault.Invalid
	}
	return fault.Denied
}

// lostError is a connection that failed: what was asked may or may not have been done.
type lostError struct{ err error }

func (e *lostError) Error() string { return "the connection to the server failed: " + e.err.Error() }
func (e *lostError) Unwrap() error { return e.err }

// crowdError says that the server takes no more connections for now.
type crowdError struct{ err error }

func (e *crowdError) Error() string { return e.err.Error() }
func (e *crowdError) Unwrap() error { return e.err }

// kindOf is what an error of this package means.
func kindOf(err error) fault.Kind {
	var f *fault.Error
	var r *replyError
	var n net.Error
	var crowd *crowdError
	switch {
	case errors.As(err, &f):
		return f.Kind
	case errors.As(err, &crowd):
		return fault.Busy
	case errors.As(err, &r):
		return r.kind()
	case errors.Is(err, errCommand), errors.Is(err, errLongName), errors.Is(err, errSpace), errors.Is(err, errName), errors.Is(err, errLength):
		return fault.Invalid
	case errors.Is(err, context.Canceled):
		return fault.Canceled
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fault.Timeout
	case errors.As(err, &n) && n.Timeout():
		return fault.Timeout
	case errors.Is(err, errBusy):
		return fault.Busy
	}
	return fault.Unavailable
}

// fail makes the fault of op on name from whatever went wrong. A ctx that ended comes before what it brought about.
func (b *Backend) fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	op = "mounts/ftp." + op
	var lost *lostError
	kind := kindOf(err)
	broken := errors.As(err, &lost) || kind == fault.Timeout || kind == fault.Unavailable
	switch cause := ctx.Err(); {
	case broken && b.closed.Load():
		return fault.New(op, name, fault.Unavailable, errClosed)
	case broken && cause != nil:
		return fault.Wrap(op, name, cause)
	case kind == fault.Timeout && !errors.Is(err, errStalled):
		err = fmt.Errorf("%w: %w", errStalled, err)
	case errors.Is(err, io.EOF):
		err = errors.New("the server closed the connection")
	}
	return fault.New(op, name, kind, err)
}

var errStalled = errors.New("no answer of the server in time (option timeout)")

// bad is a fault of a call that is not tried at all.
func bad(op, name string, kind fault.Kind, cause error) error {
	return fault.New("mounts/ftp."+op, name, kind, cause)
}
