// Package webdav is storage on a WebDAV server (RFC 4918): Apache's mod_dav, nginx, SabreDAV and its kin, rclone, another gateway.
//
// # What is ours and what is gowebdav's
//
// github.com/studio-b12/gowebdav makes the requests that change the tree (MKCOL, DELETE, MOVE, COPY), with a client for each call on one
// transport of ours, and its Authenticator is the seam for signing. The rest is spoken here, each for a reason that lies in the library:
//
//   - Its listing collects all entries before it returns one, ignores broken XML, and takes the first answer for the folder itself.
//   - Its writes make the parent folder first (a round trip, and a folder nobody asked for), buffer what they cannot rewind, and know no
//     conditions. Its reads tell neither size nor tag of what they return.
//   - It knows neither contexts nor quota, takes "there is one" (405) for made and "there is none" (404) for deleted, and makes parents where a
//     MOVE answers 409. So its transport is ours: it carries the context, and answers other than plain success never reach the library.
//   - Its digest always counts 1, which servers that count refuse, knows MD5 only, and panics on some challenges.
//
// # Publishing
//
// A PUT that is cut off leaves a torso on some servers (x/net/webdav), and MOVE takes the former target away before it brings the new one on
// many. No header tells, so the rule is: upload to a temporary name, look what is at the target, MOVE. A target that is a folder is never
// moved onto, for servers delete it with all it holds. Where that is not needed the body goes to its name at once, which spares two round
// trips, namely on servers that are known for certain:
//
//   - mod_dav_fs, which names itself by its property set in the DAV header, writes beside and renames. Its MOVE is not atomic, its PUT is.
//     Its tags are weak for a second, and its conditions are not serialised: PutIf is refused.
//   - nginx with dav-ext, known by its Allow header, has the whole body before it renames. It tells no tags and ignores conditions. Folders
//     need a trailing slash, and MOVE makes missing parents, so that both are looked at first. It lists no names that begin with a dot: they
//     are written with %2E there (and names that begin like that, with %252E). What others called by a dot stays unseen, and a folder that
//     holds nothing else passes for empty.
//   - This gateway, which says so in the DAV header (see mark): everything is atomic there, conditions too. It keeps the names of its Area
//     for itself, so ours are written with %2E there, and so on any server that refuses to make the Area.
//
// Others get the option "put: direct" from an admin who knows. AtomicReplace is Native on nginx and this gateway, and Emulated on mod_dav_fs
// and where an admin vouches: a replaced file may be missing for a moment. On servers nobody knows it is Refused, for some (rclone) show readers
// a mixture, however the new content comes; Rename does not replace there.
//
// # Windows that remain
//
// mod_dav_fs looks how long a file is before it opens it: a reader that asks while the file is replaced may get the new content cut to the
// former length. Readers and writers of this process therefore wait for each other (see names), for as long as a file is being opened or
// published; others may still fall into it.
//
// DELETE takes whole trees, so Remove looks whether a folder is empty and then deletes it: what somebody else puts there in between goes too.
// Exclusive Puts are serialised here and end in MOVE with Overwrite: F, which some servers (mod_dav) check before they rename: two gateways
// on one server may both win there.
package webdav

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/studio-b12/gowebdav"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is one folder of a WebDAV server. It is safe for concurrent use.
type Backend struct {
	cfg       settings
	name      string // the datasource's
	readOnly  bool
	log       *slog.Logger
	transport *http.Transport
	login     *login
	signer    gowebdav.Authorizer // login, for the library
	base      []string            // the segments of the root as the server writes them
	kind      kind
	space     mounts.Support
	sensitive bool

	life    context.Context // ends with Close
	end     context.CancelFunc
	tidyMu  sync.Mutex
	tidy    sync.WaitGroup // what removes temporary files late, until life ends; begun under tidyMu
	short   slots          // requests that end by themselves, and uploads
	streams slots          // downloads and listings, which last as long as whoever reads them likes

	times  atomic.Int32 // whether the server honours X-OC-Mtime: 0 unknown, 1 yes, -1 no
	tags   atomic.Int32 // whether listings tell entity tags, likewise
	areaMu sync.Mutex
	area   bool // the folder of temporary names exists; guarded by areaMu
	way    int  // of making temporary names; guarded by areaMu
	names  names
	dirs   hints
}

