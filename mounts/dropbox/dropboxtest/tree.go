package dropboxtest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// tree is what a Dropbox holds. Its keys are paths in lower case; the root is "".
type tree struct {
	quota int64

	mu       sync.Mutex
	nodes    map[string]*node            // guarded by mu, as all below
	children map[string]map[string]*node // of folders, by path
	used     int64
	ids      int64
	revs     int64
	journal  []change
	first    int64         // number of the first change of the journal
	changed  chan struct{} // closed with the next change
	lists    map[int64]*snapshot
	listIDs  int64
	epoch    int // of cursors: others are lost
}

// node is a file or folder. It is replaced, not changed, so what one has read stays.
type node struct {
	name     string // as it was made
	display  string // the whole path
	lower    string
	dir      bool
	id       string
	rev      string
	data     []byte
	hash     string
	modified time.Time // client_modified
	server   time.Time
	link     string // a symbolic link that a desktop made
	export   bool   // a document of another service
}

// change is a line of the journal.
type change struct {
	lower, display string
	gone           bool
}

const journalMost = 200_000

func newTree(quota int64) *tree {
	t := &tree{
		quota: quota, nodes: map[string]*node{}, children: map[string]map[string]*node{}, changed: make(chan struct{}), lists: map[int64]*snapshot{},
	}
	t.nodes[""] = &node{dir: true}
	t.children[""] = map[string]*node{}
	return t
}

func split(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	return path[:i], path[i+1:]
}

// check says what is wrong with a path of a write, or of a read.
func check(path string) *problem {
	for segment := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if segment == "" || segment == "." || segment == ".." || utf8.RuneCountInString(segment) > 255 || strings.HasSuffix(segment, " ") ||
			strings.ContainsFunc(segment, func(r rune) bool { return r < ' ' || r == '\\' || r == 0x7f }) {
			return conflict("malformed_path")
		}
	}
	return nil
}

// disallowed are the names that Dropbox's own clients use or leave out.
func disallowed(base string) bool {
	base = strings.ToLower(base)
	return slices.Contains([]string{"desktop.ini", "thumbs.db", ".ds_store", "icon\r", ".dropbox", ".dropbox.attr", ".dropbox.cache"}, base) ||
		strings.HasPrefix(base, "~$") || strings.HasPrefix(base, ".~") || strings.HasPrefix(base, "~") && strings.HasSuffix(base, ".tmp")
}

// writable checks a path that is to be written, and what is above it. The caller holds mu.
func (t *tree) writable(path string) *problem {
	if p := check(path); p != nil {
		return p
	}
	if _, base := split(path); disallowed(base) {
		return conflict("disallowed_name")
	}
	for dir, _ := split(path); dir != ""; dir, _ = split(dir) {
		if n := t.nodes[strings.ToLower(dir)]; n != nil {
			if !n.dir {
				return conflict("conflict/file_ancestor")
			}
			return nil
		}
	}
	return nil
}

func (t *tree) newID() string  { t.ids++; return fmt.Sprintf("id:%022d", t.ids) }
func (t *tree) newRev() string { t.revs++; return fmt.Sprintf("0157%011x", t.revs) }

// enter puts n at path, making the folders above. The caller holds mu and has checked.
func (t *tree) enter(path string, n *node) *node {
	dir, base := split(path)
	parent := t.nodes[strings.ToLower(dir)]
	if parent == nil {
		parent = t.enter(dir, &node{dir: true, id: t.newID()})
	}
	n.name, n.display = base, parent.display+"/"+base
	n.lower = strings.ToLower(path)
	if old := t.nodes[n.lower]; old != nil {
		n.name, n.display = old.name, old.display // the name keeps its case
		t.used -= int64(len(old.data))
	}
	t.used += int64(len(n.data))
	t.nodes[n.lower] = n
	t.children[parent.lower][n.lower] = n
	if n.dir && t.children[n.lower] == nil {
		t.children[n.lower] = map[string]*node{}
	}
	t.note(n, false)
	return n
}

// leave takes n and all below it away. The caller holds mu.
func (t *tree) leave(n *node) {
	for _, child := range t.sorted(n) {
		t.leave(child)
	}
	dir, _ := split(n.lower)
	delete(t.nodes, n.lower)
	delete(t.children[dir], n.lower)
	delete(t.children, n.lower)
	t.used -= int64(len(n.data))
	t.note(n, true)
}

// sorted returns the children of n by path. The caller holds mu.
func (t *tree) sorted(n *node) []*node {
	all := make([]*node, 0, len(t.children[n.lower]))
	for _, child := range t.children[n.lower] {
		all = append(all, child)
	}
	slices.SortFunc(all, func(a, b *node) int { return strings.Compare(a.lower, b.lower) })
	return all
}

// walk calls do with what is below n, folders first. The caller holds mu.
func (t *tree) walk(n *node, do func(*node)) {
	for _, child := range t.sorted(n) {
		do(child)
		t.walk(child, do)
	}
}

