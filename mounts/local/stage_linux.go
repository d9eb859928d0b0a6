//go:build linux && !portable

package local

import (
	"crypto/rand"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	tempFolder  = "stage" // the driver's own: what the gateway stages lies beside it
	stagePrefix = "put-"
)

// stage is a folder of this process in an Area, in which files grow until they are renamed to their place. While its descriptor is open it is
// held by flock, so that other processes leave it alone.
type stage struct {
	tmp  int // descriptor of the Area's tmp, which the stage is in
	fd   int
	name string
}

// drop removes the stage; what is in it was never published.
func (s *stage) drop() {
	sweep(s.fd)
	unix.Unlinkat(s.tmp, s.name, unix.AT_REMOVEDIR)
	unix.Close(s.fd)
	unix.Close(s.tmp)
}

// temp makes a file in the stage for files below name's parent, which lies on mount. A stage whose folder somebody deleted is made anew.
func (b *Backend) temp(mount uint64, name string) (s *stage, temp string, fd int, err error) {
	temp = strconv.FormatUint(b.serial.Add(1), 36)
	for range 2 {
		if s, err = b.stage(mount, name, s); err != nil {
			return nil, "", -1, err
		}
		fd, err = openat(s.fd, temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != unix.ENOENT {
			break
		}
	}
	return s, temp, fd, err
}

// stage returns the stage of mount, another than gone, which was found to be deleted.
func (b *Backend) stage(mount uint64, name string, gone *stage) (*stage, error) {
	b.stageMu.Lock()
	defer b.stageMu.Unlock()
	if s := b.stages[mount]; s != nil {
		if s != gone {
			return s, nil
		}
		b.retired = append(b.retired, s) // calls in flight may use its descriptors
		delete(b.stages, mount)
	}
	top, err := b.top(mount, name)
	if err != nil {
		return nil, err
	}
	defer b.put(top)
	s, err := makeStage(top)
	if err == nil {
		b.stages[mount] = s
	}
	return s, err
}

// top returns a descriptor of the uppermost folder above name that lies on mount.
func (b *Backend) top(mount uint64, name string) (int, error) {
	if mount == b.mount {
		return b.root, nil
	}
	best := -1
	for dir, _ := mounts.Split(name); dir != "."; dir, _ = mounts.Split(dir) {
		fd, err := b.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			b.put(best)
			return -1, err
		}
		at, err := statx(fd)
		if err != nil || at.mount != mount {
			unix.Close(fd)
			if best < 0 && err == nil {
				err = unix.EXDEV // moved meanwhile
			}
			if best < 0 {
				return -1, err
			}
			break
		}
		b.put(best)
		best = fd
	}
	return best, nil
}

// makeStage makes a stage in the Area of the folder top, after clearing away those of dead processes.
func makeStage(top int) (*stage, error) {
	area, err := folder(top, mounts.Area)
	if err != nil {
		return nil, err
	}
	defer unix.Close(area)
	tmp, err := folder(area, tempFolder)
	if err != nil {
		return nil, err
	}
	sweepDead(tmp)
	for {
		name := stagePrefix + strings.ToLower(rand.Text())
		fd, err := folder(tmp, name)
		if err != nil {
			unix.Close(tmp)
			return nil, err
		}
		hold(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err == nil && st.Nlink > 0 {
			return &stage{tmp: tmp, fd: fd, name: name}, nil
		}
		unix.Close(fd) // another process swept it before it was held
	}
}

// hold takes the lock that says that the stage is alive. Where the file system knows no locks nothing is ever swept, see sweepDead.
func hold(fd int) {
	for unix.Flock(fd, unix.LOCK_EX) == unix.EINTR {
	}
}

// folder opens the private folder name in dir, which it makes when it is missing. A link in its place is not followed.
func folder(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat(dir, name, flags, 0)
	if err == unix.ENOENT {
		if err := unix.Mkdirat(dir, name, 0o700); err != nil && err != unix.EEXIST {
			return -1, err
		}
		fd, err = openat(dir, name, flags, 0)
	}
	if err == unix.ELOOP || err == unix.ENOTDIR {
		err = fault.New("mounts/local.stage", mounts.Area, fault.Unavailable, errors.New("the gateway's own folder is none"))
	}
	return fd, err
}

// sweepDead removes the stages in tmp whose processes are gone.
func sweepDead(tmp int) {
	for _, e := range entries(tmp) {
		if !strings.HasPrefix(e.name, stagePrefix) {
			continue
		}
		fd, err := openat(tmp, e.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) == nil {
			sweep(fd)
			unix.Unlinkat(tmp, e.name, unix.AT_REMOVEDIR)
		}
		unix.Close(fd)
	}
}

// sweep removes the files in a stage.
func sweep(fd int) {
	for _, e := range entries(fd) {
		unix.Unlinkat(fd, e.name, 0)
	}
}

// entries returns what is in an open folder.
func entries(fd int) (all []entry) {
	buf := direntBuffers.Get().(*direntBuffer)
	defer direntBuffers.Put(buf)
	unix.Seek(fd, 0, 0)
	for {
		n, err := unix.Getdents(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return all
		}
		for rest := buf[:n]; len(rest) > 0; {
			var e entry
			if e, rest = dirent(rest); e.name != "" {
				all = append(all, e)
			}
		}
	}
}
