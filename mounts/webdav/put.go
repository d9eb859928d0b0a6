package webdav

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	tempPrefix = mounts.Area + "-" // of temporary names beside their target
	tempFolder = mounts.Area + "/tmp"
	farewell   = 5 * time.Second // for tidying up once a call has failed
)

// Put implements mounts.Backend.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return b.put(ctx, "Put", name, src, opt, "")
}

// PutIf implements mounts.Conditional, by If-Match where that holds to the end.
func (b *Backend) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "PutIf", name, true); err != nil {
		return mounts.Info{}, err
	}
	switch {
	case !b.kind.conditions:
		return mounts.Info{}, fail("PutIf", name, fault.Unsupported, errNoCondition)
	case strong(`"`+tag+`"`) == "": // no file has such a tag
		return mounts.Info{}, fail("PutIf", name, fault.Precondition, nil)
	}
	return b.put(ctx, "PutIf", name, src, opt, tag)
}

func (b *Backend) put(ctx context.Context, op, name string, src io.Reader, opt mounts.PutOptions, tag string) (mounts.Info, error) {
	if err := b.begin(ctx, op, name, true); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, fail(op, name, fault.IsDir, nil)
	}
	content, err := take(ctx, src, opt.Size)
	if err == errLength {
		return mounts.Info{}, fail(op, name, fault.Invalid, err)
	}
	if err != nil {
		return mounts.Info{}, wrap(op, name, err)
	}
	u := &upload{b: b, op: op, name: name, body: content, tag: tag, exclusive: opt.Exclusive, modified: opt.ModTime}
	if b.kind.direct && (!opt.Exclusive || b.kind.conditions) {
		err = u.direct(ctx)
	} else {
		err = u.beside(ctx)
	}
	if err != nil {
		return mounts.Info{}, err
	}
	return u.info(ctx), nil
}

// upload is one Put.
type upload struct {
	b         *Backend
	op, name  string
	body      *body
	tag       string // If-Match
	exclusive bool
	modified  time.Time

	sent     int64       // bytes of the file
	straight bool        // it went under its name at once
	known    bool        // what holds all there is to know
	what     mounts.Info // as the answer to a PUT tells
}

// direct puts the body under its name at once.
func (u *upload) direct(ctx context.Context) error {
	header := http.Header{}
	switch {
	case u.tag != "":
		header.Set("If-Match", `"`+u.tag+`"`)
	case u.exclusive:
		header.Set("If-None-Match", "*")
	}
	unlock := func() {}
	err := u.send(ctx, u.name, header, len(header) == 0, func() {
		if !u.b.kind.replaces {
			if free, err := u.b.names.lock(ctx, u.name); err == nil { // else ctx has ended, which the request will find out
				unlock = free
			}
		}
	})
	unlock()
	switch code := statusOf(err); {
	case err == nil:
		u.straight = true
		return nil
	case code == http.StatusPreconditionFailed && u.exclusive:
		return fail(u.op, u.name, fault.Exist, err)
	case vague(err):
		return u.b.explainPut(ctx, u.op, u.name, err)
	}
	return wrap(u.op, u.name, err)
}

// explainPut is explain for what would be a file: a folder of that name stands in its way.
func (b *Backend) explainPut(ctx context.Context, op, name string, err error) error {
	if info, serr := b.stat(ctx, name); serr == nil && info.IsDir() {
		return fail(op, name, fault.IsDir, err)
	}
	return b.explain(ctx, op, name, err)
}

