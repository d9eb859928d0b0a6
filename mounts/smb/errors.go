package smb

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
)

// failure is an error of known kind with words for people.
type failure struct {
	kind fault.Kind
	text string
}

func (f failure) Error() string { return f.text }

var (
	errClosed   = failure{fault.Unavailable, "closed"}
	errReadOnly = failure{fault.Denied, "the datasource is read-only"}
	errRoot     = failure{fault.Invalid, "the root stays where it is"}
	errLink     = failure{fault.Denied, "is a symbolic link or another reparse point"}
	errOnLink   = failure{fault.NotDir, "a symbolic link is on the way"}
	errLength   = failure{fault.Invalid, "the source has another length than declared"}
	errBelow    = failure{fault.Invalid, "a folder cannot move below itself"}
	errStalled  = failure{fault.Timeout, "the server is silent; the connection was given up"}
	errIdle     = failure{fault.Unavailable, "the connection was idle and has been closed"}
	errAlias    = failure{fault.Invalid, "the server takes this name for the short name of another file"}
	errShrank   = failure{fault.Unavailable, "the file became shorter while it was read"}
	errInUse    = failure{fault.Busy, "the file is open here or by another program; try again when it is closed"}
)

// NTSTATUS values, MS-ERREF §2.3.1. Those the library turns into errors of package os are missing.
const (
	statusNoSuchFile     = 0xC000000F
	statusInvalid        = 0xC000000D
	statusNoMoreFiles    = 0x80000006
	statusSharing        = 0xC0000043
	statusDeletePending  = 0xC0000056
	statusStoppedOnLink  = 0x8000002D
	statusBadNetworkName = 0xC00000CC
	statusNameDeleted    = 0xC00000C9
	statusSessionDeleted = 0xC0000203
	statusSessionExpired = 0xC000035C
)

var statuses = map[uint32]failure{
	0xC000006D: {fault.Unauthenticated, "wrong user name or password"}, // LOGON_FAILURE
	0xC000006A: {fault.Unauthenticated, "wrong password"},
	0xC0000064: {fault.Unauthenticated, "no such user"},
	0xC000006E: {fault.Unauthenticated, "the account is restricted, or has an empty password"},
	0xC000006F: {fault.Unauthenticated, "the account may not sign in at this hour"},
	0xC0000070: {fault.Unauthenticated, "the account may not sign in from this machine"},
	0xC0000071: {fault.Unauthenticated, "the password has expired"},
	0xC0000072: {fault.Unauthenticated, "the account is disabled"},
	0xC000015B: {fault.Unauthenticated, "the account may not sign in over the network"},
	0xC0000193: {fault.Unauthenticated, "the account has expired"},
	0xC0000224: {fault.Unauthenticated, "the password must be changed first"},
	0xC0000234: {fault.Unauthenticated, "the account is locked"},
	0xC000005E: {fault.Unavailable, "the server reaches no domain controller"},

	statusBadNetworkName: {fault.NotExist, "there is no such share"},
	statusNameDeleted:    {fault.Unavailable, "the share was closed by the server"},
	statusSessionDeleted: {fault.Unavailable, "the session was closed by the server"},
	statusSessionExpired: {fault.Unavailable, "the session has expired"},
	0xC0000257:           {fault.Unsupported, "the folder lies on another server (DFS), name that one"},

	statusSharing:       {fault.Busy, errInUse.text},
	statusDeletePending: {fault.Busy, "the file is being deleted"},
	0xC0000054:          {fault.Busy, "another program has locked a part of the file"},
	0xC00000D0:          {fault.Busy, "the server takes no more connections"},
	0xC000009A:          {fault.Busy, "the server is out of resources"},
	0xC0000205:          {fault.Busy, "the server is out of resources"},
	0xC000011F:          {fault.Busy, "the server has too many files open"},

	statusNoSuchFile:    {fault.NotExist, "there is no such file"},
	0xC0000103:          {fault.NotDir, "is not a folder"},
	0xC00000BA:          {fault.IsDir, "is a folder"},
	0xC0000101:          {fault.NotEmpty, "the folder is not empty"},
	0xC000007F:          {fault.NoSpace, "the disk of the server is full"},
	0xC0000044:          {fault.Quota, "the quota on the server is used up"},
	0xC0000904:          {fault.TooLarge, "the file is too large for the server"},
	0xC00000A2:          {fault.Denied, "the share is read-only"},
	0xC0000061:          {fault.Denied, "the account lacks a privilege"},
	0xC0000033:          {fault.Invalid, "the server does not take this name"},
	0xC0000039:          {fault.Invalid, "the server does not take this path"},
	0xC000003B:          {fault.Invalid, "the server does not take this path"},
	0xC0000106:          {fault.Invalid, "the name is too long for the server"},
	statusInvalid:       {fault.Invalid, "the server refuses a parameter"},
	statusStoppedOnLink: {fault.NotDir, errOnLink.text},
	0xC0000280:          {fault.Denied, errLink.text},
	0xC0000002:          {fault.Unsupported, "the server cannot do this"},
	0xC0000010:          {fault.Unsupported, "the server cannot do this"},
	0xC00000BB:          {fault.Unsupported, "the server cannot do this"},
	0xC00000D4:          {fault.Unsupported, "the two lie on different disks of the server"},
	0xC00000B5:          {fault.Timeout, "the disk of the server does not answer"},
	0xC0000128:          {fault.Unavailable, "the server has closed the file"},
}

