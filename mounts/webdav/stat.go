package webdav

import (
	"context"
	"errors"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	askProps = `<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>` +
		`<resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>`
	askQuota = `<?xml version="1.0" encoding="utf-8"?><propfind xmlns="DAV:"><prop>` +
		`<resourcetype/><quota-available-bytes/><quota-used-bytes/></prop></propfind>`
	batch = 1000 // entries of a listing that are read before the first is shown, so that short ones give their connection back at once
)

// propfind asks for properties of path.
func (b *Backend) propfind(ctx context.Context, path, depth, ask string, stream bool) (*response, error) {
	resp, err := b.do(ctx, request{
		method: "PROPFIND", path: path, again: true, stream: stream,
		header: http.Header{"Depth": {depth}, "Content-Type": {"application/xml; charset=utf-8"}, "Accept": {"application/xml, text/xml"}},
		body:   &body{size: int64(len(ask)), whole: []byte(ask)},
	})
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusMultiStatus {
		return resp, nil
	}
	resp.finish()
	if resp.StatusCode < 300 {
		return nil, fault.New("mounts/webdav.request", "", fault.Unsupported, errNoDAV)
	}
	return nil, b.status(resp.StatusCode)
}

// properties returns what the server says of name alone.
func (b *Backend) properties(ctx context.Context, name, ask string) (entry, error) {
	path, hinted := b.path(name), name != "." && b.dirs.has(name)
	if hinted {
		path = b.folder(name)
	}
	e, at, err := b.ask(ctx, path, ask)
	if hinted && vague(err) { // it is a folder no more
		b.dirs.wrong(name)
		e, at, err = b.ask(ctx, b.path(name), ask)
	}
	if err == nil && !hinted && strings.HasSuffix(at, "/") && name != "." {
		b.dirs.redirected(name)
	}
	if err == nil || statusOf(err) == http.StatusNotFound { // who finds nothing asks about the folder next
		b.dirs.likely(parent(name))
	}
	return e, err
}

// ask returns what the server says of path, and where that was after redirects.
func (b *Backend) ask(ctx context.Context, path, ask string) (e entry, at string, err error) {
	resp, err := b.propfind(ctx, path, "0", ask, false)
	if err != nil {
		return entry{}, "", err
	}
	defer resp.finish()
	e, err = newMultistatus(resp.Body).next()
	switch {
	case err == io.EOF:
		return entry{}, "", fault.New("mounts/webdav.request", "", fault.NotExist, nil)
	case err != nil:
		return entry{}, "", broken(err)
	case e.status >= 300:
		return entry{}, "", b.status(e.status)
	case e.path == nil:
		return entry{}, "", broken(errXML)
	}
	b.learn(e)
	return e, resp.path, nil
}

// broken is the fault of an answer that makes no sense, or broke off.
func broken(err error) error {
	var f *fault.Error
	if errors.As(err, &f) {
		return err
	}
	return fault.New("mounts/webdav.request", "", fault.Unavailable, err)
}

// learn notes whether the server tells entity tags in listings: only then those of other answers mean anything.
func (b *Backend) learn(e entry) {
	switch {
	case e.dir:
	case e.tagged:
		b.tags.Store(1)
	default:
		b.tags.Store(-1)
	}
}

// info is what e is under name.
func (e *entry) info(name string) mounts.Info {
	i := mounts.Info{Name: name, Type: mounts.File, Size: e.size, ModTime: e.modified, Tag: e.tag}
	if e.dir {
		i.Type, i.Size, i.Tag = mounts.Dir, 0, ""
	}
	return i
}

// stat is Stat for what is not seen from outside: its errors have no name yet, and are not explained.
func (b *Backend) stat(ctx context.Context, name string) (mounts.Info, error) {
	e, err := b.properties(ctx, name, askProps)
	if vague(err) && statusOf(err) != http.StatusNotFound && name != "." { // below a file, mod_dav says 400 and x/net/webdav 405
		info, above := b.stat(ctx, parent(name))
		switch {
		case above != nil:
			return mounts.Info{}, above
		case !info.IsDir():
			return mounts.Info{}, fault.New("mounts/webdav.request", "", fault.NotDir, err)
		}
	}
	if err != nil {
		return mounts.Info{}, err
	}
	_, base := mounts.Split(name)
	return e.info(base), nil
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	info, err := b.stat(ctx, name)
	return info, wrap("Stat", name, err)
}