// send uploads the body to name. The error of the source comes before that of the server, for it is the cause.
func (u *upload) send(ctx context.Context, name string, header http.Header, again bool, atEnd func()) error {
	b := u.b
	at := u.modified
	if at.IsZero() && b.times.Load() >= 0 {
		at = time.Now() // a server that keeps it spares us the question what time it is there
	}
	if seconds := at.Unix(); !at.IsZero() && seconds > 0 {
		header.Set("X-Oc-Mtime", strconv.FormatInt(seconds, 10))
		at = time.Unix(seconds, 0).UTC()
	} else {
		at = time.Time{}
	}
	q := request{method: http.MethodPut, path: b.path(name), header: header, body: u.body, again: again}
	var resp *response
	var err error
	u.body.open()
	if u.body.src == nil {
		u.sent = u.body.size
		atEnd()
		resp, err = b.do(ctx, q)
	} else {
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			defer u.body.abort()
			resp, err = b.do(ctx, q)
		}()
		var lost error
		u.sent, lost = u.body.pump(ctx, atEnd)
		<-answered
		if lost != nil && lost != io.ErrClosedPipe {
			if err == nil {
				resp.finish()
			}
			if lost == errLength {
				return fault.New("mounts/webdav.request", "", fault.Invalid, lost)
			}
			return lost
		}
		if lost != nil && err == nil && resp.StatusCode < 300 { // it said yes to a part
			resp.finish()
			return fault.New("mounts/webdav.request", "", fault.Unavailable, errPartial)
		}
	}
	if err != nil {
		return err
	}
	defer resp.finish()
	if resp.StatusCode >= 300 || resp.StatusCode == http.StatusAccepted {
		return b.status(resp.StatusCode)
	}
	u.told(resp.Header, at)
	return nil
}

// told takes from the answer to a PUT what it says of the new file.
func (u *upload) told(h http.Header, at time.Time) {
	if h := h.Get("X-Oc-Mtime"); strings.EqualFold(h, "accepted") {
		u.b.times.Store(1)
	} else if !at.IsZero() {
		u.b.times.Store(-1)
		at = time.Time{}
	}
	_, base := mounts.Split(u.name)
	u.what = mounts.Info{Name: base, Type: mounts.File, Size: u.sent, ModTime: at, Tag: strong(h.Get("Etag"))}
	u.known = !at.IsZero() && u.what.Tag != "" && u.b.tags.Load() >= 0
}

// info returns what the new file is. What is published is published: if the server cannot be asked any more, that is no failure. Where the body
// went under its name at once, and the server said so, only its time is not known, which is not worth a round trip.
func (u *upload) info(ctx context.Context) mounts.Info {
	if u.known || u.straight {
		return u.what
	}
	if info, err := u.b.stat(ctx, u.name); err == nil && !info.IsDir() && info.Size == u.sent {
		return info
	}
	_, base := mounts.Split(u.name)
	return mounts.Info{Name: base, Type: mounts.File, Size: u.sent}
}

// target is what was found at the name that something is to be moved to.
type target struct {
	info  mounts.Info
	err   error // of looking; NotExist when there is nothing
	above error // of the folder it is in, where the server would make that
}

// look finds out about a target while something else is under way.
func (b *Backend) look(ctx context.Context, name string) <-chan target {
	found := make(chan target, 1)
	go func() {
		var t target
		if t.info, t.err = b.stat(ctx, name); t.err != nil && b.kind.parents {
			var info mounts.Info
			if info, t.above = b.stat(ctx, parent(name)); t.above == nil && !info.IsDir() {
				t.above = fault.New("mounts/webdav.request", "", fault.NotDir, nil)
			}
		}
		found <- t
	}()
	return found
}

// beside puts the body under a temporary name and moves it to its own.
func (u *upload) beside(ctx context.Context) error {
	var found <-chan target
	atEnd := func() {
		if found == nil {
			found = u.b.look(ctx, u.name)
		}
	}
	temp, err := u.b.hold(ctx, u.name, u.body.rewind, func(temp string) error {
		return u.send(ctx, temp, http.Header{}, true, atEnd)
	})
	var t target
	if found != nil {
		t = <-found
	}
	if err != nil {
		if vague(err) { // no folder to put it in, most likely
			return u.b.explainPut(ctx, u.op, u.name, err)
		}
		return wrap(u.op, u.name, err)
	}
	u.known = false // a MOVE may change tag and time
	return u.b.publish(ctx, u.op, temp, u.name, t, u.exclusive)
}