// status returns the NTSTATUS in err, 0 without one.
func status(err error) uint32 {
	var r *smb2.ResponseError
	if errors.As(err, &r) {
		return r.Code
	}
	return 0
}

// kindOf says what err, the library's or ours, means.
func kindOf(err error) fault.Kind {
	var own failure
	var f *fault.Error
	switch {
	case errors.As(err, &own):
		return own.kind
	case errors.As(err, &f):
		return f.Kind
	case status(err) != 0:
		if known, ok := statuses[status(err)]; ok {
			return known.kind
		}
		return fault.Unavailable
	case errors.Is(err, smb2.ErrRequestNotAccepted):
		return fault.Busy
	case errors.Is(err, dial.ErrRefused):
		return fault.Denied
	case errors.Is(err, os.ErrClosed):
		return fault.Invalid
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrExist), errors.Is(err, os.ErrNotExist),
		errors.Is(err, os.ErrPermission), errors.Is(err, os.ErrInvalid):
		return fault.KindOf(err)
	}
	return fault.Unavailable
}

// fail makes the fault of op. The library's errors are dropped where we have words: theirs repeat the path, as it is on the server.
func (b *Backend) fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	kind := kindOf(err)
	var own failure
	var path *os.PathError
	var link *os.LinkError
	if errors.As(err, &own) {
		err = own
	} else if known, ok := statuses[status(err)]; ok {
		err = known
	} else if errors.As(err, &path) {
		err = path.Err
	} else if errors.As(err, &link) {
		err = link.Err
	}
	return fault.New("mounts/smb."+op, name, kind, err)
}

// lost reports whether err is that of a connection that broke.
func lost(err error) bool {
	var t *smb2.TransportError
	return errors.As(err, &t) || errors.Is(err, errIdle)
}

// expired reports whether the server refused a call because it no longer knows the session or the share's connection: nothing was done.
func expired(err error) bool {
	switch status(err) {
	case statusSessionDeleted, statusSessionExpired, statusNameDeleted:
		return true
	}
	return false
}

// refusal explains why there is no session.
func (b *Backend) refusal(step string, err error) error {
	kind := kindOf(err)
	known, ok := statuses[status(err)]
	switch {
	case kind == fault.Canceled:
		return err
	case kind == fault.Timeout:
		return failure{fault.Timeout, fmt.Sprintf("%s did not answer in time: is it the right host and port, and may this machine reach it?", b.cfg.address)}
	case errors.Is(err, dial.ErrRefused):
		return err
	case step == "dial":
		return failure{fault.Unavailable, fmt.Sprintf("cannot reach %s: %v; check host and port", b.cfg.address, err)}
	case step == "share" && kind == fault.NotExist:
		return failure{fault.NotExist, fmt.Sprintf("the server has no share %q", b.cfg.share)}
	case step == "share" && kind == fault.Denied:
		return failure{fault.Denied, fmt.Sprintf("user %q may not use share %q", b.cfg.user, b.cfg.share)}
	case kind == fault.Unauthenticated || step == "sign in" && kind == fault.Denied:
		why := "access denied"
		if ok {
			why = known.text
		}
		return failure{fault.Unauthenticated, fmt.Sprintf("user %q: %s; check username, password and domain", b.cfg.user, why)}
	case ok:
		return known
	case lost(err):
		return failure{fault.Unavailable, fmt.Sprintf("%s hung up while signing in: does it speak SMB 2 or 3, and is it the right port? (%v)", b.cfg.address, err)}
	}
	var own failure
	if errors.As(err, &own) {
		return own
	}
	return failure{fault.Unavailable, fmt.Sprintf("%s: signing in failed: %v", b.cfg.address, err)}
}
