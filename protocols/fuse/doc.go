// Package fuse is the FUSE door: a user's tree as a folder of this machine, by github.com/hanwen/go-fuse.
//
//	kernel ── go-fuse ── fsys: node ids ─ tree.go ─ paths ── gateway.Session
//
// # Files
//
// All who have a file open on a mount share one gateway.Handle, opened in place. On a local datasource that is the file itself: what is
// written is there at once and for everybody, and where the bytes lie in the clear the kernel reads and writes them without asking us
// (passthrough). On others the handle is staged: what is written is seen on this mount only, until close, fsync or the end publishes it as
// a whole; close and fsync report when that fails. A new file that is not published yet is shown in its folder by the mount itself, and one
// that was deleted or replaced while it is open keeps its content and brings no name back.
//
// An open passthrough file is out of our hands: a right that is revoked ends it for the next open only. Config.NoPassthrough trades speed
// for that.
//
// # Modes, owners, times
//
// Everything belongs to Config.UID and GID, and chown to anybody else is refused (or ignored, Config.IgnoreOwners). Permission bits are kept,
// and the kernel obeys them (default_permissions): chmod 000 and missing x bits do what people expect. They can only take away: what the
// core refuses is refused, whatever the bits say. There are no set-id and sticky bits, and no device files, pipes and sockets. Access times
// are those of the last change. Where a datasource keeps no times, setting one does nothing.
//
// A folder that its user may write to but not look at, as a drop box, cannot be reached here: the kernel looks at every name on the way.
//
// # Locks
//
// flock and fcntl locks are kept in memory per mount, as POSIX has them. While somebody holds a write lock of any kind on a file, the file is
// locked for the user on the core's table as well: others cannot write it through any door, nor take a write lock on a mount of theirs. Read
// locks are not put there: a lock of the core is one against writing, and those who may only read could not take one.
//
// # Caches
//
// The kernel remembers names and attributes for the timeouts of the Config. Whatever happens through another door invalidates them at once.
//
// # Stalls
//
// Whatever asks the core runs in a goroutine of its own. When the caller is interrupted, the core has Config.Grace to finish; after that the
// caller gets EINTR, so that a process can be killed whatever a datasource does. What comes out of the call afterwards is undone or ignored.
package fuse
