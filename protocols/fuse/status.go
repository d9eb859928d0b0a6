package fuse

import (
	"errors"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/internal/fault"
)

// statuses is the one table from kinds to errno. Calls for which POSIX says otherwise return an errno themselves.
var statuses = map[fault.Kind]syscall.Errno{
	fault.Internal:        syscall.EIO,
	fault.NotExist:        syscall.ENOENT,
	fault.Exist:           syscall.EEXIST,
	fault.Denied:          syscall.EACCES,
	fault.Unauthenticated: syscall.EACCES,
	fault.Invalid:         syscall.EINVAL,
	fault.IsDir:           syscall.EISDIR,
	fault.NotDir:          syscall.ENOTDIR,
	fault.NotEmpty:        syscall.ENOTEMPTY,
	fault.Locked:          syscall.EBUSY, // not EAGAIN: trying again at once helps nobody
	fault.Precondition:    syscall.ESTALE,
	fault.TooLarge:        syscall.EFBIG,
	fault.Quota:           syscall.EDQUOT,
	fault.NoSpace:         syscall.ENOSPC,
	fault.Unsupported:     syscall.EOPNOTSUPP,
	fault.Busy:            syscall.EBUSY,
	fault.Timeout:         syscall.ETIMEDOUT,
	fault.Unavailable:     syscall.EIO,
	fault.Corrupt:         syscall.EIO,
	fault.Canceled:        syscall.EINTR,
}

// errnoOf returns what err means to a process. An errno of our own goes through as it is.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	if errno, ok := err.(syscall.Errno); ok {
		return errno
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno
		}
	}
	if errno, ok := statuses[fault.KindOf(err)]; ok {
		return errno
	}
	return syscall.EIO
}

// status returns what err means to the kernel, and logs what is a failure of ours or of a datasource.
func (f *fsys) status(op string, err error) gofuse.Status {
	errno := errnoOf(err)
	switch errno {
	case syscall.EIO, syscall.ETIMEDOUT:
		f.cfg.Logger.Error("fuse request failed", "op", op, "err", err)
	}
	return gofuse.Status(errno)
}