// publish moves temp to name, where t was found. What fails leaves the former file, and no temporary one.
func (b *Backend) publish(ctx context.Context, op, temp, name string, t target, exclusive bool) (err error) {
	lost := false
	defer func() {
		if err != nil && !lost {
			b.discard(ctx, temp)
		}
	}()
	if exclusive || !b.kind.replaces { // rivals and readers of this process wait here: some servers look before they move or open
		unlock, err := b.names.lock(ctx, name)
		if err != nil {
			return wrap(op, name, err)
		}
		defer unlock()
	}
	for try := 0; ; try++ {
		switch {
		case t.above != nil:
			return wrap(op, name, t.above)
		case t.err == nil && t.info.IsDir():
			return fail(op, name, fault.IsDir, nil)
		case t.err == nil && exclusive:
			return fail(op, name, fault.Exist, nil)
		case t.err != nil && fault.KindOf(t.err) != fault.NotExist && fault.KindOf(t.err) != fault.NotDir:
			return wrap(op, name, t.err)
		}
		err := b.move(ctx, b.path(temp), b.path(name), t.err == nil)
		if errors.Is(err, errLost) { // it may be done or not, which the temporary name tells
			if _, serr := b.stat(ctx, temp); serr == nil {
				err = b.move(ctx, b.path(temp), b.path(name), t.err == nil)
			} else if fault.KindOf(serr) == fault.NotExist {
				return nil
			}
		}
		switch code := statusOf(err); {
		case err == nil:
			return nil
		case code == http.StatusPreconditionFailed && exclusive:
			return fail(op, name, fault.Exist, nil)
		case code == http.StatusPreconditionFailed && try == 0: // it came meanwhile
			t = <-b.look(ctx, name)
			continue
		case t.err == nil:
			if lost, err = b.rescue(ctx, temp, name, err); err == nil {
				return nil
			}
		}
		return b.explain(ctx, op, name, err)
	}
}

// rescue is called when a MOVE onto a file failed with err. Servers that take the former file away first may have done so: then the new
// content is all that is left, and it is brought to its name, or stays where it is.
func (b *Backend) rescue(ctx context.Context, temp, name string, err error) (lost bool, _ error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	_, gone := b.stat(ctx, name)
	if gone == nil || fault.KindOf(gone) != fault.NotExist {
		// Where nobody can be asked, the new content stays: that may be rubbish, but throwing it away might throw away all there is.
		return gone != nil, err
	}
	if _, terr := b.stat(ctx, temp); terr != nil {
		return true, err
	}
	if b.move(ctx, b.path(temp), b.path(name), false) == nil {
		return false, nil
	}
	return true, fault.New("mounts/webdav.request", "", fault.KindOf(err), errLeft)
}

// The ways to make temporary names.
const (
	inArea = iota
	hidden // beside the target, by names that the core hides and List leaves out
)

// hold has fill put something under a temporary name for what is to become name, and returns that. Where the name may be what the server
// does not like, the next way is tried, as long as again says that fill can be repeated. What failed is discarded.
func (b *Backend) hold(ctx context.Context, name string, again func() bool, fill func(temp string) error) (string, error) {
	for lost := false; ; {
		temp, way, err := b.temp(ctx, name)
		if err != nil {
			return "", err
		}
		if err = fill(temp); err == nil {
			return temp, nil
		}
		if statusOf(err) == 0 {
			b.discardCut(ctx, temp)
		} else {
			b.discard(ctx, temp)
		}
		if !vague(err) || !again() || way == hidden {
			return "", err
		}
		b.areaMu.Lock()
		switch {
		case b.way != way: // others were here before
		case way == inArea && !lost:
			b.area, lost = false, true // somebody tidied up
		default:
			b.way++
		}
		b.areaMu.Unlock()
	}
}

// temp returns a fresh temporary name for what is to become name, and how it was made.
func (b *Backend) temp(ctx context.Context, name string) (temp string, way int, err error) {
	b.areaMu.Lock()
	area, way := b.area, b.way
	b.areaMu.Unlock()
	if way == inArea && !area {
		err := b.mkcol(ctx, tempFolder)
		if err != nil && statusOf(err) != http.StatusMethodNotAllowed && statusOf(err) != 0 {
			if err = b.mkcol(ctx, mounts.Area); err == nil || statusOf(err) == http.StatusMethodNotAllowed {
				err = b.mkcol(ctx, tempFolder)
			}
		}
		b.areaMu.Lock()
		defer b.areaMu.Unlock()
		switch code := statusOf(err); {
		case err == nil, code == http.StatusMethodNotAllowed:
			b.area = true
		case code == 0 || code == http.StatusUnauthorized: // nobody said that it is impossible
			return "", 0, err
		default:
			b.way, way = hidden, hidden
		}
	}
	if way == inArea {
		return tempFolder + "/put-" + rand.Text(), inArea, nil
	}
	return mounts.Join(parent(name), tempPrefix+rand.Text()), hidden, nil
}

