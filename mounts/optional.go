package mounts

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"os"
	"time"
)

// RandomAccess opens files for reading and writing at any place. Names and flags are those of os.OpenFile; a symbolic link is not followed.
type RandomAccess interface {
	OpenFile(ctx context.Context, name string, flag int, perm fs.FileMode) (RandomFile, error)
}

// RandomFile is an open file of a RandomAccess backend. ReadAt and WriteAt may be called concurrently.
type RandomFile interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Stat() (Info, error)
	Truncate(size int64) error
	Sync() error // data and metadata are durable when it returns
}

// Descriptor is a reader or RandomFile whose bytes lie in the clear in a file of this machine, so that sendfile and FUSE passthrough work.
// The file's position is where the reader stands. The descriptor stays owned by the reader.
type Descriptor interface{ OSFile() *os.File }

// Stater is a reader of Open that tells which file it reads, as of its opening, without another walk to it.
type Stater interface{ Stat() (Info, error) }

// Copier copies a file within the backend without the bytes passing through here. The target is replaced atomically.
type Copier interface {
	CopyFile(ctx context.Context, from, to string) (Info, error)
}

// Linker makes a hard link. Fails with Exist when the name is taken.
type Linker interface {
	Link(ctx context.Context, from, to string) error
}

// TimeSetter sets a node's modification time.
type TimeSetter interface {
	SetModTime(ctx context.Context, name string, t time.Time) error
}

// ModeSetter sets permission bits.
type ModeSetter interface {
	SetMode(ctx context.Context, name string, mode fs.FileMode) error
}

// Truncater sets the size of a file.
type Truncater interface {
	Truncate(ctx context.Context, name string, size int64) error
}

// Symlinker makes symbolic links. The target is stored as given and never followed out of the datasource.
type Symlinker interface {
	Symlink(ctx context.Context, target, name string) error
}

// Xattrer keeps extended attributes. Attr names come without the "user." prefix. Missing attributes are NotExist.
type Xattrer interface {
	Xattr(ctx context.Context, name, attr string) ([]byte, error)
	SetXattr(ctx context.Context, name, attr string, value []byte) error
	RemoveXattr(ctx context.Context, name, attr string) error
	Xattrs(ctx context.Context, name string) ([]string, error)
}

// Watcher reports changes made by anybody; those made through the backend itself may be left out. It yields until ctx ends; a pair with an
// error says that changes may have been missed.
type Watcher interface {
	Watch(ctx context.Context) iter.Seq2[Change, error]
}

// Change names something that changed outside or inside. A folder's name stands for itself and its listing.
type Change struct{ Name string }

// Spacer tells sizes of the storage in bytes.
type Spacer interface {
	Space(ctx context.Context) (Space, error)
}

// Space is the room of a storage, -1 for a figure it does not tell.
type Space struct{ Total, Used, Free int64 }

// Hasher returns a digest the backend keeps, without reading the content here. Algo is "md5", "sha1", "sha256", "crc32c" or the backend's own.
type Hasher interface {
	Hash(ctx context.Context, name, algo string) ([]byte, error)
}

// Conditional replaces a file only while its Tag is the given one, in one step of the backend. Fails with Precondition.
type Conditional interface {
	PutIf(ctx context.Context, name, tag string, src io.Reader, opt PutOptions) (Info, error)
}

// PartPutter takes a file in parts that may arrive in any order, without spooling.
type PartPutter interface {
	StartParts(ctx context.Context, name string, opt PutOptions) (id string, err error)
	PutPart(ctx context.Context, id string, number int, src io.Reader, size int64) error
	FinishParts(ctx context.Context, id string) (Info, error)
	AbortParts(ctx context.Context, id string) error
}

// Purger removes name with everything below it, whatever the names there are: also those that List leaves out because ValidName refuses them.
// Symbolic links go and are not followed. Fails with NotExist, Invalid for the root, and Busy where another file system is mounted on it or
// below, which stays untouched. A call that fails or whose ctx ends may have removed a part. Purge is the helper that falls back.
type Purger interface {
	Purge(ctx context.Context, name string) error
}

// Resumer is a backend whose Rename of a folder is many steps. ResumeRename goes on with one that was interrupted, or begins it: what is at
// to already is part of it. Nothing of from is deleted before all of it is at to. Both fail with Unavailable, Timeout, Busy, NoSpace or
// Canceled where going on later makes sense; with any other kind, what was copied has been taken back.
type Resumer interface {
	ResumeRename(ctx context.Context, from, to string) error
}

// Partitioned is a backend that holds several file systems, between which Rename is Unsupported. Each has an Area of its own, which whoever
// uses it has to make. AreaOf is the helper that falls back.
type Partitioned interface {
	// Area returns the path of the Area on the file system that the parent of name lies on: "sub/mnt/.cellgate" for what is below the mount
	// point "sub/mnt", ".cellgate" for the mount point itself and for all that lies on the datasource's own file system. The answer may be
	// some seconds old and costs no system call then.
	Area(name string) string

	// Areas returns the Areas of all file systems there are now, that of the root first. They need not exist, nor be writable.
	Areas() []string
}

// Provider is a transparent wrapper that stands before the capabilities below it, too. Provide fills target, a pointer to a capability's
// interface variable; known is false for a type it has no form of, which As then looks for below.
type Provider interface {
	Provide(target any) (known, found bool)
}

// Offer is what Provide answers for a capability of which a wrapper has a form: that of what next has.
func Offer[T any](next Backend, target *T, form func(T) T) (known, found bool) {
	n, ok := As[T](next)
	if ok {
		*target = form(n)
	}
	return true, ok
}

// As returns b, or the first backend below it that is reached through transparent wrappers, as T; wrappers that are Providers give their own
// form of it. Wrappers that transform or remember have no Unwrap, so what lies below them is out of reach.
func As[T any](b Backend) (T, bool) {
	for {
		if p, ok := b.(Provider); ok {
			var t T
			if known, found := p.Provide(&t); known {
				return t, found
			}
		}
		if t, ok := b.(T); ok {
			return t, true
		}
		u, ok := b.(interface{ Unwrap() Backend })
		if !ok {
			var none T
			return none, false
		}
		b = u.Unwrap()
	}
}
