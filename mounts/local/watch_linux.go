//go:build linux && !portable

package local

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"iter"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Watch implements mounts.Watcher by inotify. What happens in Areas is not reported. Folders beyond the datasource's bound of watches, or
// the kernel's, are left out after an error pair that says so. Each running Watch has watches of its own.
func (b *Backend) Watch(ctx context.Context) iter.Seq2[mounts.Change, error] {
	return func(yield func(mounts.Change, error) bool) {
		if err := b.begin(ctx, "Watch", ".", false); err != nil {
			yield(mounts.Change{}, err)
			return
		}
		defer b.gate.leave()
		if b.features.Watch == mounts.Refused {
			yield(mounts.Change{}, refuse("Watch", ".", fault.Unsupported, nil))
			return
		}
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
		if err != nil {
			yield(mounts.Change{}, fail("Watch", ".", err))
			return
		}
		w := &watch{b: b, fd: fd, file: os.NewFile(uintptr(fd), "inotify"), yield: yield}
		defer w.file.Close()
		ctx, cancel := context.WithCancel(ctx)
		var waker sync.WaitGroup
		defer waker.Wait()
		defer cancel()
		waker.Go(func() {
			select {
			case <-ctx.Done():
			case <-b.done:
			}
			w.file.SetReadDeadline(time.Unix(1, 0))
		})
		w.run()
	}
}

const watchMask = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_MODIFY | unix.IN_CLOSE_WRITE |
	unix.IN_ATTRIB | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

// watch is one running Watch. It belongs to one goroutine.
type watch struct {
	b     *Backend
	fd    int
	file  *os.File
	dirs  map[int32]string  // the watched folders by watch descriptor
	moved map[uint32]string // folders that left by cookie, until they arrive or prove to be gone
	told  map[string]bool   // names yielded for the events of one read
	full  bool              // the bound was met and reported
	yield func(mounts.Change, error) bool
}

func (w *watch) run() {
	w.told = map[string]bool{}
	w.moved = map[uint32]string{}
	if !w.restart() {
		return
	}
	clear(w.told)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			w.yield(mounts.Change{}, fail("Watch", ".", err))
			return
		}
		stale := w.moved
		w.moved = map[uint32]string{}
		for rest := buf[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			ev := event{
				wd: int32(binary.NativeEndian.Uint32(rest)), mask: binary.NativeEndian.Uint32(rest[4:]), cookie: binary.NativeEndian.Uint32(rest[8:]),
			}
			end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
			if end > len(rest) {
				break
			}
			ev.name = string(bytes.TrimRight(rest[unix.SizeofInotifyEvent:end], "\x00"))
			rest = rest[end:]
			if dir, ok := stale[ev.cookie]; ok && ev.cookie != 0 {
				w.moved[ev.cookie] = dir
				delete(stale, ev.cookie)
			}
			if !w.handle(ev) {
				return
			}
		}
		for _, dir := range stale {
			w.forget(dir)
		}
		clear(w.told)
	}
}

type event struct {
	wd           int32
	mask, cookie uint32
	name         string
}

// restart watches the whole tree anew.
func (w *watch) restart() bool {
	w.dirs = map[int32]string{}
	return w.add(".", false)
}

// handle reports one event, once for all of its kind in the same read, and follows folders that come and go.
func (w *watch) handle(ev event) bool {
	if ev.mask&unix.IN_Q_OVERFLOW != 0 {
		return w.yield(mounts.Change{}, refuse("Watch", ".", fault.Busy, errMissed)) && w.restart()
	}
	dir, known := w.dirs[ev.wd]
	switch {
	case !known:
		return true
	case ev.mask&unix.IN_IGNORED != 0:
		delete(w.dirs, ev.wd)
		return true
	case ev.name == mounts.Area:
		return true
	}
	name := dir
	if ev.name != "" && mounts.ValidName(ev.name) == nil {
		name = mounts.Join(dir, ev.name)
	}
	if ev.mask&unix.IN_ISDIR != 0 && ev.name != "" {
		path := mounts.Join(dir, ev.name)
		switch {
		case ev.mask&unix.IN_MOVED_FROM != 0:
			w.moved[ev.cookie] = path
		case ev.mask&unix.IN_MOVED_TO != 0:
			if old, ok := w.moved[ev.cookie]; ok {
				delete(w.moved, ev.cookie)
				w.rename(old, path)
			}
			fallthrough // what came into being before it was watched
		case ev.mask&unix.IN_CREATE != 0:
			if !w.add(path, true) {
				return false
			}
		}
	}
	return w.tell(name)
}

func (w *watch) tell(name string) bool {
	if w.told[name] {
		return true
	}
	w.told[name] = true
	return w.yield(mounts.Change{Name: name}, nil)
}

// add watches dir and all below it. With report it tells of the folders found: they may have been filled before they were watched.
func (w *watch) add(dir string, report bool) bool {
	todo := []string{dir}
	for len(todo) > 0 {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		fd, err := w.b.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			continue // gone again, or not ours to read
		}
		err = w.watch(fd, dir)
		if err == nil {
			for _, name := range folders(fd) {
				todo = append(todo, mounts.Join(dir, name))
			}
		}
		unix.Close(fd)
		if err == unix.ENOSPC {
			if !w.full && !w.yield(mounts.Change{}, refuse("Watch", dir, fault.Busy, errWatches)) {
				return false
			}
			w.full = true
			return true
		}
		if err == nil && report && !w.tell(dir) {
			return false
		}
	}
	return true
}

// watch adds a watch by descriptor, so that no name is followed anywhere. ENOSPC says that there are too many.
func (w *watch) watch(fd int, dir string) error {
	if len(w.dirs) >= w.b.watches {
		return unix.ENOSPC
	}
	wd, err := unix.InotifyAddWatch(w.fd, descriptorPath(fd), watchMask)
	if err == nil {
		w.dirs[int32(wd)] = dir
	}
	return err
}

// folders returns the names of the folders in an open folder, Areas left out.
func folders(fd int) (names []string) {
	for _, e := range entries(fd) {
		if e.typ == unix.DT_UNKNOWN {
			var st unix.Stat_t
			if unix.Fstatat(fd, e.name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				e.typ = unix.DT_DIR
			}
		}
		if e.typ == unix.DT_DIR && e.name != mounts.Area && mounts.ValidName(e.name) == nil {
			names = append(names, e.name)
		}
	}
	return names
}

// rename gives the watched folders at and below from the names they have below to.
func (w *watch) rename(from, to string) {
	for wd, dir := range w.dirs {
		if mounts.Below(dir, from) {
			w.dirs[wd] = to + dir[len(from):]
		}
	}
}

// forget ends the watches at and below a folder that left the datasource.
func (w *watch) forget(dir string) {
	for wd, name := range w.dirs {
		if mounts.Below(name, dir) {
			unix.InotifyRmWatch(w.fd, uint32(wd))
			delete(w.dirs, wd)
		}
	}
}
