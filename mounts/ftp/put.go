package ftp

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	tempPrefix = ".cellgate-"            // of temporary names beside their target
	tempFolder = mounts.Area + "/tmp"    // of all others
	headSize   = 16 << 10                // read from the source before a connection is taken
	chunkSize  = 64 << 10                // written at once, within the timeout
	cleanTime  = 5 * time.Second         // for removing what a failed call left
	checkFrom  = int64(headSize)         // a larger upload is measured before it is published
	probeName  = tempFolder + "/probe-"  // of the files that Open tries the server with
	spaceProbe = tempFolder + "/spaces-" // of the folder that tells whether spaces are kept
)

// source counts what a caller yields and holds it to its word.
type source struct {
	r    io.Reader
	size int64 // declared, -1 unknown
	n    int64 // yielded
	eof  bool
}

// sourceError is the caller's own failure, which goes back as it is.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "source: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

// read fills p as far as the source goes.
func (s *source) read(p []byte) (int, error) {
	n := 0
	for empty := 0; n < len(p) && !s.eof; {
		m, err := s.r.Read(p[n:])
		n += m
		s.n += int64(m)
		if s.size >= 0 && s.n > s.size {
			return n, errLength
		}
		switch {
		case err == io.EOF:
			s.eof = true
			if s.size >= 0 && s.n != s.size {
				return n, errLength
			}
		case err != nil:
			return n, &sourceError{err}
		case m == 0:
			if empty++; empty > 100 {
				return n, &sourceError{io.ErrNoProgress}
			}
		default:
			empty = 0
		}
	}
	return n, nil
}

// Put implements mounts.Backend. A small file takes four round trips: the port, the data connection, the command with the data, and the
// rename with a look at the result. The source is read up to its end, or a little, before a connection is taken.
func (b *Backend) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := b.begin(ctx, "Put", name, true); err != nil {
		return mounts.Info{}, err
	}
	if name == "." {
		return mounts.Info{}, bad("Put", name, fault.IsDir, nil)
	}
	s := &source{r: src, size: opt.Size}
	head := make([]byte, headSize)
	n, err := s.read(head)
	if err == nil {
		err = b.keepsSpaces(ctx, name)
	}
	var info mounts.Info
	if err == nil {
		u := &upload{b: b, name: name, src: s, head: head[:n], opt: opt}
		info, err = u.run(ctx)
	}
	if err != nil {
		return mounts.Info{}, b.failSource(ctx, "Put", name, err)
	}
	return info, nil
}

// failSource is fail for errors that may be the source's.
func (b *Backend) failSource(ctx context.Context, op, name string, err error) error {
	var s *sourceError
	if errors.As(err, &s) {
		if ctx.Err() != nil {
			return fault.New("mounts/ftp."+op, name, fault.KindOf(ctx.Err()), s.err)
		}
		return fault.Wrap("mounts/ftp."+op, name, s.err)
	}
	return b.fail(ctx, op, name, err)
}

// upload is one Put.
type upload struct {
	b    *Backend
	name string
	src  *source
	head []byte // of the source
	opt  mounts.PutOptions
	temp string // what holds the content, "" while nothing does
}

func (u *upload) run(ctx context.Context) (info mounts.Info, err error) {
	for try := 0; ; try++ {
		c, err := u.b.pool.get(ctx, writing, try > 0)
		if err != nil {
			return info, err
		}
		if err = u.store(ctx, c); err == nil {
			info, err = u.publish(ctx, c)
		}
		stale := try == 0 && u.temp == "" && u.b.stale(ctx, c, err, true)
		if err == nil || u.temp == "" {
			c.release()
		} else {
			u.b.clean(ctx, c, u.temp)
		}
		if !stale {
			return info, err
		}
		u.b.pool.flush()
	}
}

// temporary returns a name that nobody has.
func temporary() string {
	return strconv.FormatUint(rand.Uint64(), 36) + strconv.FormatUint(rand.Uint64(), 36)
}

// store uploads under a temporary name: in the Area, which is made when it is missing, or beside the target where there can be none. What the
// target is now is asked in the same round trip as the port, so that what cannot be fails before it is sent.
func (u *upload) store(ctx context.Context, c *conn) error {
	dir, _ := mounts.Split(u.name)
	near := mounts.Join(dir, tempPrefix+temporary())
	var err error
	if !u.b.beside.Load() {
		far := tempFolder + "/put-" + temporary()
		if err = u.send(ctx, c, far, u.b.statCommands(u.name)...); !unwritable(err) {
			return err
		}
		if _, err := c.do("MKD "+u.b.at(mounts.Area), "MKD "+u.b.at(tempFolder)); err != nil {
			return err
		}
		if err = u.send(ctx, c, far); !unwritable(err) {
			return err
		}
	}
	if err = u.send(ctx, c, near, u.b.statCommands(u.name)...); err == nil {
		u.b.beside.Store(true)
		return nil
	}
	if !unwritable(err) {
		return err
	}
	_, kind, lost := u.b.kindAt(c, u.name)
	switch {
	case lost != nil:
		return lost
	case kind == fault.NotExist || kind == fault.NotDir:
		return fault.New("", u.name, kind, err)
	}
	return fault.New("", u.name, fault.Denied, err)
}

