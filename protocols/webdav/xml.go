package webdav

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// Bounds of a request body in XML. They keep a hostile body under a few MiB and some milliseconds.
const (
	maxXMLDepth    = 64
	maxXMLElements = 8192
	maxXMLAttrs    = 64
)

const (
	davSpace = "DAV:"
	xmlSpace = "http://www.w3.org/XML/1998/namespace"
)

var (
	errXMLShape  = errors.New("body is no well-formed XML document")
	errXMLSpace  = errors.New("body uses a prefix without a namespace")
	errXMLBounds = errors.New("body has too many elements or attributes, or is nested too deeply")
	errXMLDTD    = errors.New("body has a document type declaration")
)

// element is a node of a body: an element, or text when name.Local is empty.
type element struct {
	name   xml.Name
	prefix string // as the client wrote it: RFC 4918 §4.3 asks to preserve it where possible
	lang   string // xml:lang in scope
	attrs  []attr // without namespace declarations and xml:lang
	kids   []*element
	text   string
}

type attr struct {
	name   xml.Name
	prefix string
	value  string
}

// scope is a chain of namespace declarations, innermost first. It is never changed once linked, so elements share it.
type scope struct {
	prefix, space string
	next          *scope
}

func (s *scope) lookup(prefix string) (space string, ok bool) {
	for ; s != nil; s = s.next {
		if s.prefix == prefix {
			return s.space, true
		}
	}
	return "", false
}

// topScope holds what is bound without a declaration. An unprefixed name without a default namespace is in none.
var topScope = &scope{"xml", xmlSpace, &scope{"", "", nil}}

// readXML reads one document and returns its root, nil for an empty body. Comments and processing instructions are skipped (RFC 4918 §4.3),
// document types and entities beyond the five of XML refused, so that nothing is expanded or fetched. The decoder of the standard library
// accepts prefixes without a namespace (litmus: propfind_invalid2), so names are resolved here from raw tokens.
func readXML(r io.Reader) (*element, error) {
	d := xml.NewDecoder(r)
	var t tree
	for {
		tok, err := d.RawToken()
		var syntax *xml.SyntaxError
		switch {
		case err == io.EOF:
			if len(t.open) > 0 || t.root == nil && d.InputOffset() > 0 {
				return nil, errXMLShape
			}
			return t.root, nil
		case errors.As(err, &syntax):
			return nil, errXMLShape
		case err == nil:
			err = t.add(tok)
		}
		if err != nil {
			return nil, err
		}
	}
}

// tree is a document while it is read.
type tree struct {
	root  *element
	open  []level
	count int // elements and pieces of text so far
}

// level is an element that has not ended yet, and the namespaces within it.
type level struct {
	e  *element
	ns *scope
}

func (t *tree) add(tok xml.Token) error {
	switch tok := tok.(type) {
	case xml.Directive:
		return errXMLDTD
	case xml.CharData:
		return t.text(tok)
	case xml.StartElement:
		return t.start(tok)
	case xml.EndElement:
		return t.end(tok)
	}
	return nil
}

// text counts as an element does: comments can cut it into any number of pieces.
func (t *tree) text(data xml.CharData) error {
	if t.count++; t.count > maxXMLElements {
		return errXMLBounds
	}
	if len(t.open) > 0 {
		t.hang(&element{text: string(data)})
		return nil
	}
	if len(bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\ufeff")))) > 0 {
		return errXMLShape
	}
	return nil
}

func (t *tree) start(tag xml.StartElement) error {
	if t.count++; t.count > maxXMLElements || len(t.open) >= maxXMLDepth || len(tag.Attr) > maxXMLAttrs {
		return errXMLBounds
	}
	within, lang := topScope, ""
	if n := len(t.open); n > 0 {
		within, lang = t.open[n-1].ns, t.open[n-1].e.lang
	} else if t.root != nil {
		return errXMLShape // a second root
	}
	e, ns, err := resolve(tag, within, lang)
	if err != nil {
		return err
	}
	if t.root == nil {
		t.root = e
	} else {
		t.hang(e)
	}
	t.open = append(t.open, level{e, ns})
	return nil
}

func (t *tree) end(tag xml.EndElement) error {
	n := len(t.open) - 1
	if n < 0 || t.open[n].e.prefix != tag.Name.Space || t.open[n].e.name.Local != tag.Name.Local {
		return errXMLShape
	}
	t.open = t.open[:n]
	return nil
}

// hang makes e the next child of the innermost open element.
func (t *tree) hang(e *element) {
	top := t.open[len(t.open)-1].e
	top.kids = append(top.kids, e)
}

