package gateway

import (
	"context"
	"io/fs"
	"iter"
	"maps"
	"mime"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
)

// Info is a node as a session sees it.
type Info struct {
	Name    string // the last segment, "" for the root of the tree
	Path    Path
	Dir     bool
	Size    int64     // bytes; 0 for folders
	ModTime time.Time // UTC; zero when the backend does not tell
	// ETag is a strong entity tag in quotes (RFC 9110 §8.8.3) that changes with the content, "" for folders and where none is known.
	ETag string
	// Writable says that the subject may change the file, or create in the folder. Set by Stat only.
	Writable bool
	// Age is how old this may be, as what is remembered of a backend across a network is, for a folder that of its listing. Set by Stat only.
	Age time.Duration
	// ID identifies the node through renames where the backend can, 0 where it cannot.
	ID uint64
	// Sums are the checksums that are known of the content, "MD5:hex SHA1:hex …", and what CreateOptions.Note said of it. Only for protocols
	// that asked for them with Client.Sums.
	Sums string
	// What follows is for protocols that asked for it with Client.Posix.
	Mode   fs.FileMode // permission bits, 0 where nobody has set any
	Links  uint32      // names of the file, 0 unknown
	Target string      // where a symbolic link points, as stored; "" says that the node is none
}

// Type returns the MIME type that the name's extension stands for, "application/octet-stream" when it stands for none. Content is never looked at.
func (i Info) Type() string { return TypeByName(i.Name) }

// TypeByName is Info.Type for a name alone.
func TypeByName(name string) string {
	if t := mime.TypeByExtension(strings.ToLower(path.Ext(name))); t != "" {
		return t
	}
	return "application/octet-stream"
}

// Stat returns what p is.
func (s *Session) Stat(ctx context.Context, p Path) (_ Info, err error) {
	o, err := s.begin(ctx, verbStat, p, policy.List)
	if err != nil {
		return Info{}, err
	}
	defer o.end(&err)
	if o.virtual() {
		return o.folder(p), nil
	}
	info, err := o.stat(ctx, o.m, &o.target, !s.client.Posix, policy.List)
	if err != nil {
		return Info{}, err
	}
	if err := o.listable(info); err != nil {
		return Info{}, err
	}
	i := o.info(p, info)
	act := policy.Modify
	if i.Dir {
		act = policy.Create
	}
	if o.m.chain.cache != nil {
		i.Age, _ = o.m.chain.cache.Age(o.name)
	}
	i.Writable = !o.ds.cfg.ReadOnly && o.b.view.Decide(act, o.at, o.env).Allowed
	return o.overlaid(ctx, i)
}

// List yields the children of p that the subject may know of, in the backend's order, streamed; the last pair carries the error when it
// fails midway. The root's children are the workspaces, by slug.
func (s *Session) List(ctx context.Context, p Path) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) {
		if err := s.list(ctx, p, yield); err != nil {
			yield(Info{}, err)
		}
	}
}

func (s *Session) list(ctx context.Context, p Path, yield func(Info, error) bool) (err error) {
	o, err := s.begin(ctx, verbList, p, policy.List)
	if err != nil {
		return err
	}
	defer o.end(&err)
	if o.virtual() {
		o.listVirtual(yield)
		return nil
	}
	info, err := o.stat(ctx, o.m, &o.target, true, policy.List)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fault.New("gateway.list", p.String(), fault.NotDir, nil)
	}
	o.ds.outside.use(o.name, o.env.Time)
	may := o.b.view.Children(policy.List, o.at, o.env)
	folds, looks := !o.m.features.CaseSensitive, o.b.view.PerNode(o.at)
	page := page{overlay: o.overlay()}
	for child, err := range o.m.List(ctx, o.name) {
		if err != nil {
			return err
		}
		key := child.Name
		if folds {
			key = fold(key)
		}
		if mounts.Reserved(child.Name) || !may(key).Allowed && !(looks && o.listed(key, child)) {
			continue
		}
		if child.Type == mounts.Symlink && !s.client.Posix {
			if child, err = o.follow(ctx, child); err != nil {
				continue // dangling, leading out, or to where the subject may not look
			}
		}
		if o.listable(child) != nil {
			continue
		}
		if more, err := page.add(ctx, o, o.info(p.child(child.Name), child), yield); !more {
			return err
		}
	}
	_, err = page.flush(ctx, o, yield)
	return err
}