// possible says why the target cannot be put, as far as these answers to statCommands tell. They may be old when the time comes to publish.
func (u *upload) possible(rs []reply) error {
	info, err := u.b.statResult(u.name, rs)
	switch {
	case err != nil:
		return nil
	case info.IsDir():
		return fault.New("", u.name, fault.IsDir, nil)
	case info.Type != mounts.File:
		return fault.New("", u.name, fault.Denied, errLink)
	case u.opt.Exclusive:
		return fault.New("", u.name, fault.Exist, nil)
	}
	return nil
}

// unwritable reports whether the server refused to make a file, before anything of it was sent that cannot be sent again.
func unwritable(err error) bool {
	var r *replyError
	if !errors.As(err, &r) || r.verb != "STOR" {
		return false
	}
	switch r.kind() {
	case fault.Denied, fault.NotExist, fault.NotDir, fault.Invalid:
		return true
	}
	return false
}

// send stores the source as temp. Stat may be what asks for the target.
func (u *upload) send(ctx context.Context, c *conn, temp string, stat ...string) error {
	d, rs, err := c.reserve(stat...)
	if err == nil && len(stat) > 0 {
		err = u.possible(rs)
	}
	if err != nil {
		return err
	}
	if err := d.connect(ctx); err != nil {
		return err
	}
	command := "STOR " + u.b.at(temp)
	if err := c.send(command); err != nil {
		return err
	}
	u.temp = temp
	early := c.tls == nil && d.conn != nil // the data need not wait for the answer, a TLS handshake does
	if early {
		c.arm(d.conn, u.b.timeout)
		if _, err := d.conn.Write(u.head); err != nil {
			early = false // the answer says why
		} else if u.src.eof {
			c.attach(nil)
		}
	}
	if early && u.src.eof {
		r, err := c.read(u.b.timeout)
		if err != nil {
			return err
		}
		if r.code < 200 {
			r, err = c.read(u.b.timeout)
		}
		if err == nil {
			err = u.stored(command, r)
		}
		return err
	}
	r, err := d.begun(ctx, command)
	if err != nil {
		return u.stored(command, r, err)
	}
	if d.conn == nil {
		return &lostError{errGarbled}
	}
	if !early {
		if err := u.write(d, u.head); err != nil {
			return err
		}
	}
	if err := u.pour(d); err != nil {
		return err
	}
	r, err = d.finish(command)
	return u.stored(command, r, err)
}

// stored notes that there is no file when the server says it made none.
func (u *upload) stored(command string, r reply, err ...error) error {
	cause := refused(command, r)
	if len(err) > 0 {
		cause = err[0]
	}
	var refusal *replyError
	if errors.As(cause, &refusal) && refusal.verb == "STOR" && unwritable(cause) {
		u.temp = ""
	}
	return cause
}

// pour sends the rest of the source.
func (u *upload) pour(d *channel) error {
	if u.src.eof {
		return nil
	}
	buf := make([]byte, chunkSize)
	for !u.src.eof {
		n, err := u.src.read(buf)
		if err != nil {
			return err
		}
		if err := u.write(d, buf[:n]); err != nil {
			return err
		}
	}
	return nil
}

func (u *upload) write(d *channel, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	d.c.arm(d.conn, u.b.timeout)
	_, err := d.conn.Write(p)
	u.b.pool.move()
	if err != nil {
		return d.why(&lostError{err})
	}
	return nil
}

// publish gives the stored file its name. A large one is measured first: a data connection that somebody in between ended looks to the server
// like the end of the file. A small one travelled in one piece with its end.
func (u *upload) publish(ctx context.Context, c *conn) (mounts.Info, error) {
	b := u.b
	free, err := b.lock(ctx, u.name)
	if err != nil {
		return mounts.Info{}, err
	}
	defer free()
	from, to, stat := b.at(u.temp), b.at(u.name), b.statCommands(u.name)
	var first []string
	if !u.opt.ModTime.IsZero() && b.Features().ModTime == mounts.Native {
		first = append(first, "MFMT "+stamp(u.opt.ModTime)+" "+from) // a refusal shows in the Info
	}
	if measure := u.src.n > checkFrom; measure || u.opt.Exclusive {
		if measure {
			first = append(first, "SIZE "+from)
		}
		measured := len(first) - 1
		if u.opt.Exclusive {
			first = append(first, stat...)
		}
		rs, err := c.do(first...)
		if err != nil {
			return mounts.Info{}, err
		}
		if measure {
			if n, err := number(rs[measured]); err == nil && n != u.src.n {
				return mounts.Info{}, &lostError{fmt.Errorf("the server stored %d of %d bytes", n, u.src.n)}
			}
		}
		if u.opt.Exclusive {
			_, err := b.statResult(u.name, rs[len(rs)-len(stat):])
			if err == nil {
				return mounts.Info{}, fault.New("", u.name, fault.Exist, nil)
			}
			if k := kindOf(err); k != fault.NotExist && k != fault.NotDir {
				return mounts.Info{}, err
			}
		}
		first = nil
	}
	commands := append(append(first, "RNFR "+from, "RNTO "+to), stat...)
	rs, err := c.do(commands...)
	if err != nil {
		return mounts.Info{}, err
	}
	rs = rs[len(first):]
	if err := renamed(from, to, rs); err != nil {
		if err := u.settle(ctx, c, err); err != nil {
			return mounts.Info{}, err
		}
		if rs, err = c.do(stat...); err != nil {
			return mounts.Info{}, err
		}
	} else {
		rs = rs[2:]
	}
	u.temp = ""
	info, err := b.statResult(u.name, rs)
	switch {
	case err != nil && kindOf(err) == fault.NotExist:
		return info, errName // or somebody removed it at once, which is as good as never put
	case err == nil && info.Type == mounts.File && info.Size >= 0 && info.Size != u.src.n: // only a small one, which was not measured before
		return info, &lostError{fmt.Errorf("the server stored %d of %d bytes", info.Size, u.src.n)}
	}
	return info, err
}

