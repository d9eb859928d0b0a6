package local

import (
	"errors"

	"cellgate/internal/fault"
)

var (
	errClosed   = errors.New("closed")
	errReadOnly = errors.New("the datasource is read-only")
	errRoot     = errors.New("the root stays where it is")
	errSymlink  = errors.New("is a symbolic link")
	errSpecial  = errors.New("is a device, socket or pipe")
	errLength   = errors.New("the source has another length than declared")
	errBelow    = errors.New("a folder cannot move below itself")
	errAppend   = errors.New("no appending at given places")
	errFlag     = errors.New("unknown flag")
	errUnsynced = errors.New("an earlier sync of this file failed")
	errMissed   = errors.New("changes may have been missed")
	errMounted  = errors.New("another file system is mounted there")
	errWatches  = errors.New("too many folders to watch all of them")
)

// fail is the fault of op on name; its kind is what the cause means.
func fail(op, name string, cause error) error {
	if cause == nil {
		return nil
	}
	return fault.New("mounts/local."+op, name, kindOf(cause), cause)
}

// refuse is the fault of op on name with a kind of its own.
func refuse(op, name string, kind fault.Kind, cause error) error {
	return fault.New("mounts/local."+op, name, kind, cause)
}
