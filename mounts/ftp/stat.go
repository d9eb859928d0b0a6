package ftp

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// lister returns the reader of LIST as of now.
func (b *Backend) lister() lister { return lister{zone: b.zone, now: time.Now()} }

// statCommands ask what name is, in one round trip; statResult understands the answers.
func (b *Backend) statCommands(name string) []string {
	at := b.at(name)
	if b.server.Load().mlst {
		return []string{"MLST " + at}
	}
	// RFC 3659 §4: the size as TYPE I has it. Whether it is a folder shows when it is entered, which changes nothing else: paths are absolute.
	return []string{"SIZE " + at, "MDTM " + at, "CWD " + at}
}

func (b *Backend) statResult(name string, rs []reply) (mounts.Info, error) {
	_, base := mounts.Split(name)
	if b.server.Load().mlst {
		return mlstResult(b.at(name), base, rs[0])
	}
	if rs[2].ok() {
		return mounts.Info{Name: base, Type: mounts.Dir}, nil
	}
	size, sizeErr := number(rs[0])
	if sizeErr != nil {
		return mounts.Info{}, vague(&replyError{"SIZE", b.at(name), rs[0]}, &replyError{"CWD", b.at(name), rs[2]})
	}
	info := mounts.Info{Name: base, Type: mounts.File, Size: size}
	if rs[1].code == 213 {
		info.ModTime = b.lister().coarse(parseStamp(strings.TrimSpace(rs[1].text())), b.dos.Load())
	}
	return info, nil
}

// mlstResult reads the answer to MLST, whose entry is the line in between (RFC 3659 §7.2).
func mlstResult(at, base string, r reply) (mounts.Info, error) {
	if !r.ok() {
		return mounts.Info{}, vague(&replyError{"MLST", at, r})
	}
	for _, line := range r.lines[1:] {
		if info, _ := parseFacts(strings.TrimLeft(line, " ")); strings.Contains(line, "=") && strings.Contains(line, ";") {
			info.Name = base
			return info, nil
		}
	}
	return mounts.Info{}, &lostError{errGarbled}
}

// vague is the error of questions that were all refused: what the first says that says something, and else that there is no such thing. Most
// servers do not tell a file that is missing from one they do not show.
func vague(errs ...*replyError) error {
	for _, e := range errs {
		if e.reply.code == 550 && e.said() == fault.Internal {
			continue
		}
		if k := e.kind(); k == fault.IsDir || k == fault.Exist {
			continue
		}
		return e
	}
	return fault.New("mounts/ftp", "", fault.NotExist, errs[0])
}

// number reads the size in a reply to SIZE and the like.
func number(r reply) (int64, error) {
	if r.code != 213 {
		return -1, errGarbled
	}
	n, err := strconv.ParseInt(strings.TrimSpace(r.text()), 10, 64)
	if err != nil || n < 0 {
		return -1, errGarbled
	}
	return n, nil
}

// look is Stat on a connection that is there.
func (b *Backend) look(c *conn, name string) (mounts.Info, error) {
	if name == "." {
		return mounts.Info{Name: ".", Type: mounts.Dir}, nil
	}
	rs, err := c.do(b.statCommands(name)...)
	if err != nil {
		return mounts.Info{}, err
	}
	return b.statResult(name, rs)
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (info mounts.Info, err error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return info, err
	}
	err = b.with(ctx, meta, true, func(c *conn) (err error) {
		if name == "." { // it may have gone, and it has a time
			if b.server.Load().mlst {
				var r reply
				if r, err = c.run("MLST " + b.at(name)); err == nil {
					if info, err = mlstResult(b.at(name), ".", r); err == nil && info.IsDir() {
						return nil
					}
				}
				var lost *lostError
				if errors.As(err, &lost) {
					return err
				}
			}
			info = mounts.Info{Name: ".", Type: mounts.Dir}
			_, err = c.run("CWD " + b.at(name))
			return err
		}
		info, err = b.look(c, name)
		return err
	})
	if err != nil {
		return mounts.Info{}, b.fail(ctx, "Stat", name, err)
	}
	return info, nil
}

// kindAt says what is wrong with name: NotExist or NotDir for what lies on the way, IsDir or Exist for what is there, and else none, when it
// could well be made. It is asked after a server said no without saying why.
func (b *Backend) kindAt(c *conn, name string) (mounts.Info, fault.Kind, error) {
	info, err := b.look(c, name)
	if err == nil {
		return info, fault.Exist, nil
	}
	var lost *lostError
	if errors.As(err, &lost) {
		return info, 0, err
	}
	if k := kindOf(err); k != fault.NotExist && k != fault.NotDir {
		return info, k, nil
	}
	dir, _ := mounts.Split(name)
	parent, err := b.look(c, dir)
	switch {
	case errors.As(err, &lost):
		return info, 0, err
	case err != nil:
		return info, kindOf(err), nil
	case !parent.IsDir():
		return info, fault.NotDir, nil
	}
	return info, fault.Internal, nil
}