// note writes the journal and wakes who waits for changes. The caller holds mu.
func (t *tree) note(n *node, gone bool) {
	t.journal = append(t.journal, change{n.lower, n.display, gone})
	if over := len(t.journal) - journalMost; over > journalMost/10 {
		t.journal = slices.Clone(t.journal[over:])
		t.first += int64(over)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// commit is what upload and the end of a session do.
type commit struct {
	Path           string `json:"path"`
	Mode           mode   `json:"mode"`
	Autorename     bool   `json:"autorename"`
	ClientModified string `json:"client_modified"`
	StrictConflict bool   `json:"strict_conflict"`
}

// write puts a file where commit says.
func (t *tree) write(c commit, data []byte, hash string) (*node, *problem) {
	modified := time.Now().UTC().Truncate(time.Second)
	if c.ClientModified != "" {
		var err error
		if modified, err = time.Parse("2006-01-02T15:04:05Z", c.ClientModified); err != nil {
			return nil, malformed("files/upload", "client_modified: "+err.Error())
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.writable(c.Path); p != nil {
		return nil, p
	}
	path := c.Path
	old := t.nodes[strings.ToLower(path)]
	id := ""
	if no := clash(old, c, hash); no != nil {
		if !c.Autorename {
			return nil, no
		}
		path, old = t.free(path), nil
	} else if old != nil && old.hash == hash && old.link == "" {
		return old, nil // equal content makes no revision
	} else if old != nil {
		id = old.id
	}
	grow := int64(len(data))
	if old != nil {
		grow -= int64(len(old.data))
	}
	if t.quota > 0 && t.used+grow > t.quota {
		return nil, conflict("insufficient_space")
	}
	if id == "" {
		id = t.newID()
	}
	return t.enter(path, &node{id: id, rev: t.newRev(), data: data, hash: hash, modified: modified, server: time.Now().UTC()}), nil
}

// clash says whether what is there forbids a write.
func clash(old *node, c commit, hash string) *problem {
	switch {
	case old != nil && old.dir:
		return conflict("conflict/folder")
	case c.Mode.Tag == "update" && (old == nil && c.StrictConflict || old != nil && old.rev != c.Mode.Update):
		return conflict("conflict/file")
	case c.Mode.Tag == "add" && old != nil && (c.StrictConflict || old.hash != hash):
		return conflict("conflict/file")
	}
	return nil
}

// free returns a name like path that nobody has. The caller holds mu.
func (t *tree) free(path string) string {
	dir, base := split(path)
	stem, ext := base, ""
	if i := strings.LastIndexByte(base, '.'); i > 0 {
		stem, ext = base[:i], base[i:]
	}
	for i := 1; ; i++ {
		next := fmt.Sprintf("%s/%s (%d)%s", dir, stem, i, ext)
		if t.nodes[strings.ToLower(next)] == nil {
			return next
		}
	}
}

// mkdir makes a folder.
func (t *tree) mkdir(path string, autorename bool) (*node, *problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.writable(path); p != nil {
		return nil, p
	}
	if old := t.nodes[strings.ToLower(path)]; old != nil {
		switch {
		case autorename:
			path = t.free(path)
		case old.dir:
			return nil, conflict("conflict/folder")
		default:
			return nil, conflict("conflict/file")
		}
	}
	return t.enter(path, &node{dir: true, id: t.newID()}), nil
}

// relocate moves or copies a node with all below it.
func (t *tree) relocate(from, to string, copied, autorename bool) (*node, *problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := check(from); p != nil {
		return nil, p.below("from_lookup")
	}
	source := t.nodes[strings.ToLower(from)]
	if source == nil || source.lower == "" {
		return nil, conflict("from_lookup/not_found")
	}
	if p := t.writable(to); p != nil {
		return nil, p.below("to")
	}
	lower := strings.ToLower(to)
	if source.dir && strings.HasPrefix(lower, source.lower+"/") {
		return nil, conflict("cant_move_folder_into_itself")
	}
	if lower == source.lower && !copied {
		return source, nil // and the case stays as it is, as with the real one
	}
	if old := t.nodes[lower]; old != nil {
		switch {
		case autorename:
			to = t.free(to)
		case old.dir:
			return nil, conflict("to/conflict/folder")
		default:
			return nil, conflict("to/conflict/file")
		}
	}
	var all []*node
	var size int64
	all = append(all, source)
	t.walk(source, func(n *node) { all = append(all, n); size += int64(len(n.data)) })
	if copied && t.quota > 0 && t.used+size+int64(len(source.data)) > t.quota {
		return nil, conflict("insufficient_quota")
	}
	if !copied {
		t.leave(source)
	}
	for _, n := range all {
		next := *n
		if !n.dir {
			next.rev = t.newRev()
		}
		if copied {
			next.id = t.newID()
		}
		t.enter(to+n.display[len(source.display):], &next)
	}
	return t.nodes[strings.ToLower(to)], nil
}

// remove deletes a node with all below it.
func (t *tree) remove(path, parentRev string) (*node, *problem) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, p := t.find(path)
	if p != nil {
		return nil, p.below("path_lookup")
	}
	if parentRev != "" && parentRev != n.rev {
		return nil, conflict("path_write/conflict/file")
	}
	t.leave(n)
	return n, nil
}

// find returns the node at path, which is not the root. The caller holds mu.
func (t *tree) find(path string) (*node, *problem) {
	if id, ok := strings.CutPrefix(path, "id:"); ok {
		for _, n := range t.nodes {
			if n.id == "id:"+id {
				return n, nil
			}
		}
		return nil, conflict("not_found")
	}
	if p := check(path); p != nil {
		return nil, p
	}
	if n := t.nodes[strings.ToLower(path)]; n != nil {
		return n, nil
	}
	return nil, conflict("not_found")
}