// renamed is the error of RNFR and RNTO, whose replies these are.
func renamed(from, to string, rs []reply) error {
	if rs[0].code != 350 {
		return &replyError{"RNFR", from, rs[0]}
	}
	return refused("RNTO "+to, rs[1])
}

// settle finds out why the stored file could not be given its name and does what can be done.
func (u *upload) settle(ctx context.Context, c *conn, cause error) error {
	b := u.b
	info, kind, err := b.kindAt(c, u.name)
	said := kindOf(cause)
	switch {
	case err != nil:
		return err
	case kind == fault.Exist && info.IsDir():
		return fault.New("", u.name, fault.IsDir, cause)
	case kind == fault.Exist && info.Type != mounts.File:
		return fault.New("", u.name, fault.Denied, errLink)
	case kind == fault.NotExist || kind == fault.NotDir:
		return fault.New("", u.name, kind, cause)
	case said == fault.Invalid || said == fault.NoSpace:
		return cause
	case kind == fault.Exist:
		err = b.swap(c, u.temp, u.name)
		if err == nil {
			return nil
		}
	default:
		err = cause
	}
	if dir, _ := mounts.Split(u.name); !strings.HasPrefix(u.temp, tempFolder+"/") || kindOf(err) == fault.Timeout {
		return err
	} else if again := u.move(ctx, c, mounts.Join(dir, tempPrefix+temporary())); again != nil {
		return err // the first says more
	}
	if kind == fault.Exist {
		return b.replaceBy(c, u.temp, u.name)
	}
	rs, err := c.do("RNFR "+b.at(u.temp), "RNTO "+b.at(u.name))
	if err != nil {
		return err
	}
	return renamed(b.at(u.temp), b.at(u.name), rs)
}

// move brings the content to near the target, through here: the Area lies on another file system.
func (u *upload) move(ctx context.Context, c *conn, near string) error {
	r, err := u.b.Open(ctx, u.temp, 0, -1)
	if err != nil {
		return err
	}
	defer r.Close()
	old := u.temp
	again := &upload{b: u.b, name: near, src: &source{r: r, size: u.src.n}}
	err = again.send(ctx, c, near)
	if err != nil {
		if again.temp != "" {
			c.settle(settleTime)
			c.do("DELE " + u.b.at(near))
		}
		return err
	}
	u.temp = near
	c.do("DELE " + u.b.at(old))
	return nil
}

// lock waits for the right to give name to something. Exclusive Puts and moves of folders look before they rename, and must not look at the
// same time.
func (b *Backend) lock(ctx context.Context, name string) (free func(), err error) {
	h := fnv.New32a()
	io.WriteString(h, name)
	slot := b.publishing[h.Sum32()%uint32(len(b.publishing))]
	select {
	case slot <- struct{}{}:
		return func() { <-slot }, nil
	case <-ctx.Done():
		return nil, &lostError{ctx.Err()}
	}
}

// clean removes what a failed call left and gives c back. When the call's ctx has ended it does so behind its back.
func (b *Backend) clean(ctx context.Context, c *conn, temp string) {
	ended := ctx.Err() != nil
	c.attach(nil)
	c.unwatch()
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
	do := func() {
		defer cancel()
		c.watch(short)
		done := c.settle(cleanTime)
		if done {
			_, err := c.do("DELE " + b.at(temp))
			done = err == nil
		}
		c.release()
		if !done { // on another connection
			b.with(short, meta, true, func(c *conn) error {
				_, err := c.do("DELE " + b.at(temp))
				return err
			})
		}
	}
	if !ended && !c.broken {
		do()
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed.Load() {
		cancel()
		c.release()
		return
	}
	b.cleaning.Go(do)
}
