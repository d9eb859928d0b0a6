//go:build linux && !portable

package local

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Purge implements mounts.Purger. It goes from descriptor to descriptor, so a folder that is swapped for a link meanwhile leads nowhere. What
// is mounted below when it starts makes it refuse before anything is removed. Folders that do not let their owner in are opened to it.
func (b *Backend) Purge(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Purge", name, true); err != nil {
		return err
	}
	defer b.gate.leave()
	if name == "." {
		return refuse("Purge", name, fault.Invalid, errRoot)
	}
	dir, base, err := b.parent(name, true)
	if err != nil {
		return fail("Purge", name, err)
	}
	defer b.put(dir)
	err = unix.Unlinkat(dir, base, 0)
	if err == unix.EISDIR || err == unix.EPERM && b.isDir(dir, base) {
		if err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR); err == unix.ENOTEMPTY || err == unix.EEXIST {
			err = b.purge(ctx, name, dir, base)
		}
	}
	if err == nil && !mounts.InArea(name) { // what comes back there after a power cut is cleared away at the next start
		err = b.sync(dir)
	}
	return fail("Purge", name, err)
}

func (b *Backend) purge(ctx context.Context, name string, dir int, base string) error {
	for _, point := range b.partitions(0).points {
		if mounts.Below(point, name) {
			return fault.New("mounts/local.purge", point, fault.Busy, errMounted)
		}
	}
	at, err := statx(dir)
	if err != nil {
		return err
	}
	buf := direntBuffers.Get().(*direntBuffer)
	defer direntBuffers.Put(buf)
	p := purge{ctx: ctx, b: b, mount: at.mount, buf: buf, stack: []level{{fd: dir, folders: []string{base}}}}
	defer p.end()
	return p.run()
}

// levels is how deep a purge descends, a descriptor each. What lies deeper moves up to the folder that is purged, and is met there again.
const levels = 64

// purge is one running Purge of a folder.
type purge struct {
	ctx   context.Context
	b     *Backend
	mount uint64 // which it does not leave
	buf   *direntBuffer
	stack []level // the way down; first the parent of what is purged, whose descriptor is not the purge's
}

// level is a folder on the way down.
type level struct {
	fd      int
	folders []string // in it, found and still to go; the next level is the last of them. No more than one getdents finds.
	removed bool     // something in it was
	stuck   bool     // the last of folders was gone through without anything in it being removed
}

func (p *purge) run() error {
	for {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		at := &p.stack[len(p.stack)-1]
		if len(at.folders) > 0 {
			if err := p.folder(at, at.folders[len(at.folders)-1]); err != nil {
				return err
			}
			continue
		}
		if len(p.stack) == 1 {
			return nil
		}
		more, err := p.files(at)
		if err != nil {
			return err
		}
		if !more {
			p.up()
		}
	}
}

// up leaves a folder that was gone through; that it is removed, or gone through again, is the next turn's.
func (p *purge) up() {
	last := len(p.stack) - 1
	unix.Close(p.stack[last].fd)
	p.stack[last-1].stuck = !p.stack[last].removed
	p.stack = p.stack[:last]
}

func (p *purge) end() {
	for len(p.stack) > 1 {
		p.up()
	}
}

// files removes the next names in a folder and notes the folders among them.
func (p *purge) files(at *level) (more bool, err error) {
	n, err := unix.Getdents(at.fd, p.buf[:])
	if err == unix.EINTR {
		return true, nil
	}
	if err != nil || n <= 0 {
		return false, p.below(err, "")
	}
	for rest := p.buf[:n]; len(rest) > 0; {
		var e entry
		if e, rest = dirent(rest); e.name == "" {
			continue
		}
		if e.typ == unix.DT_DIR {
			at.folders = append(at.folders, e.name)
			continue
		}
		if err := p.ctx.Err(); err != nil {
			return false, err
		}
		if err := p.unlink(at, e.name); err == unix.EISDIR {
			at.folders = append(at.folders, e.name)
		} else if err != nil {
			return false, p.below(err, e.name)
		}
	}
	return true, nil
}

// unlink removes a name that is no folder, else it returns EISDIR.
func (p *purge) unlink(at *level, name string) error {
	err := unix.Unlinkat(at.fd, name, 0)
	switch {
	case err == nil:
		at.removed = true
	case err == unix.ENOENT:
		return nil
	case err == unix.EPERM && p.b.isDir(at.fd, name):
		return unix.EISDIR
	}
	return err
}

// folder removes the last of a level's folders, or descends to it. The kernel tells of mount points (EBUSY) before it looks what is inside.
func (p *purge) folder(at *level, name string) error {
	err := unix.Unlinkat(at.fd, name, unix.AT_REMOVEDIR)
	if err == unix.ENOTEMPTY || err == unix.EEXIST {
		if at.stuck {
			return p.below(unix.ENOTEMPTY, name)
		}
		var fd int
		if fd, err = p.open(at.fd, name); err == nil && len(p.stack) <= levels {
			p.stack = append(p.stack, level{fd: fd})
			return nil
		}
		if err == nil {
			unix.Close(fd)
			err = unix.Renameat(at.fd, name, p.stack[1].fd, rand.Text())
		}
	}
	switch err {
	case nil:
		at.removed = true
	case unix.ENOENT:
	case unix.ENOTDIR, unix.ELOOP: // somebody put something else in its place
		if err := p.unlink(at, name); err != nil && err != unix.EISDIR {
			return p.below(err, name)
		}
	default:
		return p.below(err, name)
	}
	at.folders, at.stuck = at.folders[:len(at.folders)-1], false
	return nil
}

// open opens a folder such that names can be removed from it.
func (p *purge) open(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat(dir, name, flags, 0)
	if err == unix.EACCES {
		var shut int
		if shut, err = openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
			return -1, err
		}
		defer unix.Close(shut)
		if _, err = p.within(shut); err == nil {
			err = unix.Chmod(descriptorPath(shut), 0o700) // fchmod(2) takes no O_PATH
		}
		if err == nil {
			fd, err = openat(shut, ".", flags, 0)
		}
	}
	if err != nil {
		return -1, err
	}
	node, err := p.within(fd)
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	if node.mode&0o700 != 0o700 {
		unix.Fchmod(fd, node.mode&0o7777|0o700) // where it may not, removing says so
	}
	return fd, nil
}

// within refuses what lies on another mount.
func (p *purge) within(fd int) (place, error) {
	at, err := statx(fd)
	if err == nil && at.mount != p.mount {
		err = fault.New("mounts/local.purge", "", fault.Busy, errMounted)
	}
	return at, err
}

// below adds to err where below the purged folder it came about.
func (p *purge) below(err error, name string) error {
	if err == nil || len(p.stack) == 1 {
		return err
	}
	var way []string
	for _, l := range p.stack[1 : len(p.stack)-1] {
		way = append(way, l.folders[len(l.folders)-1])
	}
	return fmt.Errorf("%q below it: %w", strings.Join(append(way, name), "/"), err)
}