// discard removes a temporary file, also when ctx has ended.
func (b *Backend) discard(ctx context.Context, temp string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if err := b.remove(ctx, b.path(temp), b.kind.shallow); err != nil && fault.KindOf(err) != fault.NotExist {
		b.log.WarnContext(ctx, "temporary file stays", "mount", b.name, "path", temp, "err", err)
	}
}

// discardCut is discard after an upload that broke off. Some servers (rclone) find that out late, and then make a file of what came, though
// it has been deleted, which they never find again. So they get some time, and are asked again.
func (b *Backend) discardCut(ctx context.Context, temp string) {
	b.tidyMu.Lock()
	defer b.tidyMu.Unlock()
	if b.kind.known || b.life.Err() != nil {
		b.discard(ctx, temp)
		return
	}
	b.tidy.Go(func() {
		for wait := 100 * time.Millisecond; wait < farewell/2; wait *= 3 {
			select {
			case <-time.After(wait):
				b.discard(ctx, temp)
			case <-b.life.Done():
				return
			}
		}
	})
}

// CopyFile implements mounts.Copier: COPY to a temporary name, for servers copy byte by byte, and MOVE.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (mounts.Info, error) {
	const op = "CopyFile"
	if err := b.begin(ctx, op, from, true); err != nil {
		return mounts.Info{}, err
	}
	if err := mounts.ValidPath(to); err != nil {
		return mounts.Info{}, wrap(op, to, err)
	}
	if from == "." || to == "." {
		return mounts.Info{}, fail(op, from, fault.IsDir, nil)
	}
	if from == to {
		info, err := b.stat(ctx, from)
		if err == nil && info.IsDir() {
			err = fault.New("mounts/webdav.request", "", fault.IsDir, nil)
		}
		return info, wrap(op, from, err)
	}
	if b.kind.conditions {
		return b.copyWhole(ctx, from, to)
	}
	source, dest := b.look(ctx, from), b.look(ctx, to)
	temp, err := b.hold(ctx, to, func() bool { return true }, func(temp string) error {
		return b.copyFile(ctx, b.path(from), b.path(temp), false)
	})
	s, t := <-source, <-dest
	switch {
	case s.err == nil && s.info.IsDir():
		s.err = fault.New("mounts/webdav.request", "", fault.IsDir, nil)
		fallthrough
	case s.err != nil:
		if err == nil {
			b.discard(ctx, temp)
		}
		return mounts.Info{}, wrap(op, from, s.err)
	case err != nil:
		return mounts.Info{}, b.explain(ctx, op, to, err)
	}
	if err := b.publish(ctx, op, temp, to, t, false); err != nil {
		return mounts.Info{}, err
	}
	u := upload{b: b, name: to, sent: s.info.Size}
	return u.info(ctx), nil
}

// copyWhole is CopyFile where COPY itself is atomic.
func (b *Backend) copyWhole(ctx context.Context, from, to string) (mounts.Info, error) {
	const op = "CopyFile"
	source, dest := b.look(ctx, from), b.look(ctx, to)
	s, t := <-source, <-dest
	switch {
	case s.err != nil:
		return mounts.Info{}, b.explain(ctx, op, from, s.err)
	case s.info.IsDir():
		return mounts.Info{}, fail(op, from, fault.IsDir, nil)
	case t.err == nil && t.info.IsDir():
		return mounts.Info{}, fail(op, to, fault.IsDir, nil)
	}
	if err := b.copyFile(ctx, b.path(from), b.path(to), t.err == nil); err != nil {
		return mounts.Info{}, b.explain(ctx, op, to, err)
	}
	u := upload{b: b, name: to, sent: s.info.Size}
	return u.info(ctx), nil
}
