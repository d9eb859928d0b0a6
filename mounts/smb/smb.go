// Package smb is the driver for Windows shares: SMB 2.0.2 to 3.1.1, with NTLMv2.
//
// Sessions. A Backend holds a few connections, each a session of its own that many calls share. The library below loses a session when a call's
// context is cancelled, so no call is given one: it runs to its end in a goroutine while its caller goes away. A session on which nothing
// moves for the timeout is closed, and costs the calls on it only; the next call dials again. Renames have a session to themselves: Samba
// refuses to replace a file that is open on the same connection, but replaces one that is open on another. Put tries the session it wrote on first,
// unless the target is open here.
//
// Credits. How much a session may ask for at a time is up to the server; see weight. Blocks are shared by the streams there are; see window.
//
// Protection. Unless told otherwise the driver encrypts where the server can (SMB 3) and signs where it cannot (SMB 2): encryption is several
// times faster here than the signatures of SMB 3. See link, which also sees to it that nothing goes or comes in the clear.
//
// Names. What SMB refuses is stored as Windows services for Macintosh, macOS and the Linux option mapposix do it: each of " * : < > ? \ | is
// U+F020 to U+F027 in that order, a space at the end of a name is U+F028, a dot there U+F029. Names from a client that have such a character
// where it would be read back as another are Invalid, so the mapping is reversible. A name in the form of a DOS short name (LONGNA~1.TXT) is
// looked up in its folder: where the server takes it for another file, it does not exist, and cannot be made. Device names such
// as CON or nul.txt are Invalid.
//
// Files. Open files are shared for reading and writing, but not for deletion: that is the library's way. Whatever removes or renames a file
// that is open here or elsewhere waits for a moment and then is Busy; Samba replaces an open file all the same, Windows does not. Put has no
// rename without replacing to build Exclusive on: it looks once more just before it renames, and locks out the rivals in this process.
// Symbolic links (reparse points) are told as such and not followed, where the server shows them; Samba follows those on its disk itself,
// within the share, unless told "follow symlinks = no". Copies of more than 16 MiB are streamed: the library repeats the first 16 MiB.
package smb

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Driver returns the driver "smb".
func Driver() mounts.Driver {
	return mounts.Driver{Name: "smb", Options: options(), Secrets: secrets(), Open: open, Check: check}
}

// Backend is a folder of a share. It is safe for concurrent use.
type Backend struct {
	cfg       config
	logger    *slog.Logger
	data      *pool         // for everything but renames
	changes   *pool         // for renames, see the package comment
	sensitive bool          // to case
	beside    atomic.Bool   // temporary files lie beside their targets: the Area is of no use
	streams   atomic.Int32  // under way, see window
	naming    [64]chan none // held while an exclusive Put gives a name; by hash of the name

	mu     sync.Mutex
	closed bool           // guarded by mu
	opened map[string]int // files open here by path in lower case, guarded by mu
	work   sync.WaitGroup // goroutines; added to under mu
	tidy   sync.WaitGroup // removals of temporary files, part of work; added to under mu
}

var (
	_ mounts.Backend      = (*Backend)(nil)
	_ mounts.RandomAccess = (*Backend)(nil)
	_ mounts.Copier       = (*Backend)(nil)
	_ mounts.TimeSetter   = (*Backend)(nil)
	_ mounts.Truncater    = (*Backend)(nil)
	_ mounts.Spacer       = (*Backend)(nil)
)

func open(ctx context.Context, mc mounts.Config) (mounts.Backend, error) {
	cfg, errs := parse(mc)
	if len(errs) > 0 {
		return nil, fault.New("mounts/smb.Open", mc.Name, fault.Invalid, errors.Join(errs...))
	}
	b := newBackend(cfg, mc.Logger)
	if err := b.probe(ctx); err != nil {
		b.Close()
		return nil, fault.New("mounts/smb.Open", mc.Name, kindOf(err), err)
	}
	return b, nil
}

func newBackend(cfg config, logger *slog.Logger) *Backend {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	b := &Backend{cfg: cfg, logger: logger, opened: map[string]int{}}
	for i := range b.naming {
		b.naming[i] = make(chan none, 1)
	}
	b.data = &pool{b: b, most: cfg.connections - 1}
	b.changes = &pool{b: b, most: 1}
	return b
}

// probe looks whether the folder is there and how the server compares names.
func (b *Backend) probe(ctx context.Context) error {
	info, err := b.lstat(ctx, b.cfg.root)
	if err == nil && !info.IsDir() {
		err = failure{fault.NotDir, "option path: it is not a folder"}
	} else if fault.KindOf(b.fail("Open", "", err)) == fault.NotExist && b.cfg.root != "" {
		err = failure{fault.NotExist, "option path: there is no such folder on the share; it is not made, create it or name another"}
	}
	if err != nil {
		return err
	}
	switch b.cfg.casing {
	case "sensitive":
		b.sensitive = true
	case "auto":
		b.sensitive, err = b.probeCase(ctx)
	}
	return err
}

// Features returns the guarantees.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{
		AtomicReplace: mounts.Native, Rename: mounts.Native, ModTime: mounts.Native, ModTimeGrain: 100 * time.Nanosecond,
		RandomAccess: mounts.Native, Space: mounts.Native, Durable: mounts.Native, CaseSensitive: b.sensitive, MaxName: mounts.MaxName, Remote: true,
	}
	if b.cfg.unsynced {
		f.Durable = mounts.Refused
	}
	if b.cfg.readOnly {
		f.AtomicReplace, f.Rename, f.ModTime, f.Durable = 0, 0, 0, 0
	}
	return f
}

// Close ends the sessions and all calls on them. Temporary files of Puts that just failed are removed first, for a second at most.
func (b *Backend) Close() error {
	b.mu.Lock()
	was := b.closed
	b.closed = true
	b.mu.Unlock()
	if was {
		return nil
	}
	tidied := make(chan none)
	go func() { b.tidy.Wait(); close(tidied) }()
	select {
	case <-tidied:
	case <-time.After(time.Second):
	}
	b.data.close()
	b.changes.close()
	b.work.Wait()
	return nil
}

// spawn runs f in a goroutine that Close waits for, and reports whether it did: not once the Backend is closed.
func (b *Backend) spawn(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.work.Go(f)
	return true
}

// begin is the door of every call: it refuses ended contexts, a closed backend, bad names and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return b.fail(op, name, err)
	}
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return b.fail(op, name, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/smb."+op, name, err)
	}
	if write && b.cfg.readOnly {
		return b.fail(op, name, errReadOnly)
	}
	return nil
}

// hold counts a file that is open here; the function it returns takes that back.
func (b *Backend) hold(path string) (release func()) {
	key := fold(path)
	b.mu.Lock()
	b.opened[key]++
	b.mu.Unlock()
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.opened[key]--; b.opened[key] == 0 {
			delete(b.opened, key)
		}
	}
}

// holds reports whether the file is open here, or one below the folder.
func (b *Backend) holds(path string) bool {
	key := fold(path)
	b.mu.Lock()
	defer b.mu.Unlock()
	for open := range b.opened {
		if below, ok := strings.CutPrefix(open, key); ok && (below == "" || below[0] == '\\') {
			return true
		}
	}
	return false
}

func random() string {
	var r [12]byte
	rand.Read(r[:])
	return hex.EncodeToString(r[:])
}
