package fuse

import (
	"hash/fnv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cellgate/gateway"
)

// node is what the kernel knows by a node id: a file, folder or link, whatever it is called by now. What it is stays the same.
type node struct {
	id   uint64
	ino  uint64 // the number that people see: the same through renames and overwriting
	kind uint32 // S_IFREG, S_IFDIR or S_IFLNK

	// Guarded by tree.mu.
	lookups  uint64 // how many of the kernel's references there are
	pins     int    // opens
	names    []name // none: it has lost them all, but for the root
	children map[string]*node
	root     *node // the highest folder above that lies on a datasource, nil when there is none; the node itself may be it
	at       string
	key      key
	gone     bool

	// Of the locks tree.mu is taken first, then this one, then file.mu.
	mu    sync.Mutex
	info  gateway.Info // as last seen, guarded by mu
	ctime time.Time    // of a change made here that the core keeps no time of, guarded by mu
	bare  bool         // its permission bits were set to none, guarded by mu
	tag   string       // of the content that the kernel's cache is of, guarded by mu
	file  *file        // while it is open, guarded by mu
	locks lockList     // guarded by mu
}

// name is a place where a node can be found.
type name struct {
	parent *node
	name   string
}

// key identifies a node of a datasource below one root. The zero key is that of nodes that nothing identifies but their names.
type key struct {
	root uint64
	id   uint64
}

// tree holds the nodes. Nothing waits while mu is held.
type tree struct {
	mu    sync.Mutex
	byID  map[uint64]*node // guarded by mu
	byKey map[key]*node    // guarded by mu
	byIno map[uint64]*node // those without key, guarded by mu
	next  uint64           // node id, guarded by mu
	top   *node
	place func(gateway.Path) (datasource string, ok bool)
}

// maxDepth is how deep paths may be.
const maxDepth = 4096

func newTree(place func(gateway.Path) (string, bool)) *tree {
	top := &node{id: 1, ino: 1, kind: syscall.S_IFDIR, lookups: 1, children: map[string]*node{}}
	return &tree{byID: map[uint64]*node{1: top}, byKey: map[key]*node{}, byIno: map[uint64]*node{}, next: 1, top: top, place: place}
}

// node returns the node with an id, nil when the kernel is not to know it.
func (t *tree) node(id uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// path returns where n is now. It fails with ENOENT when n has no name any more.
func (t *tree) path(n *node) (gateway.Path, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pathOf(n)
}

// pathOf is path for one who holds mu.
func (t *tree) pathOf(n *node) (gateway.Path, error) {
	if n == t.top {
		return gateway.Path{}, nil
	}
	var words []string
	size := 0
	for at := n; at != t.top; {
		if at.gone || len(at.names) == 0 {
			return gateway.Path{}, syscall.ENOENT
		}
		word := at.names[0].name
		words, size, at = append(words, word), size+len(word)+1, at.names[0].parent
		if len(words) > maxDepth {
			return gateway.Path{}, syscall.ENAMETOOLONG
		}
	}
	var b strings.Builder
	b.Grow(size)
	for i := len(words) - 1; i >= 0; i-- {
		b.WriteByte('/')
		b.WriteString(words[i])
	}
	return gateway.ParsePath(b.String())
}

// join returns the path of a child of n. Names that no node can have are reported as POSIX wants it.
func (t *tree) join(n *node, child string) (gateway.Path, error) {
	p, err := t.path(n)
	if err != nil {
		return p, err
	}
	if len(child) > 255 {
		return p, syscall.ENAMETOOLONG
	}
	return p.Join(child)
}

// child returns the node that is known under a name, nil when none is.
func (t *tree) child(parent *node, child string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	return parent.children[child]
}

// inoIn returns the inode number of what is listed in dir with an id and not known yet, 0 when it cannot be told.
func (t *tree) inoIn(dir *node, id uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if dir.root == nil || id == 0 {
		return 0
	}
	return numberIn(dir.at, id)
}

// isGone reports whether n has lost its last name.
func (t *tree) isGone(n *node) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return n.gone
}

func kindOf(i gateway.Info) uint32 {
	switch {
	case i.Dir:
		return syscall.S_IFDIR
	case i.Target != "":
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

// enter returns the node of what info says is under a name, with one more reference of the kernel's, and makes it if it is new. What was
// known under that name and is something else loses it.
func (t *tree) enter(parent *node, child string, info gateway.Info) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.find(parent, child, info)
	n.lookups++
	n.mu.Lock()
	n.info = info
	n.mu.Unlock()
	return n
}

func (t *tree) find(parent *node, child string, info gateway.Info) *node {
	kind := kindOf(info)
	var k key
	if parent.root != nil && info.ID != 0 {
		k = key{parent.root.id, info.ID}
	}
	if c := parent.children[child]; c != nil {
		if c.kind == kind && (c.key == k || c.key == key{} && t.byKey[k] == nil || k == key{}) {
			if c.key != k && k != (key{}) {
				t.setKey(c, k)
			}
			return c
		}
		t.detach(parent, child)
	}
	if n := t.byKey[k]; k != (key{}) && n != nil && n.kind == kind && !t.above(n, parent) {
		if n.kind == syscall.S_IFDIR || info.Links <= 1 {
			for _, other := range n.names { // it was moved, by somebody else
				delete(other.parent.children, other.name)
				t.drop(other.parent)
			}
			n.names = nil
		}
		t.attach(n, parent, child)
		return n
	}
	n := t.make(kind)
	t.attach(n, parent, child)
	if k != (key{}) {
		t.setKey(n, k)
		n.ino = numberIn(parent.at, info.ID)
	} else {
		n.ino = t.inoOf(n)
	}
	return n
}

// above reports whether a is n or a folder above it.
func (t *tree) above(a, n *node) bool {
	for depth := 0; n != nil && depth < maxDepth; depth++ {
		if n == a {
			return true
		}
		if len(n.names) == 0 {
			return false
		}
		n = n.names[0].parent
	}
	return n != nil
}

func (t *tree) make(kind uint32) *node {
	t.next++
	n := &node{id: t.next, kind: kind}
	if kind == syscall.S_IFDIR {
		n.children = map[string]*node{}
	}
	t.byID[n.id] = n
	return n
}

func (t *tree) setKey(n *node, k key) {
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
	if n.key = k; k != (key{}) {
		t.byKey[k] = n
	}
}

// numberIn makes an inode number of the id of a node on a datasource, the same on every mount.
func numberIn(datasource string, id uint64) uint64 { return number(id ^ hash(datasource)) }

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s))
	return h.Sum64()
}

