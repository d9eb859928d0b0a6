// Package dropbox is the driver of Dropbox accounts, over version 2 of their HTTP interface.
//
// What is particular about that storage, and what the driver makes of it:
//
// Names are not told apart by case ("a" is "A"), and keep the case they were made with. A backslash and a trailing space are refused
// (Invalid), and so are the names that Dropbox keeps for itself, such as "desktop.ini" or "~$x".
//
// Put is atomic: less than 8 MiB as one upload, more as a session of blocks of 4 MiB, which becomes the file with the last call. Either way
// bytes wait here, so that a block can be sent again when Dropbox is busy, and a slow source holds no connection. All streams together have
// six buffers of 4 MiB, and each has one at least; less than 8 MiB take a session when there are no more. Content equal to what is there already makes no new revision and keeps the former time; that is Dropbox's way.
//
// Rename over a file is emulated, because a move never replaces: the former file moves aside, the new one moves in, the former is deleted.
// Between the first two steps the name does not exist; when the second fails, the first is undone. Hence Features say that replacing is
// emulated. A rename that changes only the case takes two moves, because Dropbox ignores such a move.
//
// Dropbox makes missing parents by itself where the contract says NotExist, so the driver asks for a parent that it has not seen during the
// last seconds. It deletes folders with all in them, so Remove looks first whether there is anything: an entry that comes in between goes
// too. Files are deleted by their rev, so a folder that took a file's place meanwhile is never taken for it.
//
// Watch tells of what others did, and leaves out what this backend did itself, whose caller knows it already.
//
// Info: the Tag is Dropbox's rev, the ID is made from its id, ModTime is the client_modified of files, in seconds. Folders have no time.
// Files that exist only inside of other services (is_downloadable false) are of the type Other.
package dropbox

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/users"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a folder of a Dropbox account. It is safe for concurrent use.
type Backend struct {
	root     string // "" or "/folder", as Dropbox wants it
	depth    int    // segments of root
	readOnly bool
	logger   *slog.Logger
	files    files.ContextClient
	users    users.ContextClient
	conns    *transport
	folders  *folders
	seen     *seen
	buffers  *buffers
	closed   atomic.Bool
	done     chan struct{} // closed by Close, ends watches
}

var (
	_ mounts.Backend     = (*Backend)(nil)
	_ mounts.Copier      = (*Backend)(nil)
	_ mounts.Purger      = (*Backend)(nil)
	_ mounts.Hasher      = (*Backend)(nil)
	_ mounts.Spacer      = (*Backend)(nil)
	_ mounts.Watcher     = (*Backend)(nil)
	_ mounts.Conditional = (*Backend)(nil)
)

// open connects to the account, proves that it lets us in and that the folder is there.
func open(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
	s, problems := parse(cfg)
	if len(problems) > 0 {
		return nil, fault.New("mounts/dropbox.Open", cfg.Name, fault.Invalid, errors.Join(problems...))
	}
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	conns, err := newTransport(cfg, s, logger)
	if err != nil {
		return nil, fault.New("mounts/dropbox.Open", cfg.Name, fault.Invalid, err)
	}
	config := sdk.Config{
		Client:       &http.Client{Transport: conns, CheckRedirect: noRedirect},
		URLGenerator: s.url,
	}
	b := &Backend{
		root: s.root, depth: strings.Count(s.root, "/"), readOnly: cfg.ReadOnly, logger: logger, files: files.NewContext(config),
		users: users.NewContext(config), conns: conns, folders: newFolders(), seen: newSeen(), buffers: newBuffers(s.connections), done: make(chan struct{}),
	}
	info, err := b.stat(ctx, "Open", ".")
	if err == nil && !info.IsDir() {
		err = fault.New("mounts/dropbox.Open", cfg.Name, fault.NotDir, errors.New("the option path names a file"))
	}
	if fault.KindOf(err) == fault.NotExist {
		err = fault.New("mounts/dropbox.Open", cfg.Name, fault.NotExist, errors.New("there is no folder "+s.root+" in this Dropbox: make it there, or change the option path"))
	}
	if err != nil {
		b.Close()
		cause := err
		if own := new(fault.Error); errors.As(err, &own) && own.Err != nil {
			cause = own.Err // what says the path of the root says nothing
		}
		return nil, fault.New("mounts/dropbox.Open", cfg.Name, fault.KindOf(err), cause)
	}
	return b, nil
}

// noRedirect lets nobody send us, and the token, somewhere else.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// Close ends watches and closes connections. Readers that are open go on.
func (b *Backend) Close() error {
	if !b.closed.Swap(true) {
		close(b.done)
		b.conns.close()
		b.buffers.drop()
	}
	return nil
}

// Features returns what Dropbox guarantees. It tells no more about durability than that a file is stored.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{
		AtomicReplace: mounts.Emulated, ConditionalWrite: mounts.Native, Rename: mounts.Native, ModTimeGrain: time.Second, Hash: mounts.Native,
		Watch: mounts.Native, Space: mounts.Native, MaxName: mounts.MaxName, Remote: true,
	}
	if b.readOnly {
		f.AtomicReplace, f.ConditionalWrite, f.Rename = 0, 0, 0
	}
	return f
}

// begin is the door of every call: it refuses ended contexts, a closed backend, names that cannot be, and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/dropbox."+op, name, err)
	}
	if b.closed.Load() {
		return fault.New("mounts/dropbox."+op, name, fault.Unavailable, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/dropbox."+op, name, err)
	}
	switch {
	case strings.Contains(name, `\`):
		return fault.New("mounts/dropbox."+op, name, fault.Invalid, errBackslash)
	case strings.HasSuffix(name, " ") || strings.Contains(name, " /"):
		return fault.New("mounts/dropbox."+op, name, fault.Invalid, errTrailing)
	case write && b.readOnly:
		return fault.New("mounts/dropbox."+op, name, fault.Denied, errReadOnly)
	}
	return nil
}

var (
	errClosed    = errors.New("closed")
	errReadOnly  = errors.New("the datasource is read-only")
	errBackslash = errors.New("a name with a backslash, which Dropbox does not take")
	errTrailing  = errors.New("a name that ends with a space, which Dropbox does not take")
	errRoot      = errors.New("the root stays where it is")
	errLength    = errors.New("the source has another length than declared")
	errBelow     = errors.New("a folder cannot move below itself")
	errNoFile    = errors.New("is a symbolic link, or a document that exists only in another service")
)

// path returns name as Dropbox wants it: from the root of the account, which is "".
func (b *Backend) path(name string) string {
	if name == "." {
		return b.root
	}
	return b.root + "/" + name
}

// hidden reports whether a child is a name that this driver uses for a moment.
func hidden(base string) bool { return strings.HasPrefix(base, mounts.Area+"-") }