// listed decides about one child where policies look at more than its name.
func (o *op) listed(key string, child mounts.Info) bool {
	env := *o.env
	env.Node = describe(child)
	return o.b.view.Decide(policy.List, policy.Place{Datasource: o.at.Datasource, Path: join(o.at.Path, key)}, &env).Allowed
}

// follow returns what a symbolic link among the children of the target leads to, under the link's name.
func (o *op) follow(ctx context.Context, link mounts.Info) (mounts.Info, error) {
	t := o.target
	t.name = join(o.name, link.Name)
	info, err := o.stat(ctx, o.m, &t, true, policy.List)
	o.denied = policy.Place{}
	info.Name = link.Name
	return info, err
}

func (o *op) listVirtual(yield func(Info, error) bool) {
	if o.ws != nil {
		for i, name := range o.ws.names {
			at := o.b.table.place(o.ws.roots[i].datasource, o.roots[i])
			if o.roots[i] != "" && o.b.view.Decide(policy.List, at, o.env).Allowed && !yield(o.folder(o.path.child(name)), nil) {
				return
			}
		}
		return
	}
	for _, slug := range slices.Sorted(maps.Keys(o.b.table.workspaces)) {
		if o.visible(o.b.table.workspaces[slug]) && !yield(o.folder(Path{slug}), nil) {
			return
		}
	}
}

// folder is the Info of a folder that has no times or sizes of its own.
func (o *op) folder(p Path) Info { return Info{Name: p.Base(), Path: p, Dir: true} }

// listable is listable, but links are for protocols that know them.
func (o *op) listable(info mounts.Info) error {
	if info.Type == mounts.Symlink && o.s.client.Posix {
		return nil
	}
	return listable(info)
}

// listable says that devices, sockets and pipes are not for clients, and links are followed first.
func listable(info mounts.Info) error {
	if info.Type == mounts.Other || info.Type == mounts.Symlink {
		return fault.New("gateway", info.Name, fault.NotExist, nil)
	}
	return nil
}

func (o *op) info(p Path, info mounts.Info) Info {
	i := Info{Name: p.Base(), Path: p, Dir: info.IsDir(), ModTime: info.ModTime, ID: info.ID, Mode: info.Mode, Links: info.Links}
	if info.Type == mounts.Symlink {
		i.Target, i.Size = info.Target, int64(len(info.Target))
		return i
	}
	if !i.Dir {
		i.Size = info.Size
		if o.known {
			i.ETag = o.etag(info)
		}
	}
	return i
}

// etag makes the entity tag of a file: the backend's own, or one from what changes with its content. Where the backend has nothing that
// clients cannot set, there is none.
func etag(info mounts.Info) string {
	if info.Tag != "" {
		return strconv.Quote(info.Tag)
	}
	if info.Change == 0 {
		return ""
	}
	var buf [64]byte
	b := append(buf[:0], '"')
	b = strconv.AppendUint(b, info.ID, 36)
	b = append(b, '-')
	b = strconv.AppendInt(b, info.Change, 36)
	b = append(b, '-')
	b = strconv.AppendInt(b, info.Size, 36)
	return string(append(b, '"'))
}

// etag is etag, or else made of the time and size that a backend across a network tells. When the time could still be that of the next change,
// too, as what the cache knows was asked for, there is none (RFC 9110 §8.8.2.2 has the same rule for times as validators).
func (o *op) etag(info mounts.Info) string {
	tag := etag(info)
	if tag != "" || info.ModTime.IsZero() || o.m == nil || !o.m.features.Remote {
		return tag
	}
	if age := o.env.Time.Sub(info.ModTime); age < 2*max(o.m.features.ModTimeGrain, time.Second)+o.m.chain.age {
		return ""
	}
	return `"t` + strconv.FormatInt(info.ModTime.UnixNano(), 36) + "-" + strconv.FormatInt(info.Size, 36) + `"`
}

// reserved reports whether a segment of the path is the gateway's own.
func reserved(path string) bool {
	for path != "" {
		var name string
		if name, path, _ = strings.Cut(path, "/"); mounts.Reserved(name) {
			return true
		}
	}
	return false
}
