package s3

import (
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// item is a line of a listing: a key, or a common prefix.
type item struct {
	key    string
	common bool
	entry  entry // of a key
}

// walk goes through the keys of a bucket in order.
type walk struct {
	q         *request
	bucket    gateway.Path
	prefix    string
	delimiter string
	after     string // only what is behind it
	resumed   string // where a page before ended: listings on the way to it may be remembered ones
	stack     []frame
}

// frame is a folder on the way down.
type frame struct {
	path   gateway.Path
	key    string // with which all keys in it begin
	prefix string // of the names that count
	list   *listing
	next   int
	marks  map[string]kept // of folders in it
}

// begin opens the folder that holds all keys with the prefix.
func (w *walk) begin() error {
	bucket, err := w.q.bucketPath()
	if err != nil {
		return err
	}
	w.bucket = bucket
	if len(w.after) > maxKey+1 {
		w.after = w.after[:maxKey+1]
	}
	base, rest := "", w.prefix
	if i := strings.LastIndexByte(w.prefix, '/'); i >= 0 {
		base, rest = w.prefix[:i+1], w.prefix[i+1:]
	}
	p := bucket
	if base != "" {
		if p, _, err = place(bucket, base); err != nil {
			return w.q.bucketThere() // no key begins so
		}
	}
	f := frame{path: p, key: base, prefix: rest}
	err = w.open(&f)
	if err == nil {
		w.stack = append(w.stack, f)
		return nil
	}
	if err = w.q.missing(err); answerTo(err).code == errNoSuchKey.code {
		return nil
	}
	return err
}

// own returns the key of the first folder itself, when that is to be listed.
func (w *walk) own() (item, bool, error) {
	if len(w.stack) == 0 {
		return item{}, false, nil
	}
	f := &w.stack[0]
	if f.key == "" || f.prefix != "" || f.key <= w.after {
		return item{}, false, nil
	}
	info, err := w.q.s.Stat(w.q.ctx(), f.path)
	if err != nil || !info.Dir {
		return item{}, false, nil // it has gone meanwhile
	}
	k, err := w.q.kept(info)
	if err != nil || !(k.put || !k.implied && len(f.list.entries) == 0) {
		return item{}, false, err
	}
	return folderItem(f.key, info.ModTime.UnixNano()), true, nil
}

func folderItem(key string, mtime int64) item {
	e := entry{mtime: mtime, parts: -1, dir: true}
	hex.Decode(e.tag[:], []byte(emptyMD5))
	return item{key: key, entry: e}
}

// position returns w.after as seen from a folder: what of it lies in there, and whether all of the folder lies before it.
func (w *walk) position(key string) (rest string, over bool) {
	if rest, ok := strings.CutPrefix(w.after, key); ok {
		return rest, false
	}
	return "", w.after > key
}

// open reads the listing of a folder.
func (w *walk) open(f *frame) error {
	rest, over := w.position(f.key)
	if over {
		f.list = new(listing)
		return nil
	}
	if f.prefix > rest { // nothing before the prefix counts
		rest = ""
	}
	list, err := w.q.list(f, rest, w.resumed != "" && strings.HasPrefix(w.resumed, f.key))
	if err != nil {
		return err
	}
	f.list, f.next = list, list.seek(rest)
	return nil
}

// list returns the children of a folder in order, from a position on.
func (q *request) list(f *frame, position string, again bool) (*listing, error) {
	l := q.h.listings
	k := listed{q.sub.Login, q.client.Address.String(), f.path, f.prefix}
	if again {
		if list, ok := l.find(k, position); ok {
			// What was seen a moment ago may be told once more only to who may still look there.
			if _, err := q.s.Stat(q.ctx(), f.path); err != nil {
				return nil, err
			}
			return list, nil
		}
	}
	at, err := q.h.cfg.Gateway.Place(q.sub, f.path)
	if err != nil { // a folder of several roots: it is short, and lies in no datasource
		return q.read(f, position, nil)
	}
	r := l.begin(at)
	list, err := q.read(f, position, nil)
	if err != nil {
		l.leave(r)
		return nil, err
	}
	r.listing = *list
	l.keep(k, r)
	return list, nil
}

// read reads the children of a folder, all or those behind a position.
func (q *request) read(f *frame, position string, floor *entry) (*listing, error) {
	c := collector{most: 2 * window, floor: floor}
	for info, err := range q.s.List(q.ctx(), f.path) {
		if err != nil {
			return nil, err
		}
		if !strings.HasPrefix(info.Name, f.prefix) {
			continue
		}
		if c.full() {
			if most := q.h.cfg.Limits.Folder; c.most < most && q.h.listings.grow() {
				defer q.h.listings.shrink()
				c.most = most
			} else {
				c.only(position)
			}
		}
		c.add(entryOf(info))
	}
	c.cut()
	return &c.listing, nil
}

// entryOf keeps of a node what a listing tells.
func entryOf(i gateway.Info) entry {
	e := entry{name: i.Name, size: i.Size, mtime: i.ModTime.UnixNano(), dir: i.Dir}
	if i.ModTime.IsZero() {
		e.mtime = 0
	}
	if i.Dir {
		return e
	}
	tag, parts, dash := strings.Cut(etag(i), "-")
	hex.Decode(e.tag[:], []byte(tag[:min(len(tag), 32)]))
	if e.parts = -1; dash {
		n, _ := strconv.Atoi(parts)
		e.parts = int32(n)
	}
	if k, ok := told(i.Sums); ok {
		e.algo, e.comp = uint8(slices.Index(inOrder, k.algo)+1), k.kind == composite
	}
	return e
}

// etag is the entity tag, without quotes.
func (e *entry) etag() string {
	s := hexOf(e.tag[:])
	if e.parts >= 0 {
		s += "-" + strconv.Itoa(int(e.parts))
	}
	return s
}

// next returns the next line, false at the end.
func (w *walk) next() (item, bool, error) {
	for len(w.stack) > 0 {
		f := &w.stack[len(w.stack)-1]
		if f.next >= len(f.list.entries) {
			if !f.list.more {
				w.stack = w.stack[:len(w.stack)-1]
				continue
			}
			last := f.list.entries[len(f.list.entries)-1]
			if err := w.further(f, last); err != nil {
				return item{}, false, err
			}
			continue
		}
		e := f.list.entries[f.next]
		key := f.key + e.name
		if e.dir {
			key += "/"
		}
		if w.prefix != "" && !strings.HasPrefix(key, w.prefix) {
			f.next++
			continue
		}
		if group, ok := w.group(key); ok {
			f.next++
			if group <= w.after {
				continue
			}
			w.after = group // whatever else begins so is part of it
			return item{key: group, common: true}, true, nil
		}
		f.next++
		if !e.dir {
			if key <= w.after {
				continue
			}
			return item{key: key, entry: e}, true, nil
		}
		it, ok, err := w.descend(f, e, key)
		if ok || err != nil {
			return it, ok, err
		}
	}
	return item{}, false, nil
}

// further reads what follows in a folder that is too large to be remembered.
func (w *walk) further(f *frame, last entry) (err error) {
	f.list, err = w.q.read(f, "", &last)
	f.next = 0
	return err
}

// group returns the common prefix that a key falls under.
func (w *walk) group(key string) (string, bool) {
	if w.delimiter == "" {
		return "", false
	}
	i := strings.Index(key[len(w.prefix):], w.delimiter)
	if i < 0 {
		return "", false
	}
	return key[:len(w.prefix)+i+len(w.delimiter)], true
}

// descend opens a folder, and returns its own key when it is one that is to be listed.
func (w *walk) descend(f *frame, e entry, key string) (item, bool, error) {
	if _, over := w.position(key); over {
		return item{}, false, nil
	}
	mark, err := w.mark(f, e)
	if err != nil {
		return item{}, false, err
	}
	p, err := f.path.Join(e.name)
	if err != nil {
		return item{}, false, nil
	}
	child := frame{path: p, key: key}
	switch err := w.open(&child); {
	case errKind(err, fault.NotExist), errKind(err, fault.NotDir), errKind(err, fault.Denied):
		return item{}, false, nil // gone, or nothing to be seen there
	case err != nil:
		return item{}, false, err
	}
	empty := len(child.list.entries) == 0
	w.stack = append(w.stack, child)
	if key > w.after && (mark.put || !mark.implied && empty) {
		return folderItem(key, e.mtime), true, nil
	}
	return item{}, false, nil
}

// markPage is how many folders are asked for their properties at once.
const markPage = 64

// mark returns what is kept with a folder, and asks for those of the next ones along with it.
func (w *walk) mark(f *frame, e entry) (kept, error) {
	if k, ok := f.marks[e.name]; ok {
		return k, nil
	}
	names := []string{e.name}
	for i := f.next; i < len(f.list.entries) && len(names) < markPage; i++ {
		if c := f.list.entries[i]; c.dir {
			names = append(names, c.name)
		}
	}
	props, err := w.q.s.PropsOf(w.q.ctx(), f.path, names)
	if err != nil {
		return kept{}, err
	}
	f.marks = make(map[string]kept, len(names))
	for _, name := range names {
		f.marks[name] = keptOf(gateway.Info{Dir: true}, props[name])
	}
	return f.marks[e.name], nil
}
