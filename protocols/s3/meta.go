package s3

import (
	"encoding/json"
	"net/http"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// Properties of nodes that are ours.
const (
	space      = "urn:cellgate:s3"
	propMeta   = "object" // metadata and content headers
	propTags   = "tags"
	propParts  = "parts"  // of what came in parts
	propFolder = "folder" // "implied": made on the way to a key
	implied    = "implied"
)

// maxMeta is how many bytes of user metadata an object can have, and maxHeader those of one content header.
const (
	maxMeta   = 2 << 10
	maxHeader = 1 << 10
)

// meta is what S3 keeps with an object. JSON as Go writes it has neither "<" nor "&", so it is fit for a WebDAV property.
type meta struct {
	Of          string            `json:"of"` // see bound
	Type        string            `json:"type,omitempty"`
	Encoding    string            `json:"encoding,omitempty"`
	Disposition string            `json:"disposition,omitempty"`
	Language    string            `json:"language,omitempty"`
	Cache       string            `json:"cache,omitempty"`
	Expires     string            `json:"expires,omitempty"`
	User        map[string][]byte `json:"user,omitempty"` // lower-case names without "x-amz-meta-"; values are bytes in no certain encoding
}

const userPrefix = "X-Amz-Meta-"

// metaOf reads the metadata that a request gives its object. name is where it will lie.
func metaOf(hd http.Header, name string) (m meta, err error) {
	m.Type, m.Disposition, m.Language = hd.Get("Content-Type"), hd.Get("Content-Disposition"), hd.Get("Content-Language")
	m.Cache, m.Expires, m.Encoding = hd.Get("Cache-Control"), hd.Get("Expires"), encodings(hd["Content-Encoding"])
	for _, v := range []string{m.Type, m.Disposition, m.Language, m.Cache, m.Expires, m.Encoding} {
		if len(v) > maxHeader {
			return m, refuse(errMetadata)
		}
	}
	size := 0
	for name, values := range hd {
		if len(name) <= len(userPrefix) || name[:len(userPrefix)] != userPrefix {
			continue
		}
		if m.User == nil {
			m.User = make(map[string][]byte)
		}
		key, value := strings.ToLower(name[len(userPrefix):]), strings.Join(values, ",")
		if size += len(key) + len(value); size > maxMeta {
			return m, refuse(errMetadata)
		}
		m.User[key] = []byte(value)
	}
	if m.Type == gateway.TypeByName(name) {
		m.Type = ""
	}
	return m, nil
}

// encodings joins content codings, without that of the transfer.
func encodings(values []string) string {
	var kept []string
	for v := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if v = strings.TrimSpace(v); v != "" && !strings.EqualFold(v, "aws-chunked") {
			kept = append(kept, v)
		}
	}
	return strings.Join(kept, ", ")
}

func (m meta) empty() bool {
	return m.Type+m.Encoding+m.Disposition+m.Language+m.Cache+m.Expires == "" && len(m.User) == 0
}

// set writes the metadata of an object called name as headers.
func (m meta) set(hd http.Header, name string) {
	kind := m.Type
	if kind == "" {
		kind = gateway.TypeByName(name)
	}
	hd["Content-Type"] = []string{kind}
	for _, v := range [...]struct{ name, value string }{
		{"Content-Encoding", m.Encoding}, {"Content-Disposition", m.Disposition}, {"Content-Language", m.Language}, {"Cache-Control", m.Cache}, {"Expires", m.Expires},
	} {
		if v.value != "" {
			hd[v.name] = []string{v.value}
		}
	}
	for name, value := range m.User {
		hd["x-amz-meta-"+name] = []string{string(value)} // in lower case, as Amazon: clients take the name as it comes
	}
}

// tagging are the tags of an object.
type tagging struct {
	Of   string `json:"of"`
	Tags []tag  `json:"tags"`
}

type tag struct {
	Key   string `xml:"Key" json:"k"`
	Value string `xml:"Value" json:"v"`
}

// change returns the property that says v, or its removal for a nil v.
func change(name string, v any) gateway.PropChange {
	c := gateway.PropChange{Prop: gateway.Prop{Space: space, Name: name}, Remove: v == nil}
	if v != nil {
		c.Value, _ = json.Marshal(v) // of strings and numbers: it cannot fail
	}
	return c
}

// described is what a request gives a new content besides its bytes.
type described struct {
	Meta meta  `json:"meta"`
	Tags []tag `json:"tags,omitempty"`
}

// describe reads the metadata and tags of the request's headers.
func (q *request) describe(p gateway.Path) (d described, err error) {
	if d.Meta, err = metaOf(q.r.Header, p.Base()); err != nil {
		return d, err
	}
	d.Tags, err = tagsOf(q.r.Header.Get("X-Amz-Tagging"))
	return d, err
}

// props are the properties that publish d with the content called id.
func (d described) props(id string) (all []gateway.PropChange) {
	if !d.Meta.empty() {
		d.Meta.Of = id
		all = append(all, change(propMeta, d.Meta))
	}
	if len(d.Tags) > 0 {
		all = append(all, change(propTags, tagging{id, d.Tags}))
	}
	return all
}

// kept is what is kept with a node.
type kept struct {
	meta    meta
	tags    []tag
	parts   *partSizes
	put     bool // a folder: it was put as a key
	implied bool // a folder: it was made on the way to a key
}

// keptOf reads our properties of a node. Those of another content than the present one are void.
func keptOf(i gateway.Info, all []gateway.Prop) (k kept) {
	of := folderID
	if !i.Dir {
		of = bound(i)
	}
	for _, p := range all {
		if p.Space != space {
			continue
		}
		switch p.Name {
		case propMeta:
			var m meta
			if json.Unmarshal(p.Value, &m) == nil && m.Of == of {
				k.meta, k.put = m, true
			}
		case propTags:
			var t tagging
			if json.Unmarshal(p.Value, &t) == nil && t.Of == of {
				k.tags = t.Tags
			}
		case propParts:
			var s partSizes
			if json.Unmarshal(p.Value, &s) == nil && s.Of == of {
				k.parts = &s
			}
		case propFolder:
			k.implied = i.Dir && string(p.Value) == `"`+implied+`"`
		}
	}
	return k
}

// folderID is what properties of a folder say that they are of.
const folderID = "folder"

// kept reads our properties of a node that was looked up before.
func (q *request) kept(i gateway.Info) (kept, error) {
	props, err := q.s.Props(q.ctx(), i.Path)
	if err != nil && fault.KindOf(err) != fault.Denied { // who may read but not look learns nothing beside the content
		return kept{}, err
	}
	return keptOf(i, props), nil
}
