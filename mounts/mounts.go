// Package mounts is where the bytes live outside: one interface, Backend, that every driver and wrapper gives, and small optional
// interfaces for what only some of them can.
//
// Names are slash-separated, satisfy ValidPath (else the call is Invalid), and "." is the root, which cannot be removed, renamed or replaced.
// A backend never follows symbolic links: one on the way is NotDir, one at the end is a node of its own, not to be opened or put into
// (Denied); Resolve follows them, so that rights are asked about the name a node really has. Calls with a ctx that has ended fail with
// Canceled or Timeout before anything happens. A backend is a pipe: it knows no users, rights, locks or versions.
// Its errors are faults (internal/fault), translated from the foreign ones once, in the driver's errors.go.
//
// The folder Area at the root of a datasource (and of any file system mounted below it) belongs to the gateway. Drivers treat it like any
// other folder; hiding it is the core's deed.
package mounts

import (
	"context"
	"io"
	"io/fs"
	"iter"
	"time"

	"cellgate/internal/fault"
)

// Area is the name of the gateway's own folder in a datasource, for staged uploads and the like.
const Area = ".cellgate"

// Backend is one attached storage. All methods are safe for concurrent use.
type Backend interface {
	// Stat returns what name is, without following a symbolic link in its last segment. Fails with NotExist, NotDir (a file on the way is
	// NotExist or NotDir), Denied.
	Stat(ctx context.Context, name string) (Info, error)

	// List yields the children of dir, one level, in any order, each once, without "." and "..". It streams: memory does not grow with the
	// number of entries. A failure is yielded as the last pair, with a zero Info; breaking the loop releases everything.
	// A child whose name is no valid path segment (see ValidName) is left out.
	List(ctx context.Context, dir string) iter.Seq2[Info, error]

	// Open returns n bytes of the file from off, or everything from off when n < 0. Reading past the end yields io.EOF, an off beyond the end
	// an empty reader. The caller closes. A reader over a local file in the clear also is a Descriptor, one
	// that knows what it reads is a Stater. A reader keeps the content it was opened on when Put or Rename replace the file meanwhile. Fails with NotExist, IsDir, Denied (a link, device, socket or pipe).
	Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error)

	// Put makes the file name hold what src yields, atomically: readers see the old or the new content, and a src that fails (or a ctx that
	// ends) leaves the old. The parent must exist. It replaces a file, never a folder (IsDir). When Put returns, the content is durable as
	// far as the backend's Features say. The Info is that of the new file.
	Put(ctx context.Context, name string, src io.Reader, opt PutOptions) (Info, error)

	// Mkdir makes one folder. Fails with Exist when the name is taken, NotExist when the parent is missing.
	Mkdir(ctx context.Context, name string) error

	// Remove deletes a file, a symbolic link or an empty folder. Fails with NotEmpty, NotExist.
	Remove(ctx context.Context, name string) error

	// Rename moves a file or folder with all that is in it. It replaces a file by a file atomically where Features say so, never a folder
	// (Exist, IsDir or NotDir). Moving a folder below itself is Invalid; onto itself, nothing. Where the two lie on different file systems
	// within the datasource it is Unsupported: copy and remove.
	Rename(ctx context.Context, from, to string) error

	// Features says what the backend guarantees and how.
	Features() Features

	// Close releases connections and watchers. Calls after Close fail with Unavailable.
	Close() error
}

// Type is what a name stands for.
type Type uint8

// The types of a node. Other is a device, socket or pipe: listed, never opened.
const (
	File Type = iota
	Dir
	Symlink
	Other
)

// Info describes one name. It is a value without pointers to shared state.
type Info struct {
	Name    string // the last segment; "." for the root
	Type    Type
	Size    int64       // bytes of a file, -1 unknown; 0 for others
	ModTime time.Time   // UTC; zero when unknown
	Mode    fs.FileMode // permission bits, 0 when the backend has none
	ID      uint64      // a number that stays with the node through renames (inode), 0 when the backend has none
	Change  int64       // moves with every change of content and cannot be set by clients (ctime in Unix nanoseconds), 0 when unknown
	Tag     string      // the backend's own entity tag without quotes, "" when it has none
	Target  string      // where a Symlink points, as stored
	Links   uint32      // number of hard links, 0 when unknown
}

// IsDir reports whether the name is a folder.
func (i Info) IsDir() bool { return i.Type == Dir }

// PutOptions are the wishes that travel with a Put.
type PutOptions struct {
	Size      int64       // declared length, -1 when unknown; a src that yields another length fails with Invalid and leaves the old
	ModTime   time.Time   // zero: now
	Mode      fs.FileMode // permission bits of a new file, 0: the backend's default
	Exclusive bool        // fail with Exist when the name is taken
}

// Support says how a guarantee comes about.
type Support uint8

// The ways. Refused is the zero value: nothing is promised that was not stated.
const (
	Refused  Support = iota // the gateway says no
	Emulated                // the gateway makes it up, at a cost or with a window
	Native                  // the backend does it
)

// String returns "refused", "emulated" or "native".
func (s Support) String() string { return [...]string{"refused", "emulated", "native"}[s] }

// MarshalText is String, so that JSON says the word.
func (s Support) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (s *Support) UnmarshalText(text []byte) error {
	for v := Refused; v <= Native; v++ {
		if v.String() == string(text) {
			*s = v
			return nil
		}
	}
	return fault.New("mounts.Support", string(text), fault.Invalid, nil)
}

// Features is the guarantees table of a datasource, as the admin sees it.
type Features struct {
	AtomicReplace    Support       // Put and Rename replace in one step
	ConditionalWrite Support       // Conditional
	Rename           Support       // Rename of folders in one step
	ModTime          Support       // SetModTime keeps what it is given
	ModTimeGrain     time.Duration // the coarsest step of times, 0 unknown
	Hash             Support       // Hasher
	RandomAccess     Support       // RandomAccess
	HardLink         Support       // Linker
	Symlink          Support       // Symlinker
	Xattr            Support       // Xattrer
	Watch            Support       // Watcher
	Space            Support       // Spacer
	CaseSensitive    bool          // "a" and "A" are two names
	MaxName          int           // longest name in bytes, 0 unknown
	MaxPath          int           // longest path in bytes, 0 unknown
	Durable          Support       // acknowledged writes survive a power cut
	Remote           bool          // every call crosses a network: the core streams and spools instead of staging on the backend, and remembers attributes for a while
}
