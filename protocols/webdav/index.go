package webdav

import (
	"html"
	"net/http"
	"strconv"
	"strings"
)

const htmlType = "text/html; charset=utf-8"

// protect sets what keeps a browser from running users' files in this origin: no sniffing, a sandbox without scripts, and a download instead
// of a page for every type that is not known to be harmless. DAV clients do not look at any of it.
func protect(hd http.Header, kind string) {
	hd["X-Content-Type-Options"] = hdrNosniff
	hd["Content-Security-Policy"] = hdrSandbox
	if !harmless(kind) {
		hd["Content-Disposition"] = hdrAttachment
	}
}

func harmless(kind string) bool {
	kind, _, _ = strings.Cut(kind, ";")
	switch kind {
	case "text/plain", "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "image/bmp":
		return true
	}
	return strings.HasPrefix(kind, "audio/") || strings.HasPrefix(kind, "video/")
}

// index shows a folder to a browser: names and sizes, streamed, every name escaped twice over (as URL and as text), no scripts.
func (q *request) index() error {
	hd := q.w.Header()
	hd["X-Content-Type-Options"] = hdrNosniff
	hd["Cache-Control"] = hdrNoCache
	hd["Content-Type"] = []string{htmlType}
	hd["Content-Security-Policy"] = []string{"default-src 'none'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'"}
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(http.StatusOK)
		return nil
	}
	title := html.EscapeString(q.path.String())
	b := append(getBuffer(), "<!DOCTYPE html>\n<meta charset=utf-8>\n<title>"+title+"</title>\n<h1>"+title+"</h1>\n<ul>\n"...)
	defer func() { putBuffer(b) }()
	if !q.path.IsRoot() {
		b = append(b, `<li><a href="`...)
		b = append(q.h.appendHref(b, q.path.Parent(), true), "\">..</a>\n"...)
	}
	for info, err := range q.s.List(q.ctx(), q.path) {
		if err != nil {
			return err
		}
		if q.h.hidden(info.Name) {
			continue
		}
		b = append(b, `<li><a href="`...)
		b = append(q.h.appendHref(b, info.Path, info.Dir), `">`...)
		b = append(b, html.EscapeString(info.Name)...)
		if info.Dir {
			b = append(b, "/</a>\n"...)
		} else {
			b = append(strconv.AppendInt(append(b, "</a> "...), info.Size, 10), '\n')
		}
		if len(b) > bufferSize/2 {
			if _, err := q.w.Write(b); err != nil {
				return err
			}
			b = b[:0]
		}
	}
	b = append(b, "</ul>\n"...)
	_, err := q.w.Write(b)
	return err
}
