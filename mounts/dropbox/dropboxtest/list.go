package dropboxtest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// snapshot is a listing of several pages on its way.
type snapshot struct{ paths []string }

// cursor says where a client stands: in a snapshot, and then in the journal.
type cursor struct {
	Path      string // in lower case
	Recursive bool
	Deleted   bool // deleted entries are wanted on the first pages too
	Limit     int
	List      int64 // of the snapshot, 0: done with it
	At        int   // in the snapshot
	Seq       int64 // in the journal
	Epoch     int
}

const listsMost = 2000

func (c cursor) String() string {
	b, _ := json.Marshal(c)
	return base64.RawURLEncoding.EncodeToString(b)
}

// covers reports whether a change is of interest to the cursor.
func (c cursor) covers(lower string) bool {
	rest, ok := strings.CutPrefix(lower, c.Path+"/")
	return ok && (c.Recursive || !strings.Contains(rest, "/"))
}

// listArg is the argument of list_folder.
type listArg struct {
	Path           string `json:"path"`
	Recursive      bool   `json:"recursive"`
	IncludeDeleted bool   `json:"include_deleted"`
	Limit          *int   `json:"limit"`
}

// folder decodes the argument and finds the folder. It returns the lock held when there is no problem.
func (c *exchange) folder() (*node, cursor, *problem) {
	var arg listArg
	if p := c.into(&arg); p != nil {
		return nil, cursor{}, p
	}
	limit := c.s.cfg.Page
	if arg.Limit != nil {
		if *arg.Limit < 1 || *arg.Limit > 2000 {
			return nil, cursor{}, malformed(c.route, "limit: is not between 1 and 2000")
		}
		limit = min(limit, *arg.Limit)
	}
	if arg.Path == "/" || arg.Path != "" && !strings.HasPrefix(arg.Path, "/") {
		return nil, cursor{}, malformed(c.route, "path: Specify the root folder as an empty string rather than as \"/\".")
	}
	t := c.s.tree
	t.mu.Lock()
	n := t.nodes[""]
	if arg.Path != "" {
		var p *problem
		if n, p = t.find(arg.Path); p == nil && !n.dir {
			p = conflict("not_folder")
		}
		if p != nil {
			t.mu.Unlock()
			return nil, cursor{}, p.below("path")
		}
	}
	cur := cursor{Path: n.lower, Recursive: arg.Recursive, Deleted: arg.IncludeDeleted, Limit: limit, Seq: t.first + int64(len(t.journal)), Epoch: t.epoch}
	return n, cur, nil
}

func listFolder(c *exchange) (any, *problem) {
	n, cur, p := c.folder()
	if p != nil {
		return nil, p
	}
	t := c.s.tree
	defer t.mu.Unlock()
	list := &snapshot{}
	if cur.Recursive {
		t.walk(n, func(n *node) { list.paths = append(list.paths, n.lower) })
	} else {
		for _, child := range t.sorted(n) {
			list.paths = append(list.paths, child.lower)
		}
	}
	t.listIDs++
	cur.List = t.listIDs
	t.lists[cur.List] = list
	delete(t.lists, cur.List-listsMost)
	return t.page(cur), nil
}

func latestCursor(c *exchange) (any, *problem) {
	_, cur, p := c.folder()
	if p != nil {
		return nil, p
	}
	defer c.s.tree.mu.Unlock()
	return map[string]string{"cursor": cur.String()}, nil
}

// cursor decodes the cursor in the argument, and returns the lock held when there is no problem.
func (c *exchange) cursor() (cursor, *problem) {
	var arg struct {
		Cursor string `json:"cursor"`
	}
	if p := c.into(&arg); p != nil {
		return cursor{}, p
	}
	var cur cursor
	b, err := base64.RawURLEncoding.DecodeString(arg.Cursor)
	if err != nil || json.Unmarshal(b, &cur) != nil {
		return cur, malformed(c.route, "cursor: Invalid \"cursor\" parameter")
	}
	t := c.s.tree
	t.mu.Lock()
	if cur.Epoch != t.epoch || cur.Seq < t.first || cur.List != 0 && t.lists[cur.List] == nil {
		t.mu.Unlock()
		return cur, conflict("reset")
	}
	return cur, nil
}

func listContinue(c *exchange) (any, *problem) {
	cur, p := c.cursor()
	if p != nil {
		return nil, p
	}
	t := c.s.tree
	defer t.mu.Unlock()
	if n := t.nodes[cur.Path]; n == nil || !n.dir {
		return nil, conflict("path/not_found")
	}
	return t.page(cur), nil
}

// page returns the entries at the cursor: first what the folder held, then what has changed since. The caller holds mu.
func (t *tree) page(cur cursor) map[string]any {
	entries := []any{}
	if cur.List != 0 {
		paths := t.lists[cur.List].paths
		for ; cur.At < len(paths) && len(entries) < cur.Limit; cur.At++ {
			if n := t.nodes[paths[cur.At]]; n != nil { // what has gone comes with the journal, as deleted
				entries = append(entries, n.metadata(true))
			}
		}
		if cur.At < len(paths) {
			return map[string]any{"entries": entries, "cursor": cur.String(), "has_more": true}
		}
		cur.List, cur.At = 0, 0
	}
	end := t.first + int64(len(t.journal))
	for ; cur.Seq < end && len(entries) < cur.Limit; cur.Seq++ {
		line := t.journal[cur.Seq-t.first]
		if !cur.covers(line.lower) {
			continue
		}
		if n := t.nodes[line.lower]; n != nil && !line.gone {
			entries = append(entries, n.metadata(true))
		} else if n == nil {
			_, base := split(line.display)
			entries = append(entries, map[string]any{".tag": "deleted", "name": base, "path_lower": line.lower, "path_display": line.display})
		}
	}
	return map[string]any{"entries": entries, "cursor": cur.String(), "has_more": cur.Seq < end}
}

// pending reports whether there is something at the cursor. The caller holds mu.
func (t *tree) pending(cur cursor) bool {
	if cur.List != 0 {
		return true
	}
	for seq := cur.Seq; seq < t.first+int64(len(t.journal)); seq++ {
		if cur.covers(t.journal[seq-t.first].lower) {
			return true
		}
	}
	return false
}

func longpoll(c *exchange) (any, *problem) {
	var arg struct {
		Timeout *int `json:"timeout"`
	}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	timeout := 30 * time.Second
	if arg.Timeout != nil {
		if *arg.Timeout < 30 || *arg.Timeout > 480 {
			return nil, malformed(c.route, "timeout: is not between 30 and 480")
		}
		timeout = time.Duration(*arg.Timeout) * time.Second
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		cur, p := c.cursor()
		if p != nil {
			return nil, p
		}
		t := c.s.tree
		found, changed := t.pending(cur), t.changed
		t.mu.Unlock()
		result := map[string]any{"changes": found}
		if c.s.cfg.Backoff > 0 {
			result["backoff"] = c.s.cfg.Backoff
		}
		if found {
			return result, nil
		}
		select {
		case <-changed:
		case <-deadline.C:
			return result, nil
		case <-c.r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-c.s.stop:
			panic(http.ErrAbortHandler)
		}
	}
}

// wait sleeps unless the request or the service ends.
func wait(r *http.Request, stop <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	case <-stop:
	}
}
