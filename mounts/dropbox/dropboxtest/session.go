package dropboxtest

import (
	"sync"
)

// session is an upload in several requests.
type session struct {
	concurrent bool

	mu     sync.Mutex
	data   []byte           // of a sequential one; guarded by mu, as all below
	parts  map[int64][]byte // of a concurrent one, by offset
	end    int64            // of a concurrent one that is closed
	closed bool
	done   bool
}

type sessionCursor struct {
	ID     string `json:"session_id"`
	Offset int64  `json:"offset"`
}

func sessionStart(c *exchange) (any, *problem) {
	var arg struct {
		Close       bool   `json:"close"`
		Type        mode   `json:"session_type"`
		ContentHash string `json:"content_hash"`
	}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	data, _, p := c.body(arg.ContentHash)
	if p != nil {
		return nil, p
	}
	n := &session{concurrent: arg.Type.Tag == "concurrent", data: data, closed: arg.Close, parts: map[int64][]byte{}}
	switch {
	case n.concurrent && len(data) > 0:
		return nil, conflict("concurrent_session_data_not_allowed")
	case n.concurrent && arg.Close:
		return nil, conflict("concurrent_session_close_not_allowed")
	}
	id := "pid_upload_session:" + random() + random()
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.s.sessions[id] = n
	return map[string]string{"session_id": id}, nil
}

// session finds the one that a cursor names.
func (s *Service) session(id string) (*session, *problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sessions[id]
	if n == nil {
		return nil, conflict("not_found")
	}
	return n, nil
}

func sessionAppend(c *exchange) (any, *problem) {
	var arg struct {
		Cursor      sessionCursor `json:"cursor"`
		Close       bool          `json:"close"`
		ContentHash string        `json:"content_hash"`
	}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	n, p := c.s.session(arg.Cursor.ID)
	if p != nil {
		return nil, p
	}
	data, _, p := c.body(arg.ContentHash)
	if p != nil {
		return nil, p
	}
	if p := n.add(arg.Cursor.Offset, data, arg.Close); p != nil {
		return nil, p
	}
	return map[string]any{}, nil
}

func (n *session) add(offset int64, data []byte, last bool) *problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	size := int64(len(data))
	if !n.concurrent {
		switch {
		case n.closed:
			return conflict("closed")
		case offset != int64(len(n.data)):
			p := conflict("incorrect_offset")
			p.fields = map[string]any{"correct_offset": len(n.data)}
			return p
		}
		n.data, n.closed = append(n.data, data...), last
		return nil
	}
	switch {
	case offset%block != 0:
		return conflict("concurrent_session_invalid_offset")
	case size%block != 0 && !last:
		return conflict("concurrent_session_invalid_data_size")
	case n.closed && (last || offset+size > n.end): // blocks may arrive after the one that closes
		return conflict("closed")
	}
	n.parts[offset] = data
	if last {
		n.closed, n.end = true, offset+size
	}
	return nil
}

// whole returns the content of a session that is complete.
func (n *session) whole(size int64) ([]byte, *problem) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.done {
		return nil, conflict("lookup_failed/not_found")
	}
	have, data := int64(len(n.data)), n.data
	if n.concurrent {
		if !n.closed {
			return nil, conflict("concurrent_session_not_closed")
		}
		data = make([]byte, 0, n.end)
		for have = 0; have < n.end; have = int64(len(data)) {
			part, ok := n.parts[have]
			if !ok {
				return nil, conflict("concurrent_session_missing_data")
			}
			data = append(data, part...)
		}
	}
	if size != have {
		p := conflict("lookup_failed/incorrect_offset")
		p.fields = map[string]any{"correct_offset": have}
		return nil, p
	}
	return data, nil
}

// finishArg is the argument of finish.
type finishArg struct {
	Cursor      sessionCursor `json:"cursor"`
	Commit      commit        `json:"commit"`
	ContentHash string        `json:"content_hash"`
}

func sessionFinish(c *exchange) (any, *problem) {
	arg := finishArg{Commit: commit{Mode: mode{Tag: "add"}}}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	n, p := c.s.session(arg.Cursor.ID)
	if p != nil {
		return nil, p.below("lookup_failed")
	}
	data, _, p := c.body(arg.ContentHash)
	if p != nil {
		return nil, p
	}
	if len(data) > 0 {
		if n.concurrent {
			return nil, conflict("concurrent_session_data_not_allowed")
		}
		if p := n.add(arg.Cursor.Offset, data, true); p != nil {
			return nil, p.below("lookup_failed")
		}
		arg.Cursor.Offset += int64(len(data))
	}
	file, p := c.s.finish(n, arg)
	if p != nil {
		return nil, p
	}
	return file.metadata(false), nil
}

// finish publishes a session.
func (s *Service) finish(n *session, arg finishArg) (*node, *problem) {
	data, p := n.whole(arg.Cursor.Offset)
	if p != nil {
		return nil, p
	}
	file, p := s.tree.write(arg.Commit, data, ContentHash(data))
	if p != nil {
		return nil, p.below("path")
	}
	n.mu.Lock()
	n.done, n.data, n.parts = true, nil, nil
	n.mu.Unlock()
	s.mu.Lock()
	delete(s.sessions, arg.Cursor.ID)
	s.mu.Unlock()
	return file, nil
}

func sessionFinishBatch(c *exchange) (any, *problem) {
	var arg struct {
		Entries []finishArg `json:"entries"`
	}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	results := []any{}
	for _, e := range arg.Entries {
		if e.Commit.Mode.Tag == "" {
			e.Commit.Mode.Tag = "add"
		}
		n, p := c.s.session(e.Cursor.ID)
		if p != nil {
			p = p.below("lookup_failed")
		}
		var file *node
		if p == nil {
			file, p = c.s.finish(n, e)
		}
		if p != nil {
			results = append(results, map[string]any{".tag": "failure", "failure": p.union()})
			continue
		}
		m := file.metadata(false)
		m[".tag"] = "success"
		results = append(results, m)
	}
	return map[string]any{"entries": results}, nil
}