var (
	_ mounts.Backend     = (*Backend)(nil)
	_ mounts.Copier      = (*Backend)(nil)
	_ mounts.Spacer      = (*Backend)(nil)
	_ mounts.Conditional = (*Backend)(nil)
	_ mounts.Purger      = (*Backend)(nil)
)

// Driver returns the driver "webdav".
func Driver() mounts.Driver {
	return mounts.Driver{Name: "webdav", Options: options(), Secrets: secrets(), Check: check, Open: open}
}

// open signs in and finds out what server it is.
func open(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
	if errs := check(cfg); len(errs) > 0 {
		return nil, fail("Open", cfg.Name, fault.Invalid, errors.Join(errs...))
	}
	set, _ := parse(cfg)
	b := &Backend{
		cfg: set, name: cfg.Name, readOnly: cfg.ReadOnly, log: cfg.Logger, login: newLogin(set.auth, cfg.Credentials),
		base: set.root, short: make(slots, set.connections), streams: make(slots, set.connections),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	b.signer = gowebdav.NewPreemptiveAuth(b.login)
	b.life, b.end = context.WithCancel(context.Background())
	var err error
	if b.transport, err = newTransport(b.life, set, cfg.Dialer(set.host)); err != nil {
		return nil, fail("Open", cfg.Name, fault.Invalid, err)
	}
	if err := b.meet(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close ends what is under way and the connections.
func (b *Backend) Close() error {
	b.end()
	b.tidyMu.Lock()
	defer b.tidyMu.Unlock()
	b.tidy.Wait()
	b.transport.CloseIdleConnections()
	return nil
}

// Features returns what was found out when the storage was opened.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{AtomicReplace: b.replace(), Rename: mounts.Emulated, Space: b.space, CaseSensitive: b.sensitive, Remote: true}
	if b.kind.known {
		f.Rename = mounts.Native
	}
	if b.kind.conditions {
		f.ConditionalWrite = mounts.Native
	}
	if b.readOnly {
		f.AtomicReplace, f.ConditionalWrite, f.Rename = mounts.Refused, mounts.Refused, mounts.Refused
	}
	return f
}

// replace says how a file comes in the place of another.
func (b *Backend) replace() mounts.Support {
	switch {
	case b.kind.replaces:
		return mounts.Native
	case b.kind.direct:
		return mounts.Emulated
	}
	return mounts.Refused
}

// begin is the door of every call: it refuses ended contexts, a closed backend, bad names and writes to a read-only one.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/webdav."+op, name, err)
	}
	if b.life.Err() != nil {
		return fail(op, name, fault.Unavailable, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/webdav."+op, name, err)
	}
	if write && b.readOnly {
		return fail(op, name, fault.Denied, errReadOnly)
	}
	return nil
}

// path returns the decoded path of name on the server, without a slash at its end but for the root.
func (b *Backend) path(name string) string {
	var p strings.Builder
	for _, segment := range b.cfg.root {
		p.WriteString("/" + segment)
	}
	if name == "." {
		p.WriteString("/")
		return p.String()
	}
	for segment := range strings.SplitSeq(name, "/") {
		p.WriteString("/" + b.kind.encode(segment))
	}
	return p.String()
}

// folder is path with a slash at its end.
func (b *Backend) folder(name string) string { return strings.TrimSuffix(b.path(name), "/") + "/" }

// slots bound how many connections are used at a time.
type slots chan struct{}

// take waits for a free one, until ctx ends or for as long as a server may keep silent.
func (s slots) take(ctx context.Context, patience time.Duration) error {
	select {
	case s <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fault.New("mounts/webdav.connect", "", fault.Busy, errConnections)
	}
}

func (s slots) free() { <-s }
