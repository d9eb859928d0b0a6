package webdav

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// mark in a DAV header (RFC 4918 §10.1: a coded URL) says that the server is this gateway.
const mark = "<urn:cellgate:dav:1>"

// markFS is mod_dav_fs naming its property set.
const markFS = "<http://apache.org/dav/propset/fs/1>"

// nginxAllow is what dav-ext answers to OPTIONS, to the byte.
const nginxAllow = "GET,HEAD,PUT,DELETE,MKCOL,COPY,MOVE,PROPFIND,OPTIONS,LOCK,UNLOCK"

// kind is what is known of a server.
type kind struct {
	known      bool   // by its marks
	direct     bool   // a PUT that breaks off leaves the former content, one that succeeds replaces it in one step
	replaces   bool   // so does MOVE
	conditions bool   // If-Match and If-None-Match hold until the new content is there
	shallow    bool   // DELETE with Depth: 0 never takes a folder that has something in it
	slashes    bool   // folders are named with a slash at the end, or not found
	parents    bool   // MOVE and COPY make missing parents
	remakes    bool   // MKCOL of what there is succeeds
	dots       string // names that begin like this are hidden or refused: they are called otherwise there, see encode
}

// kindOf reads the marks in an answer to OPTIONS.
func kindOf(h http.Header) kind {
	dav := strings.Join(h.Values("Dav"), ",")
	switch {
	case strings.Contains(dav, mark):
		return kind{known: true, direct: true, replaces: true, conditions: true, shallow: true, dots: mounts.Area}
	case strings.Contains(dav, markFS):
		return kind{known: true, direct: true, shallow: true}
	case strings.HasPrefix(h.Get("Server"), "nginx") && h.Get("Allow") == nginxAllow:
		return kind{known: true, direct: true, replaces: true, shallow: true, slashes: true, parents: true, dots: "."}
	}
	return kind{}
}

const dot = "%2E"

// encode returns what the server is to call segment. Names that it hides or refuses get another, which no other segment has.
func (k kind) encode(segment string) string {
	switch {
	case k.dots == "":
	case strings.HasPrefix(segment, k.dots):
		return dot + segment[1:]
	case k.escaped(segment):
		return "%25" + segment[1:]
	}
	return segment
}

// decode undoes encode.
func (k kind) decode(segment string) string {
	switch {
	case !k.escaped(segment):
	case strings.HasPrefix(segment, dot):
		return "." + segment[len(dot):]
	default:
		return "%" + segment[3:]
	}
	return segment
}

// escaped reports whether segment begins with %2E, %252E, %25252E and so on, and then like a name that is encoded.
func (k kind) escaped(segment string) bool {
	rest, ok := strings.CutPrefix(segment, "%")
	for strings.HasPrefix(rest, "25") {
		rest = rest[2:]
	}
	return ok && k.dots != "" && strings.HasPrefix(rest, "2E"+k.dots[1:])
}

// meet signs in, looks that the root is a folder, and finds out what the server is and does.
func (b *Backend) meet(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return wrap("Open", b.name, err)
	}
	root, at, err := b.ask(ctx, b.path("."), askQuota)
	if vague(err) && len(b.cfg.root) > 0 { // some servers find nothing where a file's name has a slash at its end
		if e, _, ferr := b.ask(ctx, strings.TrimSuffix(b.path("."), "/"), askQuota); ferr == nil && !e.dir {
			root, err = e, nil
		}
	}
	switch {
	case err != nil && fault.KindOf(err) == fault.NotExist:
		return fail("Open", b.name, fault.NotExist, errors.New("the server has no such folder: make it there, or change the path in the option url"))
	case err != nil && (fault.KindOf(err) == fault.Unsupported || fault.KindOf(err) == fault.Invalid || errors.Is(err, errNoDAV)):
		return fail("Open", b.name, fault.Unsupported, errors.Join(errNoDAV, err))
	case err != nil:
		return wrap("Open", b.name, err)
	case !root.dir:
		return fail("Open", b.name, fault.NotDir, errors.New("the path in the option url leads to a file"))
	}
	b.base = root.path // proxies may call it otherwise than we do
	b.cfg.root = strings.FieldsFunc(at, func(r rune) bool { return r == '/' })
	if root.free >= 0 || root.used >= 0 {
		b.space = mounts.Native
	}
	if err := b.introduce(ctx); err != nil {
		return err
	}
	remakes := false
	b.sensitive, remakes = b.probe(ctx)
	b.kind.remakes = remakes && !b.kind.known
	b.kind.direct = b.kind.direct || b.cfg.direct
	return nil
}

// introduce reads what the server says of itself.
func (b *Backend) introduce(ctx context.Context) error {
	resp, err := b.do(ctx, request{method: http.MethodOptions, path: b.path("."), again: true})
	if err != nil {
		return wrap("Open", b.name, err)
	}
	defer resp.finish()
	if resp.StatusCode < 300 { // else it is of no kind that we know
		b.kind = kindOf(resp.Header)
	}
	return nil
}

// probe finds out by the Area, which is ours, whether names in other case are other names, whether folders can be made that exist, and
// whether such names can be had at all: another gateway keeps them for itself, and some servers want none with a dot. What cannot be found out
// is taken for the worse. Nothing is made where nothing may be written.
func (b *Backend) probe(ctx context.Context) (sensitive, remakes bool) {
	there := func(err error) bool { return err == nil || statusOf(err) == http.StatusMethodNotAllowed }
	var err error
	if b.readOnly {
		_, err = b.stat(ctx, mounts.Area)
	} else {
		if err = b.mkcol(ctx, mounts.Area); vague(err) && !there(err) && b.kind.dots == "" {
			b.kind.dots = mounts.Area
			if err = b.mkcol(ctx, mounts.Area); !there(err) {
				b.kind.dots = ""
			}
		}
		if err == nil {
			err = b.mkcol(ctx, mounts.Area)
			remakes = err == nil
		}
	}
	if !there(err) {
		return false, remakes
	}
	other := strings.ToUpper(mounts.Area)
	if b.kind.dots == mounts.Area { // else it would be that which is refused
		other = strings.ToUpper(b.kind.encode(mounts.Area))
	}
	_, err = b.stat(ctx, other)
	return err != nil && fault.KindOf(err) == fault.NotExist, remakes
}