// resolve makes an element of a raw start tag: declarations first, then names (Namespaces in XML 1.0).
func resolve(t xml.StartElement, ns *scope, lang string) (*element, *scope, error) {
	for _, a := range t.Attr {
		switch {
		case a.Name.Space == "xmlns":
			// §3 and §5: a prefix cannot be unbound, xml and xmlns cannot be bound.
			if a.Value == "" || a.Name.Local == "xmlns" || (a.Name.Local == "xml") != (a.Value == xmlSpace) {
				return nil, nil, errXMLSpace
			}
			ns = &scope{a.Name.Local, a.Value, ns}
		case a.Name.Space == "" && a.Name.Local == "xmlns":
			ns = &scope{"", a.Value, ns}
		}
	}
	space, ok := ns.lookup(t.Name.Space)
	if !ok || t.Name.Space == "xmlns" || strings.Contains(t.Name.Local, ":") {
		return nil, nil, errXMLSpace
	}
	e := &element{name: xml.Name{Space: space, Local: t.Name.Local}, prefix: t.Name.Space, lang: lang}
	for _, a := range t.Attr {
		if a.Name.Space == "xmlns" || a.Name.Space == "" && a.Name.Local == "xmlns" {
			continue
		}
		if a.Name.Space == "xml" && a.Name.Local == "lang" {
			e.lang = a.Value
			continue
		}
		n := attr{name: a.Name, prefix: a.Name.Space, value: a.Value}
		if n.prefix != "" { // §6.2: the default namespace does not reach attributes
			if n.name.Space, ok = ns.lookup(n.prefix); !ok {
				return nil, nil, errXMLSpace
			}
		}
		for _, other := range e.attrs {
			if other.name == n.name {
				return nil, nil, errXMLShape
			}
		}
		e.attrs = append(e.attrs, n)
	}
	return e, ns, nil
}

// is reports whether e is the DAV: element called local.
func (e *element) is(local string) bool { return e.name.Space == davSpace && e.name.Local == local }

// elements returns the children that are elements.
func (e *element) elements() []*element {
	var list []*element
	for _, k := range e.kids {
		if k.name.Local != "" {
			list = append(list, k)
		}
	}
	return list
}

// find returns the DAV: child called local, nil without one.
func (e *element) find(local string) *element {
	for _, k := range e.kids {
		if k.is(local) {
			return k
		}
	}
	return nil
}

// appendElement writes e so that it stands by itself wherever it is put: every prefix it uses is declared within it, xml:lang included.
func appendElement(b []byte, e *element) []byte { return appendIn(b, e, topScope, "") }

func appendIn(b []byte, e *element, ns *scope, lang string) []byte {
	if e.name.Local == "" {
		return appendText(b, e.text)
	}
	declare := func(prefix, space string) {
		bound, ok := ns.lookup(prefix)
		if prefix == "xml" || ok && bound == space {
			return
		}
		ns = &scope{prefix, space, ns}
		b = append(b, ` xmlns`...)
		if prefix != "" {
			b = append(append(b, ':'), prefix...)
		}
		b = appendValue(append(b, '='), space)
	}
	b = appendName(append(b, '<'), e.prefix, e.name.Local)
	declare(e.prefix, e.name.Space)
	for _, a := range e.attrs {
		if a.prefix != "" {
			declare(a.prefix, a.name.Space)
		}
		b = appendName(append(b, ' '), a.prefix, a.name.Local)
		b = appendValue(append(b, '='), a.value)
	}
	if e.lang != lang {
		b = appendValue(append(b, " xml:lang="...), e.lang)
	}
	if len(e.kids) == 0 {
		return append(b, "/>"...)
	}
	b = append(b, '>')
	for _, k := range e.kids {
		b = appendIn(b, k, ns, e.lang)
	}
	b = appendName(append(b, "</"...), e.prefix, e.name.Local)
	return append(b, '>')
}

func appendName(b []byte, prefix, local string) []byte {
	if prefix != "" {
		b = append(append(b, prefix...), ':')
	}
	return append(b, local...)
}

// appendText writes s as character data. Characters that XML 1.0 §2.2 cannot carry become U+FFFD.
func appendText(b []byte, s string) []byte { return appendEscape(b, s, false) }

// appendValue writes s as an attribute's value, between double quotes.
func appendValue(b []byte, s string) []byte {
	return append(appendEscape(append(b, '"'), s, true), '"')
}

func appendEscape(b []byte, s string, value bool) []byte {
	from := 0
	for i := 0; i < len(s); {
		var esc string
		size := 1
		switch c := s[i]; {
		case c == '&':
			esc = "&amp;"
		case c == '<':
			esc = "&lt;"
		case c == '>':
			esc = "&gt;" // so that "]]>" cannot appear
		case c == '"' && value:
			esc = "&#34;"
		case c == '\n' && value:
			esc = "&#10;"
		case c == '\t' && value:
			esc = "&#9;" // as a blank it would come back (§3.3.3)
		case c == '\r':
			esc = "&#13;" // a parser would make it a line feed
		case c == '\t', c == '\n':
		case c < ' ':
			esc = "\uFFFD"
		case c >= utf8.RuneSelf:
			var r rune
			if r, size = utf8.DecodeRuneInString(s[i:]); r == utf8.RuneError || r == 0xFFFE || r == 0xFFFF {
				esc = "\uFFFD"
			}
		}
		if esc != "" {
			b = append(append(b, s[from:i]...), esc...)
			from = i + size
		}
		i += size
	}
	return append(b, s[from:]...)
}
