package fuse

import (
	"context"
	"encoding/base64"
	"strconv"
	"strings"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"cellgate/gateway"
)

// Extended attributes of the name space "user." are kept as properties of the node. Properties are XML: names are escaped to be such names, and
// values are base64.

// xattrSpace is the name space of the properties that are extended attributes.
const xattrSpace = "urn:cellgate:xattr"

// userSpace is the only name space of attributes.
const userSpace = "user."

// maxAttr is the largest value: with base64 and some room it fits a property.
const maxAttr = 40 << 10

// xattrName makes a property's name of what follows "user.".
func xattrName(attr string) string {
	var b strings.Builder
	for i := 0; i < len(attr); i++ {
		c := attr[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if letter || i > 0 && ('0' <= c && c <= '9' || c == '.' || c == '-') {
			b.WriteByte(c)
			continue
		}
		const hex = "0123456789abcdef"
		b.Write([]byte{'_', hex[c>>4], hex[c&15]})
	}
	return b.String()
}

// attrName is the reverse of xattrName. It reports false for what that never makes.
func attrName(prop string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(prop); i++ {
		if prop[i] != '_' {
			b.WriteByte(prop[i])
			continue
		}
		if i+3 > len(prop) {
			return "", false
		}
		c, err := strconv.ParseUint(prop[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(c))
		i += 2
	}
	return b.String(), b.Len() > 0 && xattrName(b.String()) == prop
}

// attrs returns the extended attributes of n by name, without "user.".
func (f *fsys) attrs(ctx context.Context, n *node) (map[string][]byte, error) {
	var props []gateway.Prop
	err := f.at(n, func(p gateway.Path) (err error) {
		props, err = f.s.Props(ctx, p)
		return err
	})
	if err != nil {
		if f.isFresh(n) {
			return nil, nil
		}
		return nil, err
	}
	all := make(map[string][]byte, len(props))
	for _, p := range props {
		if p.Space != xattrSpace {
			continue
		}
		name, ok := attrName(p.Name)
		value, err := base64.StdEncoding.DecodeString(string(p.Value))
		if ok && err == nil {
			all[name] = value
		}
	}
	return all, nil
}

// answerBytes copies an answer whose size may have been all that was asked for.
func answerBytes(dest, value []byte) (uint32, gofuse.Status) {
	if len(value) > len(dest) {
		return uint32(len(value)), gofuse.ERANGE
	}
	return uint32(copy(dest, value)), gofuse.OK
}

// GetXAttr implements gofuse.RawFileSystem.
func (f *fsys) GetXAttr(cancel <-chan struct{}, in *gofuse.InHeader, attr string, dest []byte) (uint32, gofuse.Status) {
	name, ok := strings.CutPrefix(attr, userSpace)
	switch {
	case attr == "security.capability":
		return 0, gofuse.ENODATA // nothing here has any
	case !ok:
		return 0, gofuse.Status(syscall.EOPNOTSUPP)
	}
	n := f.tree.node(in.NodeId)
	if n == nil {
		return 0, gofuse.ENOENT
	}
	value, st := do(f, "getxattr", cancel, func(ctx context.Context) ([]byte, error) {
		all, err := f.attrs(ctx, n)
		if err != nil {
			return nil, err
		}
		value, ok := all[name]
		if !ok {
			return nil, syscall.ENODATA
		}
		return value, nil
	}, nil)
	if !st.Ok() {
		return 0, st
	}
	return answerBytes(dest, value)
}

// ListXAttr implements gofuse.RawFileSystem.
func (f *fsys) ListXAttr(cancel <-chan struct{}, in *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	n := f.tree.node(in.NodeId)
	if n == nil {
		return 0, gofuse.ENOENT
	}
	all, st := do(f, "listxattr", cancel, func(ctx context.Context) (map[string][]byte, error) { return f.attrs(ctx, n) }, nil)
	if !st.Ok() {
		return 0, st
	}
	var names []byte
	for name := range all {
		names = append(append(append(names, userSpace...), name...), 0)
	}
	return answerBytes(dest, names)
}

// SetXAttr implements gofuse.RawFileSystem.
func (f *fsys) SetXAttr(cancel <-chan struct{}, in *gofuse.SetXAttrIn, attr string, data []byte) gofuse.Status {
	if len(data) > maxAttr {
		return gofuse.Status(syscall.E2BIG)
	}
	const create, replace = 1, 2 // XATTR_CREATE, XATTR_REPLACE
	flags := in.Flags
	value := []byte(base64.StdEncoding.EncodeToString(data))
	return f.patch(cancel, in.NodeId, attr, func(there bool) (gateway.PropChange, error) {
		switch {
		case there && flags&create != 0:
			return gateway.PropChange{}, syscall.EEXIST
		case !there && flags&replace != 0:
			return gateway.PropChange{}, syscall.ENODATA
		}
		return gateway.PropChange{Prop: gateway.Prop{Value: value}}, nil
	}, flags != 0)
}

// RemoveXAttr implements gofuse.RawFileSystem.
func (f *fsys) RemoveXAttr(cancel <-chan struct{}, in *gofuse.InHeader, attr string) gofuse.Status {
	return f.patch(cancel, in.NodeId, attr, func(there bool) (gateway.PropChange, error) {
		if !there {
			return gateway.PropChange{}, syscall.ENODATA
		}
		return gateway.PropChange{Remove: true}, nil
	}, true)
}

// patch makes the change that decide wants. With looks it is told whether the attribute is there.
func (f *fsys) patch(cancel <-chan struct{}, id uint64, attr string, decide func(there bool) (gateway.PropChange, error), looks bool) gofuse.Status {
	name, ok := strings.CutPrefix(attr, userSpace)
	n, st := f.tree.node(id), gofuse.OK
	switch {
	case n == nil:
		return gofuse.ENOENT
	case f.cfg.ReadOnly:
		return gofuse.EROFS
	case !ok:
		return gofuse.Status(syscall.EOPNOTSUPP)
	case name == "":
		return gofuse.EINVAL
	}
	_, st = do(f, "setxattr", cancel, func(ctx context.Context) (none, error) {
		if f.isFresh(n) { // what has no node has no properties either
			if err := f.publishBelow(ctx, n); err != nil {
				return none{}, err
			}
		}
		there := false
		if looks {
			all, err := f.attrs(ctx, n)
			if err != nil {
				return none{}, err
			}
			_, there = all[name]
		}
		c, err := decide(there)
		if err != nil {
			return none{}, err
		}
		c.Space, c.Name = xattrSpace, xattrName(name)
		err = f.at(n, func(p gateway.Path) error {
			defer f.doing(p)()
			return f.s.PatchProps(ctx, p, []gateway.PropChange{c}, gateway.Cond{})
		})
		if errnoOf(err) == syscall.EFBIG {
			err = syscall.ENOSPC // setxattr(2): there is no room for it
		}
		return none{}, err
	}, nil)
	if st.Ok() {
		n.touched()
	}
	return st
}
