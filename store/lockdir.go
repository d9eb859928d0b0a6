package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"cellgate/internal/fault"
)

// lockDir makes the data folder (0700 whatever the umask) and locks it for this process: the lock goes with the process, however that ends.
// The file holds the holder's pid.
func lockDir(dir string) (*os.File, error) {
	const op = "store.Open"
	_, missing := os.Lstat(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(op, dir, err)
	}
	if missing != nil { // a new folder must outlive a power cut, or all that is acknowledged in it goes, too
		if err := syncFile(filepath.Dir(filepath.Clean(dir))); err != nil {
			return nil, fault.Wrap(op, dir, err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fault.Wrap(op, dir, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Wrap(op, dir, err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		b, _ := io.ReadAll(io.LimitReader(f, 32))
		err = fault.New(op, dir, fault.Busy, fmt.Errorf("the data folder is in use by process %s", strings.TrimSpace(string(b))))
	case err == nil:
		err = errors.Join(f.Chmod(0o600), f.Truncate(0))
		if err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
		if fault.KindOf(err) == fault.NoSpace {
			err = nil // a full disk must not keep the box from starting; the pid is a courtesy
		}
	}
	if err != nil {
		f.Close()
		return nil, fault.Wrap(op, dir, err)
	}
	return f, nil
}
