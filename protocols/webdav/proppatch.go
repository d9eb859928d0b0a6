package webdav

import (
	"bytes"
	"context"
	"encoding/xml"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/net/webdav"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// win32Modified is the property by which Windows sets a file's time after it has copied it. It is not kept but carried out.
const win32Modified = "Win32LastModifiedTime"

// proppatch sets and removes dead properties, all or none (RFC 4918 §9.2). The library decodes and answers; the body it gets is one that we
// have read within bounds and written anew, with every namespace and xml:lang at the property itself.
func (q *request) proppatch() error {
	root, err := q.readXML()
	if err != nil {
		return err
	}
	if root == nil || !root.is("propertyupdate") {
		return refuse(http.StatusBadRequest, "body is no DAV:propertyupdate")
	}
	count := 0
	root.lang = ""
	for _, change := range root.elements() {
		change.lang = ""
		for _, prop := range change.elements() {
			prop.lang = ""
			count += len(prop.elements())
		}
	}
	if count > maxProps {
		return refuse(http.StatusRequestEntityTooLarge, "too many properties in one request")
	}
	node := &propNode{q: q}
	var rec recorder
	library := webdav.Handler{FileSystem: propFS{node: node}, LockSystem: coreLocks{}}
	library.ServeHTTP(&rec, (&http.Request{
		Method: "PROPPATCH",
		URL:    &url.URL{Path: q.r.URL.Path},
		Header: make(http.Header),
		Body:   io.NopCloser(bytes.NewReader(appendElement(nil, root))),
	}).WithContext(q.ctx()))
	switch {
	case node.err != nil:
		return node.err
	case rec.status != http.StatusMultiStatus:
		return refuse(rec.status, "body is no DAV:propertyupdate")
	case node.done && q.prefers("return=minimal"): // RFC 8144 §2.1
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	q.w.Header()["Content-Type"] = []string{xmlType}
	q.w.WriteHeader(rec.status)
	_, err = q.w.Write(rec.body.Bytes())
	return err
}

// propFS shows the library the one resource of the request. It calls nothing but Stat and OpenFile for a PROPPATCH; that the resource exists
// is found out by the core, in the same step that changes it.
type propFS struct {
	webdav.FileSystem
	node *propNode
}

func (fs propFS) Stat(context.Context, string) (os.FileInfo, error) { return nil, nil }

func (fs propFS) OpenFile(context.Context, string, int, os.FileMode) (webdav.File, error) {
	return fs.node, nil
}

// coreLocks leaves locks to the core, which asks about them where the change is made. The library sees no If header, so it takes and gives
// back one temporary lock.
type coreLocks struct{ webdav.LockSystem }

func (coreLocks) Create(time.Time, webdav.LockDetails) (string, error) { return "core", nil }
func (coreLocks) Unlock(time.Time, string) error                       { return nil }

// propNode is the resource as the holder of dead properties.
type propNode struct {
	webdav.File
	q    *request
	done bool  // everything was changed as asked
	err  error // the core's refusal
}

var _ webdav.DeadPropsHolder = (*propNode)(nil)

// Close does nothing: nothing is open.
func (n *propNode) Close() error { return nil }

// DeadProps is for PROPFIND, which does not pass here.
func (n *propNode) DeadProps() (map[xml.Name]webdav.Property, error) { return nil, nil }

// Patch changes all properties or none, in the order of the document (RFC 4918 §9.2).
func (n *propNode) Patch(patches []webdav.Proppatch) ([]webdav.Propstat, error) {
	var changes []gateway.PropChange
	var modified time.Time
	changed := webdav.Propstat{Status: http.StatusOK}
	protected := webdav.Propstat{Status: http.StatusForbidden, XMLError: `<D:cannot-modify-protected-property xmlns:D="DAV:"/>`}
	for _, p := range patches {
		for _, prop := range p.Props {
			name := webdav.Property{XMLName: prop.XMLName}
			if liveByName(prop.XMLName) == nil {
				c := gateway.PropChange{Prop: gateway.Prop{Space: prop.XMLName.Space, Name: prop.XMLName.Local}, Remove: p.Remove}
				if !p.Remove {
					c.Value = propElement(prop)
				}
				changes = append(changes, c)
			} else if t, err := http.ParseTime(string(bytes.TrimSpace(prop.InnerXML))); err == nil && !p.Remove && prop.XMLName.Local == win32Modified {
				modified = t
			} else {
				protected.Props = append(protected.Props, name)
				continue
			}
			changed.Props = append(changed.Props, name)
		}
	}
	if len(protected.Props) > 0 {
		changed.Status = http.StatusFailedDependency
		if len(changed.Props) == 0 {
			return []webdav.Propstat{protected}, nil
		}
		return []webdav.Propstat{protected, changed}, nil
	}
	if n.err = n.apply(changes, modified); n.err != nil {
		return nil, n.err
	}
	n.done = true
	return []webdav.Propstat{changed}, nil
}

func (n *propNode) apply(changes []gateway.PropChange, modified time.Time) error {
	if len(changes) > 0 || modified.IsZero() {
		if err := n.q.s.PatchProps(n.q.ctx(), n.q.path, changes, n.q.cond()); err != nil {
			return err
		}
	}
	if modified.IsZero() {
		return nil
	}
	// A backend that keeps no times is no reason for Windows to call the whole copy failed.
	if err := n.q.s.SetAttr(n.q.ctx(), n.q.path, gateway.Attr{ModTime: modified}); fault.KindOf(err) != fault.Unsupported {
		return err
	}
	return nil
}

// propElement is the property as PROPFIND shows it: an element that stands by itself.
func propElement(p webdav.Property) []byte {
	prefix := "x"
	if p.XMLName.Space == "" {
		prefix = ""
	}
	b := appendElement(nil, &element{name: p.XMLName, prefix: prefix, lang: p.Lang})
	if len(p.InnerXML) == 0 {
		return b
	}
	b = append(append(b[:len(b)-len("/>")], '>'), p.InnerXML...)
	return append(appendName(append(b, "</"...), prefix, p.XMLName.Local), '>')
}

// recorder keeps what the library answers.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

var _ http.ResponseWriter = (*recorder)(nil)

// Header returns headers that nobody reads.
func (r *recorder) Header() http.Header {
	if r.header == nil {
		r.header = make(http.Header)
	}
	return r.header
}

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) { r.status = status }

// Write gathers the body.
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }
