package ftp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

const (
	// listWhole is how much of a listing is kept while the connection is given back; a longer one keeps it until its end.
	listWhole = 1 << 20
	maxEntry  = 16 << 10 // bytes of a line
)

// List implements mounts.Backend. A listing takes three round trips and one command, whatever its length.
func (b *Backend) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		if err := b.begin(ctx, "List", dir, false); err != nil {
			yield(mounts.Info{}, err)
			return
		}
		if err := b.list(ctx, dir, func(i mounts.Info) bool { return yield(i, nil) }); err != nil {
			yield(mounts.Info{}, b.fail(ctx, "List", dir, err))
		}
	}
}

func (b *Backend) list(ctx context.Context, dir string, yield func(mounts.Info) bool) error {
	for try := 0; ; try++ {
		c, err := b.pool.get(ctx, reading, try > 0)
		if err != nil {
			return err
		}
		l := &listing{b: b, c: c, dir: dir, lister: b.lister(), mlsd: b.server.Load().mlst}
		d, err := l.start(ctx)
		if err == nil {
			l.d = d
			return l.run(ctx, yield)
		}
		stale := try == 0 && b.stale(ctx, c, err, true)
		c.release()
		if !stale {
			return err
		}
		b.pool.flush()
	}
}

// listing is one List that goes on.
type listing struct {
	b   *Backend
	c   *conn // nil once it was given back
	d   *channel
	dir string
	lister
	mlsd    bool
	command string
}

// start enters the folder and lists it without an argument: servers take those for patterns and options.
func (l *listing) start(ctx context.Context) (*channel, error) {
	b, c := l.b, l.c
	enter := "CWD " + b.at(l.dir)
	d, rs, err := c.reserve(enter)
	if err != nil {
		return nil, err
	}
	if err := refused(enter, rs[0]); err != nil {
		if kindOf(err) != fault.NotDir {
			info, serr := b.look(c, l.dir)
			var lost *lostError
			switch {
			case errors.As(serr, &lost), l.dir != "." && serr != nil:
				return nil, serr
			case !info.IsDir():
				return nil, fault.New("", l.dir, fault.NotDir, err)
			}
		}
		return nil, err
	}
	return d, l.ask(ctx, d)
}

func (l *listing) ask(ctx context.Context, d *channel) error {
	switch {
	case l.mlsd:
		l.command = "MLSD"
	case l.b.dashA.Load() == no:
		l.command = "LIST"
	default:
		l.command = "LIST -a"
	}
	if err := d.connect(ctx); err != nil {
		return err
	}
	_, err := d.begin(ctx, l.command)
	var r *replyError
	if errors.As(err, &r) && r.reply.code == 450 { // some say so of an empty folder
		err = nil
	}
	return err
}

// run hands out the entries. The whole listing is fetched first when it is of no unusual length, so that a slow or nested caller holds no
// connection.
func (l *listing) run(ctx context.Context, yield func(mounts.Info) bool) error {
	defer l.release()
	head, ended, err := l.fetch(ctx)
	if err != nil {
		return err
	}
	if !ended {
		return l.stream(ctx, head, yield)
	}
	if head, err = l.plain(ctx, head); err != nil {
		return err
	}
	l.release()
	_, more, err := l.each(head, yield)
	if err == nil && more && ctx.Err() != nil {
		err = &lostError{ctx.Err()}
	}
	return err
}

func (l *listing) release() {
	if l.c != nil {
		l.c.release()
		l.c = nil
	}
}

// fetch reads up to listWhole bytes.
func (l *listing) fetch(ctx context.Context) (head []byte, ended bool, err error) {
	if l.d.conn == nil {
		return nil, true, nil
	}
	head = make([]byte, 0, 4<<10)
	for len(head) < listWhole {
		if len(head) == cap(head) {
			grown := make([]byte, len(head), min(2*cap(head), listWhole))
			copy(grown, head)
			head = grown
		}
		n, err := l.read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if errors.Is(err, io.EOF) {
			return head, true, l.confirm()
		}
		if err != nil {
			return nil, false, l.d.why(&lostError{err})
		}
	}
	return head, false, nil
}

func (l *listing) read(p []byte) (int, error) {
	l.c.arm(l.d.conn, l.b.timeout)
	n, err := l.d.conn.Read(p)
	l.b.pool.move()
	return n, err
}

// confirm reads the server's last word, which may be that there is more than it shows.
func (l *listing) confirm() error {
	r, err := l.d.finish(l.command)
	if err != nil {
		return err
	}
	if strings.Contains(strings.ToLower(strings.Join(r.lines, " ")), "truncated") {
		return fault.New("", l.dir, fault.TooLarge, errTruncated)
	}
	return nil
}

// plain finds out, once, whether the server understands LIST -a or takes "-a" for a name: then there is nothing to see, not even ".".
func (l *listing) plain(ctx context.Context, head []byte) ([]byte, error) {
	if l.mlsd || l.b.dashA.Load() != unknown {
		return head, nil
	}
	if any, _, err := l.each(head, func(mounts.Info) bool { return true }); err != nil || any {
		if err == nil {
			l.b.dashA.Store(yes)
		}
		return head, err
	}
	d, _, err := l.c.reserve("CWD " + l.b.at(l.dir))
	if err != nil {
		return nil, err
	}
	l.d, l.command = d, "LIST"
	if err := d.connect(ctx); err != nil {
		return nil, err
	}
	if _, err := d.begin(ctx, l.command); err != nil {
		return nil, err
	}
	head, ended, err := l.fetch(ctx)
	if err == nil && len(head) > 0 {
		l.b.dashA.Store(no)
	}
	if err == nil && !ended {
		err = fault.New("", l.dir, fault.TooLarge, errFlood)
	}
	return head, err
}

// stream goes on from head as the server sends.
func (l *listing) stream(ctx context.Context, head []byte, yield func(mounts.Info) bool) error {
	buf := make([]byte, 0, 64<<10)
	for {
		rest := bytes.LastIndexByte(head, '\n') + 1
		_, more, err := l.each(head[:rest], yield)
		if err != nil || !more {
			return err
		}
		if err := ctx.Err(); err != nil {
			return &lostError{err}
		}
		left := head[rest:]
		if len(left) > maxEntry {
			return &lostError{errFlood}
		}
		buf = append(buf[:0], left...)
		n, err := l.read(buf[len(buf):cap(buf)])
		head = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			if _, more, err := l.each(head, yield); err != nil || !more {
				return err
			}
			return l.confirm()
		}
		if err != nil {
			return l.d.why(&lostError{err})
		}
	}
}

// each yields the entries in complete lines. Any says whether there were lines that make sense, more whether yield wants more.
func (l *listing) each(text []byte, yield func(mounts.Info) bool) (any, more bool, err error) {
	for len(text) > 0 {
		line := text
		if i := bytes.IndexByte(text, '\n'); i >= 0 {
			line, text = text[:i], text[i+1:]
		} else {
			text = nil
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > maxEntry {
			return any, false, &lostError{errFlood}
		}
		var info mounts.Info
		var skip bool
		if l.mlsd {
			info, skip = parseFacts(string(line))
		} else {
			info, skip = l.lister.parse(string(line))
		}
		if skip {
			any = any || info.Name == "."
			continue
		}
		any = true
		if mounts.ValidName(info.Name) != nil || strings.HasPrefix(info.Name, tempPrefix) {
			continue
		}
		if !yield(info) {
			return any, false, nil
		}
	}
	return any, true, nil
}
