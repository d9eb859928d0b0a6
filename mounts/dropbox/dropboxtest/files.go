package dropboxtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf16"
)

// mode is the union WriteMode: a word, or a word with a revision.
type mode struct{ Tag, Update string }

// UnmarshalJSON takes both forms.
func (m *mode) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &m.Tag) == nil {
		return nil
	}
	var full struct {
		Tag    string `json:".tag"`
		Update string `json:"update"`
	}
	err := json.Unmarshal(b, &full)
	m.Tag, m.Update = full.Tag, full.Update
	return err
}

// metadata returns n as Dropbox tells of it, with its tag where it is one of several kinds.
func (n *node) metadata(tagged bool) map[string]any {
	m := map[string]any{"name": n.name, "path_lower": n.lower, "path_display": n.display, "id": n.id}
	tag := "folder"
	if !n.dir {
		tag = "file"
		m["rev"], m["size"], m["content_hash"], m["is_downloadable"] = n.rev, len(n.data), n.hash, !n.export
		m["client_modified"], m["server_modified"] = n.modified.Format("2006-01-02T15:04:05Z"), n.server.Format("2006-01-02T15:04:05Z")
		if n.link != "" {
			m["symlink_info"] = map[string]string{"target": n.link}
		}
		if n.export {
			m["export_info"] = map[string]string{"export_as": "html"}
		}
	}
	if tagged {
		m[".tag"] = tag
	}
	return m
}

// pathArg is the argument of calls about one path.
type pathArg struct {
	Path       string `json:"path"`
	Autorename bool   `json:"autorename"`
	ParentRev  string `json:"parent_rev"`
}

// path decodes it. The root is nothing that can be named here.
func (c *exchange) path() (pathArg, *problem) {
	var arg pathArg
	if p := c.into(&arg); p != nil {
		return arg, p
	}
	if !strings.HasPrefix(arg.Path, "/") && !strings.HasPrefix(arg.Path, "id:") {
		return arg, malformed(c.route, fmt.Sprintf("path: %q did not match pattern '(/(.|[\\r\\n])*|id:.*)|(rev:[0-9a-f]{9,})|(ns:[0-9]+(/.*)?)'", arg.Path))
	}
	return arg, nil
}

func getMetadata(c *exchange) (any, *problem) {
	arg, p := c.path()
	if p != nil {
		return nil, p
	}
	t := c.s.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	n, p := t.find(arg.Path)
	if p != nil {
		return nil, p.below("path")
	}
	return n.metadata(true), nil
}

func createFolder(c *exchange) (any, *problem) {
	arg, p := c.path()
	if p != nil {
		return nil, p
	}
	n, p := c.s.tree.mkdir(arg.Path, arg.Autorename)
	if p != nil {
		return nil, p.below("path")
	}
	return map[string]any{"metadata": n.metadata(false)}, nil
}

func deleteNode(c *exchange) (any, *problem) {
	arg, p := c.path()
	if p != nil {
		return nil, p
	}
	n, p := c.s.tree.remove(arg.Path, arg.ParentRev)
	if p != nil {
		return nil, p
	}
	return map[string]any{"metadata": n.metadata(true)}, nil
}

func move(c *exchange) (any, *problem)     { return c.relocate(false) }
func copyNode(c *exchange) (any, *problem) { return c.relocate(true) }

func (c *exchange) relocate(copied bool) (any, *problem) {
	var arg struct {
		From       string `json:"from_path"`
		To         string `json:"to_path"`
		Autorename bool   `json:"autorename"`
	}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	if !strings.HasPrefix(arg.From, "/") || !strings.HasPrefix(arg.To, "/") {
		return nil, malformed(c.route, "from_path: did not match pattern")
	}
	n, p := c.s.tree.relocate(arg.From, arg.To, copied, arg.Autorename)
	if p != nil {
		return nil, p
	}
	return map[string]any{"metadata": n.metadata(true)}, nil
}

