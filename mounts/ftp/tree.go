package ftp

import (
	"context"
	"errors"
	"strings"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	if name == "." {
		return bad("Mkdir", name, fault.Exist, nil)
	}
	err := b.keepsSpaces(ctx, name)
	if err == nil {
		err = b.with(ctx, meta, false, func(c *conn) error {
			_, err := c.run("MKD " + b.at(name))
			if err == nil || !isRefusal(err) {
				return err
			}
			_, kind, lost := b.kindAt(c, name)
			switch {
			case lost != nil:
				return lost
			case kind == fault.Exist || kind == fault.NotExist || kind == fault.NotDir:
				return fault.New("", name, kind, err)
			}
			return err
		})
	}
	return b.fail(ctx, "Mkdir", name, err)
}

// isRefusal reports whether the server answered, if only with no.
func isRefusal(err error) bool {
	var lost *lostError
	var r *replyError
	return errors.As(err, &r) && !errors.As(err, &lost)
}

// Remove implements mounts.Backend. What name is need not be known: a folder is no file to DELE, and a file no folder to RMD.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return bad("Remove", name, fault.Invalid, errRoot)
	}
	err := b.with(ctx, meta, false, func(c *conn) error {
		rs, err := c.do("DELE "+b.at(name), "RMD "+b.at(name))
		if err != nil || rs[0].ok() || rs[1].ok() {
			return err
		}
		info, kind, err := b.kindAt(c, name)
		switch {
		case err != nil:
			return err
		case kind == fault.NotDir:
			return fault.New("", name, fault.NotDir, nil)
		case kind != fault.Exist:
			return fault.New("", name, fault.NotExist, refused("DELE "+b.at(name), rs[0]))
		case !info.IsDir():
			return refused("DELE "+b.at(name), rs[0])
		}
		err = refused("RMD "+b.at(name), rs[1])
		if k := kindOf(err); k == fault.NotEmpty || k == fault.Exist {
			return fault.New("", name, fault.NotEmpty, err)
		}
		return b.whyNotRemoved(ctx, c, name, err)
	})
	return b.fail(ctx, "Remove", name, err)
}

// whyNotRemoved looks whether the folder has entries, for servers that do not say. It lists all of them: also those left out of List count.
func (b *Backend) whyNotRemoved(ctx context.Context, c *conn, name string, cause error) error {
	l := &listing{b: b, c: c, dir: name, lister: b.lister(), mlsd: b.server.Load().mlst}
	d, err := l.start(ctx)
	if err != nil {
		return cause
	}
	l.d = d
	head, ended, err := l.fetch(ctx)
	if err != nil || !ended {
		c.broken = c.broken || err != nil
		return fault.New("", name, fault.NotEmpty, cause)
	}
	for line := range strings.SplitSeq(string(head), "\n") {
		line = strings.TrimSuffix(line, "\r")
		info, skip := l.lister.parse(line)
		if l.mlsd {
			info, skip = parseFacts(line)
		}
		if !skip && info.Name != "" {
			return fault.New("", name, fault.NotEmpty, cause)
		}
	}
	return cause
}

// Rename implements mounts.Backend, in two round trips: what both are, and the move.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	if err := b.begin(ctx, "Rename", to, true); err != nil {
		return err
	}
	switch {
	case from == "." || to == ".":
		return bad("Rename", from, fault.Invalid, errRoot)
	case from != to && mounts.Below(to, from):
		return bad("Rename", from, fault.Invalid, errBelow)
	}
	err := b.keepsSpaces(ctx, to)
	if err == nil {
		var free func()
		if free, err = b.lock(ctx, to); err == nil {
			err = b.with(ctx, meta, false, func(c *conn) error { return b.rename(c, from, to) })
			free()
		}
	}
	return b.fail(ctx, "Rename", from, err)
}

func (b *Backend) rename(c *conn, from, to string) error {
	src, dst := b.statCommands(from), b.statCommands(to)
	rs, err := c.do(append(append([]string(nil), src...), dst...)...)
	if err != nil {
		return err
	}
	fromInfo, err := b.statResult(from, rs[:len(src)])
	if err != nil && kindOf(err) != fault.NotExist {
		return err
	}
	unseen := err // neither file nor folder, such as a broken link, can still be moved
	toInfo, err := b.statResult(to, rs[len(src):])
	taken := err == nil
	if from == to {
		return unseen
	}
	same := strings.EqualFold(from, to) && fromInfo.Type == toInfo.Type && fromInfo.ID == toInfo.ID // only the case changes
	if taken && !same {
		switch {
		case toInfo.IsDir() && fromInfo.IsDir():
			return fault.New("", to, fault.Exist, nil)
		case toInfo.IsDir():
			return fault.New("", to, fault.IsDir, nil)
		case fromInfo.IsDir():
			return fault.New("", to, fault.NotDir, nil)
		}
	}
	rs, err = c.do("RNFR "+b.at(from), "RNTO "+b.at(to)) // together: ProFTPD takes nothing else after RNFR
	if err != nil {
		return err
	}
	if rs[0].code != 350 && unseen != nil {
		return unseen
	}
	cause := renamed(b.at(from), b.at(to), rs)
	if cause == nil {
		return nil
	}
	if taken && !same {
		if kindOf(cause) == fault.Unsupported {
			return cause
		}
		return b.swap(c, from, to)
	}
	_, kind, err := b.kindAt(c, to)
	switch {
	case err != nil:
		return err
	case kind == fault.NotExist || kind == fault.NotDir:
		return fault.New("", to, kind, cause)
	}
	return cause
}

// swap replaces the file to by from on a server that does not rename over files. The old content stays under another name until the new has
// taken its place, so whatever fails, one of them is there; for a moment neither has the name.
func (b *Backend) swap(c *conn, from, to string) error {
	dir, _ := mounts.Split(to)
	aside := b.at(mounts.Join(dir, tempPrefix+temporary()))
	source, target := b.at(from), b.at(to)
	rs, err := c.do("RNFR "+target, "RNTO "+aside)
	if err != nil {
		return err
	}
	if err := renamed(target, aside, rs); err != nil {
		return err
	}
	rs, err = c.do("RNFR "+source, "RNTO "+target)
	if err != nil {
		return err
	}
	if err := renamed(source, target, rs); err != nil {
		if _, back := c.do("RNFR "+aside, "RNTO "+target); back != nil {
			return back
		}
		return err
	}
	b.replace.Store(no)
	_, err = c.do("DELE " + aside)
	return err
}

// replaceBy renames over a file, by whichever way the server allows.
func (b *Backend) replaceBy(c *conn, from, to string) error {
	rs, err := c.do("RNFR "+b.at(from), "RNTO "+b.at(to))
	if err != nil {
		return err
	}
	if renamed(b.at(from), b.at(to), rs) == nil {
		return nil
	}
	return b.swap(c, from, to)
}

// keepsSpaces refuses a name that ends in a space on servers that would make another of it. The question is asked once.
func (b *Backend) keepsSpaces(ctx context.Context, name string) error {
	if !strings.HasSuffix(name, " ") || b.spaces.Load() == yes {
		return nil
	}
	if b.spaces.Load() == no {
		return errSpace
	}
	return b.with(ctx, meta, false, func(c *conn) error {
		at := b.at(spaceProbe + temporary() + " ")
		rs, err := c.do("MKD "+b.at(mounts.Area), "MKD "+b.at(tempFolder), "MKD "+at, "CWD "+at, "CWD "+b.at("."), "RMD "+at)
		if err != nil {
			return err
		}
		switch made := rs[2]; {
		case !made.ok():
			return errSpace // it does not tell, so nothing is risked
		case rs[3].ok():
			b.spaces.Store(yes)
			return nil
		default:
			b.spaces.Store(no)
			if p := parsePWD(made.lines[0]); mounts.Below(strings.TrimPrefix(p, "/"), strings.TrimPrefix(b.at(tempFolder), "/")) && mountable(p) {
				c.do("RMD " + p)
			}
			return errSpace
		}
	})
}

// probe finds out whether the server renames over files, unless it is one of those that are known to.
func (b *Backend) probe(ctx context.Context) error {
	if b.server.Load().known {
		b.replace.Store(yes)
		return nil
	}
	if b.cfg.ReadOnly || b.server.Load().windows {
		b.replace.Store(no)
		return nil
	}
	return b.with(ctx, writing, true, func(c *conn) error {
		names := [2]string{probeName + temporary(), probeName + temporary()}
		for _, name := range names {
			u := &upload{b: b, name: name, src: &source{size: 0, eof: true}}
			err := u.send(ctx, c, name)
			if unwritable(err) {
				if _, err := c.do("MKD "+b.at(mounts.Area), "MKD "+b.at(tempFolder)); err != nil {
					return err
				}
				err = u.send(ctx, c, name)
			}
			if isRefusal(err) {
				b.replace.Store(no) // nothing can be written: it will not matter
				c.do("DELE " + b.at(names[0]))
				return nil
			}
			if err != nil {
				return err
			}
		}
		rs, err := c.do("RNFR "+b.at(names[0]), "RNTO "+b.at(names[1]), "DELE "+b.at(names[1]), "DELE "+b.at(names[0]))
		if err != nil {
			return err
		}
		b.replace.Store(no)
		if renamed(names[0], names[1], rs) == nil {
			b.replace.Store(yes)
		}
		return nil
	})
}
