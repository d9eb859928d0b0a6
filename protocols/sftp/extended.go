package sftp

import (
	"context"
	"errors"
	"math"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// extensions are what the server says it knows, as PROTOCOL of OpenSSH and draft-ietf-secsh-filexfer-extensions-00 describe it.
var extensions = []struct{ name, version string }{
	{"posix-rename@openssh.com", "1"},
	{"statvfs@openssh.com", "2"},
	{"fstatvfs@openssh.com", "2"},
	{"hardlink@openssh.com", "1"},
	{"fsync@openssh.com", "1"},
	{"lsetstat@openssh.com", "1"},
	{"limits@openssh.com", "1"},
	{"expand-path@openssh.com", "1"},
	{"copy-data", "1"},
	{"home-directory", "1"},
	{"users-groups-by-id@openssh.com", "1"},
}

// extended understands an extended request.
func (s *session) extended(id uint32, in *input) {
	switch name := in.str(); name {
	case "posix-rename@openssh.com":
		s.two(id, in, func(from, to gateway.Path) { s.rename(id, from, to, true) })
	case "hardlink@openssh.com":
		s.two(id, in, func(from, to gateway.Path) {
			s.later(id, changes(from, to), func(ctx context.Context) (reply, error) { return nil, s.link(ctx, from, to) })
		})
	case "statvfs@openssh.com":
		s.one(id, in, in.str(), func(p gateway.Path) {
			s.later(id, reads(p), func(ctx context.Context) (reply, error) { return s.space(ctx, id, p) })
		})
	case "fstatvfs@openssh.com":
		s.on(id, in.handle(), func(h *handle) (reply, error) { return s.space(s.ctx, id, h.at()) })
	case "fsync@openssh.com":
		s.fsync(id, in.handle())
	case "lsetstat@openssh.com":
		raw, w := in.str(), in.attrs()
		s.one(id, in, raw, func(p gateway.Path) { s.setstat(id, p, w, true) })
	case "limits@openssh.com":
		s.streams.Store(true) // it is asked by those who transfer whole files
		s.finish(id, answer(typeExtReply, id, 32).u64(sayPacket).u64(maxData).u64(maxData).u64(uint64(s.srv.limits.Handles)), nil)
	case "expand-path@openssh.com", "home-directory":
		raw := in.str()
		if name == "home-directory" {
			raw = "~" + raw
		}
		p, err := s.expand(raw)
		switch {
		case in.bad:
			s.malformed(id)
		case err != nil:
			s.refuse(id, err)
		default:
			s.tell(id, p)
		}
	case "copy-data":
		from, off, n, to, at := in.handle(), in.offset(), in.offset(), in.handle(), in.offset()
		if in.bad || off > math.MaxInt64-n || at > math.MaxInt64-n {
			s.malformed(id)
			return
		}
		s.copyData(id, from, to, off, n, at)
	case "users-groups-by-id@openssh.com":
		s.names(id, in)
	default:
		s.refuse(id, fault.New("sftp", "", fault.Unsupported, errUnknown))
	}
}

// link makes to another name of from. A file that is still being written becomes one first.
func (s *session) link(ctx context.Context, from, to gateway.Path) error {
	if h := s.writer(from); h != nil {
		if err := h.w.publish(ctx); err != nil {
			return err
		}
	}
	return s.s.Link(ctx, from, to)
}

// fsync makes what was written durable, which here means that it is published. What is only read has nothing to sync.
func (s *session) fsync(id, name uint32) {
	h := s.handle(name)
	switch {
	case h == nil:
		s.refuse(id, badHandle())
	case h.w == nil:
		h.answer(func() { s.finish(id, nil, nil) })
	default:
		s.onPath(id, h, changes(h.at()), func() (reply, error) { return nil, h.w.publish(s.life) })
	}
}

// What a file system is said to be where nobody knows better.
const (
	fsBlock   = 4096
	fsUnknown = 1 << 50 // bytes
	fsNoSuid  = 2       // of the flags of statvfs
	maxName   = 255
)

// space answers how much room there is, that of the quota which binds tightest.
func (s *session) space(ctx context.Context, id uint32, p gateway.Path) (reply, error) {
	sp := gateway.Space{Used: -1, Available: -1}
	if !p.IsRoot() {
		if h := s.writer(p); h != nil {
			p = p.Parent()
		}
		var err error
		if sp, err = s.s.Space(ctx, p); err != nil {
			return nil, err
		}
	}
	used, free := max(sp.Used, 0), sp.Available
	if free < 0 {
		free = fsUnknown
	}
	total := uint64(used)/fsBlock + uint64(free)/fsBlock
	if uint64(used)%fsBlock != 0 {
		total++
	}
	r := answer(typeExtReply, id, 96).u64(fsBlock).u64(fsBlock).u64(total).u64(uint64(free) / fsBlock).u64(uint64(free) / fsBlock)
	return r.u64(1 << 32).u64(1 << 31).u64(1 << 31).u64(0x63656c6c).u64(fsNoSuid).u64(maxName), nil
}

var errNames = errors.New("too many ids")

// names answers what users and groups are called: there is one of each.
func (s *session) names(id uint32, in *input) {
	users, groups := input{b: in.bytes()}, input{b: in.bytes()}
	if in.bad || len(users.b)%4 != 0 || len(groups.b)%4 != 0 {
		s.malformed(id)
		return
	}
	const most = 4096
	if len(users.b)/4+len(groups.b)/4 > most {
		s.refuse(id, fault.New("sftp", "", fault.TooLarge, errNames))
		return
	}
	list := func(ids input, name string) string {
		var p reply
		for len(ids.b) > 0 {
			if ids.u32() == owner {
				p = p.str(name)
			} else {
				p = p.str("")
			}
		}
		return string(p)
	}
	s.finish(id, answer(typeExtReply, id, 64).str(list(users, s.login)).str(list(groups, group)), nil)
}
