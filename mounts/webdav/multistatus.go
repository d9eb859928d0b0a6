package webdav

import (
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// What an answer may be at most. A listing as a whole may be as long as it likes: it is read entry by entry.
const (
	maxEntry  = 256 << 10 // bytes of one entry, and of what comes before the first
	maxText   = 16 << 10  // bytes of one value: an href of 4 KiB may be three times as long
	maxDepth  = 32        // of nesting
	maxProps  = 2000      // elements of one entry
	davSpace  = "DAV:"
	statusOK  = 200
	noDigits  = -1
	maxStatus = 999
)

var (
	errXML    = errors.New("the server's answer is no XML that can be understood")
	errTooBig = errors.New("the server's answer is out of all proportion")
)

// entry is one DAV:response.
type entry struct {
	path       []string // decoded segments of its href; nil when that makes no sense
	host       string   // of the href, "" when it names none
	dir        bool
	size       int64 // -1 unknown
	modified   time.Time
	tag        string // a strong entity tag without quotes
	tagged     bool   // there is an entity tag, be it a weak one
	used, free int64  // RFC 4331, -1 unknown
	status     int    // of the entry as a whole, 0 when its properties have their own
}

// multistatus reads a DAV:multistatus (RFC 4918 §14.16) entry by entry, in bounded memory.
type multistatus struct {
	meter *meter
	d     *xml.Decoder
	depth int
	props int
	begun bool
}

func newMultistatus(r io.Reader) *multistatus {
	m := &multistatus{meter: &meter{r: r, left: maxEntry}}
	m.d = xml.NewDecoder(m.meter)
	m.d.CharsetReader = func(charset string, in io.Reader) (io.Reader, error) {
		if strings.EqualFold(charset, "us-ascii") {
			return in, nil
		}
		return nil, errXML
	}
	return m
}

// meter bounds what the decoder reads, and so what it keeps, until the next refill.
type meter struct {
	r    io.Reader
	left int64
	err  error // why reading ended
}

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 {
		m.err = errTooBig
		return 0, errTooBig
	}
	if int64(len(p)) > m.left {
		p = p[:m.left]
	}
	n, err := m.r.Read(p)
	m.left -= int64(n)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

// fault returns the error behind one of the decoder's.
func (m *multistatus) fault(err error) error {
	switch {
	case m.meter.err != nil:
		return m.meter.err
	case errors.Is(err, errTooBig):
		return err
	}
	return errXML
}

// token returns the next token but for comments and white space between. It keeps the books.
func (m *multistatus) token() (xml.Token, error) {
	for {
		t, err := m.d.Token()
		if err != nil {
			return nil, m.fault(err)
		}
		switch t.(type) {
		case xml.StartElement:
			m.depth++
			if m.props++; m.depth > maxDepth || m.props > maxProps {
				return nil, errTooBig
			}
			return t, nil
		case xml.EndElement:
			m.depth--
			return t, nil
		case xml.CharData:
			return t, nil
		case xml.Directive: // a document type: entities, and what comes with them
			return nil, errXML
		}
	}
}

// next returns the next entry, or io.EOF after the last. An answer that ends early is an error.
func (m *multistatus) next() (entry, error) {
	m.meter.left, m.props = maxEntry, 0
	for {
		t, err := m.token()
		if err != nil {
			return entry{}, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			switch {
			case !m.begun:
				if t.Name != (xml.Name{Space: davSpace, Local: "multistatus"}) {
					return entry{}, errXML
				}
				m.begun = true
			case t.Name == (xml.Name{Space: davSpace, Local: "response"}):
				return m.response()
			default: // DAV:responsedescription, DAV:sync-token
				if err := m.skip(); err != nil {
					return entry{}, err
				}
			}
		case xml.EndElement:
			return entry{}, io.EOF
		}
	}
}

// skip passes over the rest of an element that was entered.
func (m *multistatus) skip() error {
	for inside := m.depth; m.depth >= inside; {
		if _, err := m.token(); err != nil {
			return err
		}
	}
	return nil
}

// text returns the characters of an element that was entered, without those of elements within.
func (m *multistatus) text() (string, error) {
	var text []byte
	for inside := m.depth; ; {
		t, err := m.token()
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.CharData:
			if text = append(text, t...); len(text) > maxText {
				return "", errTooBig
			}
		case xml.StartElement:
			if err := m.skip(); err != nil {
				return "", err
			}
		case xml.EndElement:
			if m.depth < inside {
				return strings.TrimSpace(string(text)), nil
			}
		}
	}
}

