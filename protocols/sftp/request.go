package sftp

import (
	"context"
	"errors"
	"os"
	"path"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

var (
	errUnknown  = errors.New("no such request")
	errNoLink   = errors.New("no symbolic link")
	errNotEmpty = errors.New("the folder is not empty")
)

// take understands a request and sends it on its way. Everything in is copied before it returns.
func (s *session) take(typ byte, id uint32, in *input) {
	switch typ {
	case typeOpen:
		raw, flags, w := in.str(), in.u32(), in.attrs()
		s.one(id, in, raw, func(p gateway.Path) { s.open(id, p, flags, w) })
	case typeClose:
		s.close(id, in.handle())
	case typeRead:
		if h, off, n := in.handle(), in.offset(), in.u32(); in.bad {
			s.malformed(id)
		} else {
			s.sendData(id, h, off, n)
		}
	case typeStat, typeLstat:
		s.one(id, in, in.str(), func(p gateway.Path) { s.stat(id, p, typ == typeStat) })
	case typeFstat:
		s.fstat(id, in.handle())
	case typeSetstat:
		raw, w := in.str(), in.attrs()
		s.one(id, in, raw, func(p gateway.Path) { s.setstat(id, p, w, false) })
	case typeFsetstat:
		if h, w := in.handle(), in.attrs(); in.bad {
			s.malformed(id)
		} else {
			s.fsetstat(id, h, w)
		}
	case typeOpendir:
		s.one(id, in, in.str(), func(p gateway.Path) { s.opendir(id, p) })
	case typeReaddir:
		s.readdir(id, in.handle())
	case typeRemove, typeRmdir:
		s.one(id, in, in.str(), func(p gateway.Path) { s.remove(id, p, typ == typeRmdir) })
	case typeMkdir:
		raw, w := in.str(), in.attrs()
		s.one(id, in, raw, func(p gateway.Path) { s.mkdir(id, p, w) })
	case typeRealpath:
		s.one(id, in, in.str(), func(p gateway.Path) { s.tell(id, p) })
	case typeRename:
		s.two(id, in, func(from, to gateway.Path) { s.rename(id, from, to, false) })
	case typeReadlink:
		s.one(id, in, in.str(), func(p gateway.Path) { s.readlink(id, p) })
	case typeSymlink:
		// The draft says the link comes first, OpenSSH does the opposite, and so does everybody since.
		target, raw := in.str(), in.str()
		s.one(id, in, raw, func(p gateway.Path) { s.symlink(id, target, p) })
	case typeExtended:
		s.extended(id, in)
	default:
		s.refuse(id, fault.New("sftp", "", fault.Unsupported, errUnknown))
	}
}

// one goes on with a request about one path, if it is well-formed.
func (s *session) one(id uint32, in *input, raw string, do func(p gateway.Path)) {
	if in.bad {
		s.malformed(id)
		return
	}
	p, err := s.path(raw)
	if err != nil {
		s.refuse(id, err)
		return
	}
	do(p)
}

func (s *session) two(id uint32, in *input, do func(p, q gateway.Path)) {
	a, b := in.str(), in.str()
	s.one(id, in, a, func(p gateway.Path) {
		s.one(id, in, b, func(q gateway.Path) { do(p, q) })
	})
}

// stat answers what p is (§6.8). A file that this session writes is what has been written.
func (s *session) stat(id uint32, p gateway.Path, follow bool) {
	s.later(id, reads(p), func(ctx context.Context) (reply, error) {
		i, err := s.look(ctx, p, follow)
		if err != nil {
			return nil, err
		}
		return answer(typeAttrs, id, 32).attrs(i), nil
	})
}

func (s *session) look(ctx context.Context, p gateway.Path, follow bool) (gateway.Info, error) {
	if h := s.writer(p); h != nil {
		return h.w.info()
	}
	i, err := s.s.Stat(ctx, p)
	if err == nil && i.Target != "" && follow {
		return s.follow.Stat(ctx, p)
	}
	return i, err
}

// setstat changes attributes of p (§6.9). Owners are accepted and not kept.
func (s *session) setstat(id uint32, p gateway.Path, w wishes, itself bool) {
	s.later(id, changes(p), func(ctx context.Context) (reply, error) {
		if h := s.writer(p); h != nil {
			return nil, h.w.set(w)
		}
		if itself {
			if i, err := s.s.Stat(ctx, p); err != nil {
				return nil, err
			} else if i.Target != "" {
				return nil, fault.New("sftp.lsetstat", p.String(), fault.Unsupported, errors.New("links have no attributes of their own"))
			}
		}
		if w.flags&hasSize != 0 {
			if err := s.truncate(ctx, p, w.size); err != nil {
				return nil, err
			}
		}
		return nil, s.setAttr(ctx, p, w)
	})
}

func (s *session) setAttr(ctx context.Context, p gateway.Path, w wishes) error {
	a, ok := w.attr()
	if !ok {
		_, err := s.s.Stat(ctx, p)
		return err
	}
	return s.s.SetAttr(ctx, p, a)
}

func (s *session) truncate(ctx context.Context, p gateway.Path, size int64) error {
	h, err := s.s.OpenFile(ctx, p, gateway.OpenOptions{Flag: os.O_WRONLY, Base: true})
	if err != nil {
		return err
	}
	if h.Info().Size == size {
		return h.Abort()
	}
	if err := h.Truncate(size); err != nil {
		return errors.Join(err, h.Abort())
	}
	return h.Close(ctx)
}

// remove removes a file or an empty folder (§6.5, §6.6), each only by its own request.
func (s *session) remove(id uint32, p gateway.Path, folder bool) {
	s.later(id, changes(p), func(ctx context.Context) (reply, error) {
		written := s.writer(p)
		err := s.s.Remove(ctx, p, gateway.RemoveOptions{Cond: gateway.Cond{Check: func(cur gateway.Info, exists bool) error {
			switch {
			case exists && cur.Dir && !folder:
				return fault.New("sftp.remove", p.String(), fault.IsDir, nil)
			case exists && !cur.Dir && folder:
				return fault.New("sftp.rmdir", p.String(), fault.NotDir, nil)
			}
			return nil
		}}})
		if written != nil && !folder && fault.KindOf(err) == fault.NotExist {
			err = nil // it was to come
		}
		if err == nil {
			for _, h := range s.writers(p) {
				h.w.removed()
			}
		}
		return nil, err
	})
}

// mkdir makes a folder (§6.6).
func (s *session) mkdir(id uint32, p gateway.Path, w wishes) {
	s.later(id, changes(p), func(ctx context.Context) (reply, error) {
		if err := s.s.Mkdir(ctx, p); err != nil {
			return nil, err
		}
		if mode := w.perm(); mode != 0 && mode != 0o777 && mode != 0o755 { // which say nothing
			a, _ := wishes{flags: hasMode, mode: w.mode}.attr()
			if err := s.s.SetAttr(ctx, p, a); err != nil && fault.KindOf(err) != fault.Unsupported {
				return nil, err
			}
		}
		return nil, nil
	})
}

// tell answers with a path (§6.11).
func (s *session) tell(id uint32, p gateway.Path) {
	s.finish(id, answer(typeName, id, 64).u32(1).str(p.String()).str(p.String()).u32(0), nil)
}

// rename renames (§6.5). Without replace a name that is taken stays; with it, files replace files and folders empty folders, as POSIX has it.
func (s *session) rename(id uint32, from, to gateway.Path, replace bool) {
	s.later(id, changes(from, to), func(ctx context.Context) (reply, error) {
		if err := s.move(ctx, from, to, replace); err != nil {
			return nil, err
		}
		return nil, nil
	})
}

func (s *session) move(ctx context.Context, from, to gateway.Path, replace bool) error {
	moving := s.writers(from)
	for _, h := range moving { // what is written has to be there to be renamed
		if err := h.w.publish(ctx); err != nil {
			return err
		}
	}
	if from == to {
		_, err := s.s.Stat(ctx, from)
		if err == nil && !replace {
			err = fault.New("sftp.rename", to.String(), fault.Exist, nil)
		}
		return err
	}
	opt := gateway.MoveOptions{Overwrite: replace}
	if replace {
		if err := s.makeRoom(ctx, from, to); err != nil {
			return err
		}
		opt.DestCond.Check = func(cur gateway.Info, exists bool) error {
			if exists && cur.Dir {
				return fault.New("sftp.rename", to.String(), fault.NotEmpty, errNotEmpty) // a new one: the old one has gone
			}
			return nil
		}
	}
	if _, err := s.s.Rename(ctx, from, to, opt); err != nil {
		return err
	}
	for _, h := range s.writers(to) {
		h.w.removed() // what it writes has been replaced
	}
	for _, h := range moving {
		if err := s.follows(h, from, to); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom removes an empty folder that is to be replaced by a folder.
func (s *session) makeRoom(ctx context.Context, from, to gateway.Path) error {
	dst, err := s.s.Stat(ctx, to)
	if err != nil {
		return nil // the rename will tell
	}
	src, err := s.s.Stat(ctx, from)
	if err != nil {
		return err
	}
	switch {
	case !dst.Dir && !src.Dir:
		return nil
	case !dst.Dir:
		return fault.New("sftp.rename", to.String(), fault.NotDir, nil)
	case !src.Dir:
		return fault.New("sftp.rename", to.String(), fault.IsDir, nil)
	}
	return s.s.Remove(ctx, to, gateway.RemoveOptions{})
}

// follows lets a handle follow the file that has become to's, or lies below it.
func (s *session) follows(h *handle, from, to gateway.Path) error {
	p, err := gateway.ParsePath(to.String() + strings.TrimPrefix(h.at().String(), from.String()))
	if err != nil {
		return err
	}
	s.mu.Lock()
	h.path = p
	s.mu.Unlock()
	return h.w.moved(p)
}

// readlink answers where a link points, as it is stored (§6.10).
func (s *session) readlink(id uint32, p gateway.Path) {
	s.later(id, reads(p), func(ctx context.Context) (reply, error) {
		i, err := s.s.Stat(ctx, p)
		if err != nil {
			return nil, err
		}
		if i.Target == "" {
			return nil, fault.New("sftp.readlink", p.String(), fault.Invalid, errNoLink)
		}
		return answer(typeName, id, 64).u32(1).str(i.Target).str(i.Target).u32(0), nil
	})
}

// symlink makes a link (§6.10).
func (s *session) symlink(id uint32, target string, p gateway.Path) {
	s.later(id, changes(p), func(ctx context.Context) (reply, error) {
		return nil, s.s.Symlink(ctx, relative(target, p), p)
	})
}

// relative returns an absolute target within the workspace of the link p as seen from the link, and any other as it is.
func relative(target string, p gateway.Path) string {
	t := path.Clean(target)
	slug, _, _ := strings.Cut(p.String()[1:], "/")
	if !strings.HasPrefix(t, "/"+slug+"/") && t != "/"+slug || p.Depth() < 2 {
		return target
	}
	from, to := strings.Split(p.Parent().String(), "/"), strings.Split(t, "/")
	for len(from) > 0 && len(to) > 0 && from[0] == to[0] {
		from, to = from[1:], to[1:]
	}
	rel := strings.Repeat("../", len(from)) + strings.Join(to, "/")
	if rel = strings.TrimSuffix(rel, "/"); rel == "" {
		return "."
	}
	return rel
}