func download(c *exchange) (any, *problem) {
	arg, p := c.path()
	if p != nil {
		return nil, p
	}
	t := c.s.tree
	t.mu.Lock()
	n, p := t.find(arg.Path)
	t.mu.Unlock()
	switch {
	case p != nil:
		return nil, p.below("path")
	case n.dir:
		return nil, conflict("path/not_file")
	case n.export:
		return nil, conflict("unsupported_file")
	}
	result, err := json.Marshal(n.metadata(false))
	if err != nil {
		panic(err)
	}
	h := c.w.Header()
	h.Set("Dropbox-API-Result", escaped(string(result)))
	h.Set("Content-Type", "application/octet-stream")
	h.Set("ETag", `W/"`+n.rev+`"`)
	// What ServeContent makes of Range is what Dropbox does: 206 with Content-Range, 416 beyond the end.
	r := c.r.Clone(c.r.Context())
	r.Method = http.MethodGet
	http.ServeContent(c.w, r, "", time.Time{}, bytes.NewReader(n.data))
	return nil, nil
}

// escaped makes JSON fit for a header.
func escaped(s string) string {
	var out strings.Builder
	for _, unit := range utf16.Encode([]rune(s)) {
		if unit < 0x7f {
			out.WriteByte(byte(unit))
		} else {
			fmt.Fprintf(&out, `\u%04x`, unit)
		}
	}
	return out.String()
}

// body reads what is uploaded and compares it with the digest in the argument.
func (c *exchange) body(hash string) (data []byte, have string, p *problem) {
	limit := c.s.cfg.UploadLimit
	if c.r.ContentLength > limit {
		return nil, "", conflict("payload_too_large")
	}
	if c.r.ContentLength >= 0 {
		data = make([]byte, c.r.ContentLength)
		if _, err := io.ReadFull(c.r.Body, data); err != nil {
			panic(http.ErrAbortHandler) // the client went away
		}
	} else {
		var err error
		if data, err = io.ReadAll(io.LimitReader(c.r.Body, limit+1)); err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if int64(len(data)) > limit {
		return nil, "", conflict("payload_too_large")
	}
	have = ContentHash(data)
	if hash != "" && hash != have {
		return nil, "", conflict("content_hash_mismatch")
	}
	return data, have, nil
}

func upload(c *exchange) (any, *problem) {
	arg := struct {
		commit
		ContentHash string `json:"content_hash"`
	}{commit: commit{Mode: mode{Tag: "add"}}}
	if p := c.into(&arg); p != nil {
		return nil, p
	}
	if !strings.HasPrefix(arg.Path, "/") {
		return nil, malformed(c.route, "path: did not match pattern '(/(.|[\\r\\n])*)|(ns:[0-9]+(/.*)?)|(id:.*)'")
	}
	data, hash, p := c.body(arg.ContentHash)
	if p != nil {
		return nil, p
	}
	n, p := c.s.tree.write(arg.commit, data, hash)
	if p != nil {
		p = p.below("path")
		p.reason = true
		return nil, p
	}
	return n.metadata(false), nil
}

func currentAccount(c *exchange) (any, *problem) {
	return map[string]any{
		"account_id": "dbid:AAH4f99T0taONIb-OurWxbNQ6ywGRopQngc", "email": "franz@example.org", "email_verified": true, "disabled": false, "locale": "en",
		"name":          map[string]string{"given_name": "Franz", "surname": "Ferdinand", "familiar_name": "Franz", "display_name": "Franz Ferdinand", "abbreviated_name": "FF"},
		"referral_link": "https://example.org/r", "is_paired": false, "account_type": map[string]string{".tag": "basic"}, "country": "AT",
		"root_info": map[string]string{".tag": "user", "root_namespace_id": "1", "home_namespace_id": "1"},
	}, nil
}

func spaceUsage(c *exchange) (any, *problem) {
	t := c.s.tree
	t.mu.Lock()
	defer t.mu.Unlock()
	allocated := t.quota
	if allocated == 0 {
		allocated = 2 << 40
	}
	return map[string]any{"used": t.used, "allocation": map[string]any{".tag": "individual", "allocated": allocated}}, nil
}