// each calls do for the children of an element that was entered; do must pass over the child.
func (m *multistatus) each(do func(name string) error) error {
	for inside := m.depth; m.depth >= inside; {
		t, err := m.token()
		if err != nil {
			return err
		}
		start, ok := t.(xml.StartElement)
		switch {
		case !ok:
			continue
		case start.Name.Space == davSpace:
			err = do(start.Name.Local)
		default:
			err = m.skip()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// response reads a DAV:response that was entered.
func (m *multistatus) response() (entry, error) {
	e := entry{size: -1, used: -1, free: -1}
	err := m.each(func(name string) error {
		switch name {
		case "href":
			text, err := m.text()
			if err == nil && e.path == nil { // more than one comes with a status of all only
				e.host, e.path = location(text)
			}
			return err
		case "status":
			text, err := m.text()
			e.status = statusLine(text)
			return err
		case "propstat":
			return m.propstat(&e)
		}
		return m.skip()
	})
	return e, err
}

// propstat takes over properties that came with success. Their status comes after them.
func (m *multistatus) propstat(e *entry) error {
	found, status := *e, 0
	err := m.each(func(name string) error {
		switch name {
		case "prop":
			return m.each(func(name string) error { return m.property(&found, name) })
		case "status":
			text, err := m.text()
			status = statusLine(text)
			return err
		}
		return m.skip()
	})
	if err == nil && status >= statusOK && status < 300 {
		*e = found
	}
	return err
}

func (m *multistatus) property(e *entry, name string) error {
	switch name {
	case "resourcetype":
		return m.each(func(name string) error {
			e.dir = e.dir || name == "collection"
			return m.skip()
		})
	case "getcontentlength", "getlastmodified", "getetag", "quota-available-bytes", "quota-used-bytes":
	default:
		return m.skip()
	}
	text, err := m.text()
	switch name {
	case "getcontentlength":
		e.size = number(text)
	case "quota-available-bytes":
		e.free = number(text)
	case "quota-used-bytes":
		e.used = number(text)
	case "getlastmodified":
		e.modified = modified(text)
	case "getetag":
		e.tagged = text != ""
		e.tag = strong(text)
	}
	return err
}

// modified reads a date of HTTP, zero when it is none.
func modified(text string) time.Time {
	t, err := http.ParseTime(text)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// strong returns what is within the quotes of a strong entity tag (RFC 9110 §8.8.3), else "".
func strong(tag string) string {
	if len(tag) < 3 || len(tag) > 1024 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return ""
	}
	tag = tag[1 : len(tag)-1]
	if strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r == '"' || r == 0x7f }) {
		return ""
	}
	return tag
}

// number reads a size, -1 when it is none.
func number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return noDigits
	}
	return n
}

// statusLine reads the code of "HTTP/1.1 200 OK", 0 when there is none.
func statusLine(text string) int {
	fields := strings.Fields(text)
	if len(fields) < 2 {
		return 0
	}
	code, err := strconv.Atoi(fields[1])
	if err != nil || code < 100 || code > maxStatus {
		return 0
	}
	return code
}

// location reads an href: an address, or a path with a slash before it (RFC 4918 §8.3). A path that makes no sense is nil.
func location(href string) (host string, path []string) {
	if scheme, rest, ok := strings.Cut(href, "://"); ok && !strings.Contains(scheme, "/") {
		authority, after, _ := strings.Cut(rest, "/")
		u, err := url.Parse(scheme + "://" + authority)
		if err != nil || u.Hostname() == "" {
			return "", nil
		}
		host, href = u.Hostname(), "/"+after
	}
	if !strings.HasPrefix(href, "/") {
		return host, nil
	}
	if i := strings.IndexAny(href, "?#"); i >= 0 {
		href = href[:i]
	}
	path, ok := segments(href)
	if !ok {
		return host, nil
	}
	return host, path
}

// segments decodes an escaped path. Empty segments do not count; "." and ".." make it none.
func segments(escaped string) (path []string, ok bool) {
	path = make([]string, 0, strings.Count(escaped, "/"))
	for segment := range strings.SplitSeq(escaped, "/") {
		if segment == "" {
			continue
		}
		decoded, err := url.PathUnescape(segment)
		if err != nil || decoded == "." || decoded == ".." {
			return nil, false
		}
		path = append(path, decoded)
	}
	return path, true
}
