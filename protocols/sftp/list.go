package sftp

import (
	"context"
	"encoding/binary"
	"iter"
	"strconv"
	"time"

	"cellgate/gateway"
)

// listing is an open folder: its entries are asked for as the client asks.
type listing struct {
	info gateway.Info
	next func() (gateway.Info, error, bool)
	stop func()
	held *gateway.Info // read already, not sent yet
	dots bool          // "." and ".." have been sent
	err  error         // how it ended
}

// maxNames is about how long an answer of a listing becomes: one packet of SSH.
const maxNames = 32<<10 - 64

// opendir opens a folder (§6.7). The first entry is asked for at once, since that is what fails.
func (s *session) opendir(id uint32, p gateway.Path) {
	if err := s.reserve(); err != nil {
		s.refuse(id, err)
		return
	}
	s.later(id, reads(p), func(ctx context.Context) (reply, error) {
		l, err := s.list(p)
		if err != nil {
			s.opened.Add(-1)
			return nil, err
		}
		return s.add(id, &handle{path: p, dir: l}), nil
	})
}

func (s *session) list(p gateway.Path) (*listing, error) {
	l := &listing{info: gateway.Info{Name: p.Base(), Path: p, Dir: true}}
	next, stop := iter.Pull2(s.s.List(s.ctx, p))
	l.next, l.stop = next, stop
	i, err, ok := next()
	switch {
	case err != nil:
		stop()
		return nil, err
	case ok:
		l.held = &i
	default:
		l.err = errEOF
	}
	return l, nil
}

// readdir answers with the next entries (§6.7).
func (s *session) readdir(id, name uint32) {
	s.on(id, name, func(h *handle) (reply, error) {
		if h.dir == nil {
			return nil, badHandle()
		}
		return h.dir.page(id, s.login)
	})
}

func (l *listing) page(id uint32, login string) (reply, error) {
	p := answer(typeName, id, 4<<10).u32(0)
	n := uint32(0)
	year := now().AddDate(0, -6, 0)
	if !l.dots {
		l.dots = true
		for _, name := range [...]string{".", ".."} {
			i := l.info
			i.Name = name
			p = p.name(i, login, year)
			n++
		}
	}
	for len(p) < maxNames-maxEntry && l.err == nil {
		if l.held != nil {
			p = p.name(*l.held, login, year)
			l.held = nil
			n++
			continue
		}
		i, err, ok := l.next()
		switch {
		case err != nil:
			l.err = err
		case !ok:
			l.err = errEOF
		default:
			p = p.name(i, login, year)
			n++
		}
	}
	if n == 0 {
		return nil, l.err
	}
	binary.BigEndian.PutUint32(p[9:], n)
	return p, nil
}

// maxEntry is about how long an entry becomes: name, line and attributes. One that shows a long target is longer.
const maxEntry = 700

// name appends an entry: its name, a line as ls -l has it, and what it is.
func (p reply) name(i gateway.Info, login string, year time.Time) reply {
	p = p.str(i.Name)
	at := len(p)
	p = p.u32(0)
	p = line(p, i, login, year)
	binary.BigEndian.PutUint32(p[at:], uint32(len(p)-at-4))
	return p.attrs(i)
}

// group is what the group of every node is called.
const group = "users"

// line appends a node as ls -l shows it. Programs should not read it (§7), people do.
func line(p reply, i gateway.Info, login string, year time.Time) reply {
	mode := modeOf(i)
	kind := byte('-')
	switch mode &^ 0o7777 {
	case modeDir:
		kind = 'd'
	case modeLink:
		kind = 'l'
	}
	p = append(p, kind)
	for bit := 8; bit >= 0; bit-- {
		c := byte('-')
		if mode>>bit&1 != 0 {
			c = "xwr"[bit%3]
		}
		p = append(p, c)
	}
	p = pad(p, strconv.AppendUint(nil, uint64(max(i.Links, 1)), 10), 5)
	p = append(append(append(append(p, ' '), login...), ' '), group...)
	p = pad(p, strconv.AppendUint(nil, sizeOf(i), 10), 9)
	p = append(p, ' ')
	switch {
	case i.ModTime.IsZero():
		p = append(p, "Jan  1  1970"...)
	case i.ModTime.Before(year) || i.ModTime.After(now()):
		p = i.ModTime.AppendFormat(p, "Jan _2  2006")
	default:
		p = i.ModTime.AppendFormat(p, "Jan _2 15:04")
	}
	p = append(append(p, ' '), i.Name...)
	if i.Target != "" {
		p = append(append(p, " -> "...), i.Target...)
	}
	return p
}

// pad appends v to a column of at least width.
func pad(p reply, v []byte, width int) reply {
	for n := len(v); n < width; n++ {
		p = append(p, ' ')
	}
	return append(append(p, ' '), v...)
}

func now() time.Time { return time.Now().UTC() }

func unix(seconds uint32) time.Time { return time.Unix(int64(seconds), 0).UTC() }
