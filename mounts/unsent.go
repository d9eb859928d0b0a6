package mounts

import "errors"

// Unsent marks err as that of a call which never reached the backend, such as a connection that could not be made: nothing was done, so it
// may be tried again whatever it is. A driver whose call takes several requests marks a failure of the first only. Nil stays nil.
func Unsent(err error) error {
	if err == nil {
		return nil
	}
	return unsent{err}
}

// IsUnsent reports whether err or one of its causes is marked by Unsent.
func IsUnsent(err error) bool { return errors.As(err, new(unsent)) }

type unsent struct{ error }

func (u unsent) Unwrap() error { return u.error }