// number makes an inode number of what identifies a node: not one of those that mean something else.
func number(x uint64) uint64 { // splitmix64
	x += 0x9E3779B97F4A7C15
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return max(x^x>>31, 2)
}

// inoOf chooses a number for a node that only its name identifies: the same whenever it is free.
func (t *tree) inoOf(n *node) uint64 {
	p, _ := t.pathOf(n)
	ino := number(hash(p.String()))
	for t.byIno[ino] != nil {
		ino = number(ino)
	}
	t.byIno[ino] = n
	return ino
}

// attach gives n a name.
func (t *tree) attach(n, parent *node, child string) {
	parent.children[child] = n
	n.names = append(n.names, name{parent, child})
	n.gone = false
	t.settle(n, parent)
}

// settle says on which datasource n lies: that of its folder, and of the highest folders of the tree the one the core says.
func (t *tree) settle(n, parent *node) {
	n.root, n.at = parent.root, parent.at
	if parent.root == nil && n.kind == syscall.S_IFDIR {
		if p, err := t.pathOf(n); err == nil {
			if ds, ok := t.place(p); ok {
				n.root, n.at = n, ds
			}
		}
	}
}

// detach takes a name away and returns whose it was, nil when nobody's.
func (t *tree) detach(parent *node, child string) *node {
	n := parent.children[child]
	if n == nil {
		return nil
	}
	delete(parent.children, child)
	for i, at := range n.names {
		if at.parent == parent && at.name == child {
			n.names = append(n.names[:i:i], n.names[i+1:]...)
			break
		}
	}
	if len(n.names) == 0 {
		n.gone = true
		t.setKey(n, key{}) // what comes with the same id is something else
		t.drop(n)
	}
	return n
}

// remove is detach for one who does not hold mu. It returns the node if that was its last name.
func (t *tree) remove(parent *node, child string) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.detach(parent, child); n != nil && n.gone {
		return n
	}
	return nil
}

// move gives the node of one name another one. What had that loses it, and is returned if it was the last.
func (t *tree) move(from *node, old string, to *node, new string) (replaced *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := from.children[old]
	if was := t.detach(to, new); was != nil && was.gone {
		replaced = was
	}
	if n == nil {
		return replaced
	}
	delete(from.children, old)
	for i, at := range n.names {
		if at.parent == from && at.name == old {
			n.names[i] = name{to, new}
		}
	}
	to.children[new] = n
	t.resettle(n, to, 0)
	t.drop(from)
	return replaced
}

// resettle is settle for n and all below it. Between datasources nodes get other ids, so that keys are found anew.
func (t *tree) resettle(n, parent *node, depth int) {
	was := n.root
	t.settle(n, parent)
	if n.root == was || depth > maxDepth {
		return
	}
	t.setKey(n, key{})
	for _, c := range n.children {
		t.resettle(c, n, depth+1)
	}
}

// forget takes references of the kernel's back.
func (t *tree) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	n.lookups -= min(count, n.lookups)
	t.drop(n)
}

// pin keeps n while it is open.
func (t *tree) pin(n *node, by int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n.pins += by
	t.drop(n)
}

// drop forgets n, and folders above it, unless somebody needs them.
func (t *tree) drop(n *node) {
	for n != t.top && n.lookups == 0 && n.pins == 0 && len(n.children) == 0 {
		delete(t.byID, n.id)
		if t.byKey[n.key] == n {
			delete(t.byKey, n.key)
		}
		if t.byIno[n.ino] == n {
			delete(t.byIno, n.ino)
		}
		names := n.names
		n.names, n.gone = nil, true
		if len(names) == 0 {
			return
		}
		for _, at := range names[1:] {
			if at.parent.children[at.name] == n {
				delete(at.parent.children, at.name)
				t.drop(at.parent)
			}
		}
		if at := names[0]; at.parent.children[at.name] == n {
			delete(at.parent.children, at.name)
		}
		n = names[0].parent
	}
}

// below returns n and all that is known below it.
func (t *tree) below(n *node) []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := []*node{n}
	for i := 0; i < len(all); i++ {
		for _, c := range all[i].children {
			all = append(all, c)
		}
	}
	return all
}

// all returns every node the kernel knows.
func (t *tree) all() []*node {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]*node, 0, len(t.byID))
	for _, n := range t.byID {
		all = append(all, n)
	}
	return all
}
