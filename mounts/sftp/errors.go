package sftp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	client "github.com/pkg/sftp"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
)

// Codes of a STATUS: draft-ietf-secsh-filexfer-02 §7, and those of later drafts that some servers send all the same.
const (
	codeOK          = 0
	codeEOF         = 1
	codeNoSuchFile  = 2
	codeDenied      = 3
	codeFailure     = 4
	codeUnsupported = 8
	codeExists      = 11
)

var kinds = map[uint32]fault.Kind{
	codeNoSuchFile: fault.NotExist, codeDenied: fault.Denied, codeFailure: fault.Unavailable, 5: fault.Invalid, 6: fault.Unavailable,
	7: fault.Unavailable, codeUnsupported: fault.Unsupported, 9: fault.Unavailable, 10: fault.NotExist, codeExists: fault.Exist, 12: fault.Denied,
	13: fault.Unavailable, 14: fault.NoSpace, 15: fault.NoSpace, 17: fault.Busy, 18: fault.NotEmpty, 19: fault.NotDir, 20: fault.Invalid,
	21: fault.Denied, 22: fault.Unsupported, 24: fault.IsDir,
}

// statusError is a refusal of the server.
type statusError struct {
	code uint32
	text string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the server says %q (status %d)", e.text, e.code)
}

// codeOf returns the code of a refusal, by the library or read here, and codeOK for other errors.
func codeOf(err error) uint32 {
	var own *statusError
	var theirs *client.StatusError
	switch {
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &theirs):
		return theirs.Code
	case errors.Is(err, fs.ErrNotExist):
		return codeNoSuchFile
	case errors.Is(err, fs.ErrPermission):
		return codeDenied
	}
	return codeOK
}

// lostError is a request that got no answer, because its connection is gone.
type lostError struct {
	cause   error
	sent    bool // the server may have carried it out
	stalled bool // there was silence for too long
}

func (e *lostError) Error() string {
	if e.stalled {
		return "the server fell silent"
	}
	return "the connection to the server is lost: " + e.cause.Error()
}

func (e *lostError) Unwrap() error { return e.cause }

var (
	errClosed   = errors.New("the datasource is closed")
	errReadOnly = errors.New("the datasource is read-only")
	errRoot     = errors.New("the root stays where it is")
	errBelow    = errors.New("a folder cannot move below itself")
	errLink     = errors.New("is a symbolic link, which is not followed")
	errSpecial  = errors.New("is a device, socket or pipe")
	errLength   = errors.New("the source has another length than declared")
	errChanged  = errors.New("the file became shorter while it was read")
	errSilent   = errors.New("no answer within the timeout")
	errPanic    = errors.New("the library failed on an answer of the server")
)

// failure translates err, once, into the fault of op on name. What already is a fault of this package is kept.
func failure(op, name string, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	return fault.New("mounts/sftp."+op, name, kindOf(err), err)
}

func kindOf(err error) fault.Kind {
	var lost *lostError
	switch {
	case errors.Is(err, context.Canceled):
		return fault.Canceled
	case errors.As(err, &lost):
		if lost.stalled {
			return fault.Timeout
		}
		return fault.Unavailable
	case errors.Is(err, client.ErrSSHFxConnectionLost), errors.Is(err, errClosed), errors.Is(err, errShort):
		return fault.Unavailable
	}
	if k, ok := kinds[codeOf(err)]; ok {
		return k
	}
	if k := fault.KindOf(err); k != fault.Internal {
		return k
	}
	return fault.Unavailable // whatever else a network and a server come up with
}

// refusal makes a fault of this package's own.
func refusal(op, name string, kind fault.Kind, cause error) error {
	return fault.New("mounts/sftp."+op, name, kind, cause)
}

// dialFailure says what was wrong with a connection, in words that tell an admin what to change.
func (s *settings) dialFailure(err error) error {
	var key *keyError
	switch {
	case errors.As(err, &key):
		return refusal("Open", s.name, fault.Denied, key)
	case isLogin(err):
		return refusal("Open", s.name, fault.Unauthenticated, fmt.Errorf("the server refuses the login of %q with %s: %w", s.user, s.ways(), err))
	case errors.Is(err, dial.ErrRefused):
		return refusal("Open", s.name, fault.Denied, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errSilent):
		return refusal("Open", s.name, fault.Timeout, fmt.Errorf("no SSH server answers at %s within %v: look at host and port, and whether a firewall is in the way: %w", s.addr, s.timeout, err))
	case errors.Is(err, context.Canceled):
		return refusal("Open", s.name, fault.Canceled, err)
	}
	return refusal("Open", s.name, fault.Unavailable, fmt.Errorf("cannot connect to an SFTP server at %s: look at host and port: %w", s.addr, err))
}
