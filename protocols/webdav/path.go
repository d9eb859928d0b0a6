package webdav

import (
	"net/http"
	"net/url"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// target returns what the request is about. net/http has decoded the path exactly once; "%2F" is a separator from there on, like any other.
func (h *Handler) target(r *http.Request) (gateway.Path, error) {
	p, ok, err := h.parse(r.URL.Path)
	if err == nil && !ok {
		err = fault.New("webdav.target", "", fault.NotExist, nil)
	}
	return p, err
}

// parse turns a decoded URL path into a place of the tree. It is not ok outside the prefix.
func (h *Handler) parse(path string) (p gateway.Path, ok bool, err error) {
	rest, ok := strings.CutPrefix(path, h.prefix)
	if !ok || rest != "" && rest[0] != '/' {
		return gateway.Path{}, false, nil
	}
	p, err = gateway.ParsePath(rest)
	return p, true, err
}

// reference returns the place that an absolute URI or path in a header names (RFC 4918 §8.3: Simple-ref). It is not ok on another server or
// outside the prefix.
func (h *Handler) reference(r *http.Request, ref string) (p gateway.Path, ok bool, err error) {
	const op = "webdav.reference"
	u, err := url.Parse(ref)
	// A query or fragment means a name that should have been escaped: to guess would be to write somewhere else.
	if err != nil || u.Opaque != "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || strings.Contains(ref, "#") {
		return gateway.Path{}, false, fault.New(op, "", fault.Invalid, nil)
	}
	if u.Host == "" && (u.Scheme != "" || !strings.HasPrefix(u.Path, "/")) {
		return gateway.Path{}, false, fault.New(op, "", fault.Invalid, nil)
	}
	if u.Host != "" && !sameHost(u.Host, h.cfg.Host(r)) {
		return gateway.Path{}, false, nil
	}
	return h.parse(u.Path)
}

// sameHost compares host and port; the ports that http and https imply may be left out.
func sameHost(a, b string) bool {
	trim := func(s string) string { return strings.TrimSuffix(strings.TrimSuffix(s, ":80"), ":443") }
	return strings.EqualFold(trim(a), trim(b))
}

// destination returns the Destination of a COPY or MOVE (RFC 4918 §10.3).
func (q *request) destination() (gateway.Path, error) {
	v := q.r.Header.Get("Destination")
	if v == "" {
		return gateway.Path{}, refuse(http.StatusBadRequest, "Destination is missing")
	}
	p, ok, err := q.h.reference(q.r, v)
	if err == nil && !ok {
		err = refuse(http.StatusBadGateway, "Destination is not on this server") // §9.8.5, §9.9.4
	}
	return p, err
}

// appendHref writes the URL path of p. Folders end with a slash (RFC 4918 §5.2).
func (h *Handler) appendHref(b []byte, p gateway.Path, dir bool) []byte {
	b = appendEscaped(b, h.prefix, true)
	b = appendEscaped(b, p.String(), true)
	if dir && !p.IsRoot() {
		b = append(b, '/')
	}
	return b
}

// plain marks the bytes that stand for themselves in a path segment. It is less than RFC 3986 §3.3 allows, so that the result needs no
// escaping in XML and HTML either, and that clients which take "+" for a space are not led astray.
var plain = func() (t [256]bool) {
	for c := range t {
		t[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~!$()*,:=@", byte(c)) >= 0
	}
	return t
}()

// appendEscaped percent-encodes s, leaving slashes alone if asked to.
func appendEscaped(b []byte, s string, slashes bool) []byte {
	const hex = "0123456789ABCDEF"
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if plain[c] || c == '/' && slashes {
			continue
		}
		b = append(append(b, s[from:i]...), '%', hex[c>>4], hex[c&15])
		from = i + 1
	}
	return append(b, s[from:]...)
}