// List implements mounts.Backend, by one request whatever the number of entries.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir, false); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		l, err := b.list(ctx, dir)
		if err != nil {
			yield(mounts.Info{}, b.listError(ctx, dir, err))
			return
		}
		defer l.close()
		infos := make([]mounts.Info, 0, 64)
		for more := true; more; {
			infos = infos[:0]
			for len(infos) < batch {
				e, err := l.next()
				if err == io.EOF {
					l.close()
					more = false
					break
				}
				if err != nil {
					yield(mounts.Info{}, wrap("List", dir, err))
					return
				}
				if name := b.kind.decode(e.path[len(e.path)-1]); mounts.ValidName(name) == nil && !strings.HasPrefix(name, tempPrefix) {
					if e.dir {
						b.dirs.likely(mounts.Join(dir, name))
					}
					infos = append(infos, e.info(name))
				}
			}
			for _, info := range infos {
				if !yield(info, nil) {
					return
				}
			}
			if err := ctx.Err(); err != nil && more {
				yield(mounts.Info{}, wrap("List", dir, err))
				return
			}
		}
	}
}

// listError tells a file from what does not exist: servers find nothing where a file's name has a slash at its end.
func (b *Backend) listError(ctx context.Context, dir string, err error) error {
	if vague(err) && dir != "." {
		if info, err := b.stat(ctx, dir); err == nil && !info.IsDir() {
			return fail("List", dir, fault.NotDir, nil)
		}
	}
	return b.explain(ctx, "List", dir, err)
}

// listing is a folder being read.
type listing struct {
	b    *Backend
	resp *response
	m    *multistatus
	base []string // of the folder, as the server writes it
}

func (b *Backend) list(ctx context.Context, dir string) (*listing, error) {
	resp, err := b.propfind(ctx, b.folder(dir), "1", askProps, true)
	if err != nil {
		return nil, err
	}
	b.dirs.likely(dir)
	l := &listing{b: b, resp: resp, m: newMultistatus(resp.Body), base: b.base}
	if dir != "." {
		l.base = slices.Clone(b.base)
		for segment := range strings.SplitSeq(dir, "/") {
			l.base = append(l.base, b.kind.encode(segment))
		}
	}
	return l, nil
}

func (l *listing) close() { l.resp.finish() }

// next returns the next child, or io.EOF after the last. Names are not yet judged.
func (l *listing) next() (entry, error) {
	for {
		e, err := l.m.next()
		if err == io.EOF {
			return e, io.EOF
		}
		if err != nil {
			return e, broken(err)
		}
		n := len(l.base)
		switch {
		case e.host != "" && !strings.EqualFold(e.host, l.b.cfg.host):
			return e, fault.New("mounts/webdav.request", "", fault.Unavailable, errForeign)
		case e.path == nil, e.status >= 300: // a name we could not say, or an entry that cannot be looked at
			continue
		case len(e.path) == n: // the folder itself, be it spelt otherwise; it need not come first
			if !e.dir {
				return e, fault.New("mounts/webdav.request", "", fault.NotDir, nil)
			}
			l.base = e.path
		case len(e.path) < n, !slices.Equal(e.path[:n], l.base):
			return e, fault.New("mounts/webdav.request", "", fault.Unavailable, errForeign)
		case len(e.path) == n+1:
			l.b.learn(e)
			return e, nil
		}
	}
}

// firstFailure returns the error of the first failure in a DAV:multistatus.
func (b *Backend) firstFailure(resp *response) error {
	m := newMultistatus(resp.Body)
	for range 1000 {
		e, err := m.next()
		if err != nil {
			break
		}
		if e.status >= 400 && e.status != http.StatusFailedDependency {
			return b.status(e.status)
		}
	}
	return fault.New("mounts/webdav.request", "", fault.Unavailable, errPartial)
}

// Space implements mounts.Spacer (RFC 4331).
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return mounts.Space{}, err
	}
	if b.space == mounts.Refused {
		return mounts.Space{}, fail("Space", ".", fault.Unsupported, nil)
	}
	e, err := b.properties(ctx, ".", askQuota)
	if err != nil {
		return mounts.Space{}, wrap("Space", ".", err)
	}
	s := mounts.Space{Total: -1, Used: e.used, Free: e.free}
	if total := e.used + e.free; e.used >= 0 && e.free >= 0 && total >= 0 {
		s.Total = total
	}
	return s, nil
}
