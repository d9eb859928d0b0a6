package webdav

import (
	"net/http"

	"cellgate/internal/fault"
)

// What can be done with which resource, for Allow.
const (
	allowAll      = "OPTIONS, GET, HEAD, PUT, PATCH, DELETE, MKCOL, COPY, MOVE, PROPFIND, PROPPATCH, LOCK, UNLOCK"
	allowFile     = "OPTIONS, GET, HEAD, PUT, PATCH, DELETE, COPY, MOVE, PROPFIND, PROPPATCH, LOCK, UNLOCK"
	allowFolder   = "OPTIONS, GET, HEAD, DELETE, COPY, MOVE, PROPFIND, PROPPATCH, LOCK, UNLOCK"
	allowUnmapped = "OPTIONS, PUT, MKCOL, LOCK"
)

// options says what this server is. Without a login it speaks of resources in general.
func (q *request) options() error {
	allow := allowAll
	if q.s != nil {
		info, err := q.s.Stat(q.ctx(), q.path)
		switch {
		case err == nil && info.Dir:
			allow = allowFolder
		case err == nil:
			allow = allowFile
		case fault.KindOf(err) == fault.NotExist:
			allow = allowUnmapped
		default:
			return err
		}
	}
	davHeaders(q.w.Header(), allow)
	q.w.WriteHeader(http.StatusOK)
	return nil
}

func davHeaders(hd http.Header, allow string) {
	// RFC 4918 §18. The last, by §10.1 a URL of our own, tells another cellgate that it may rely on what we do with conditions and replaces.
	hd.Set("Dav", "1, 2, 3, sabredav-partialupdate, <urn:cellgate:dav:1>")
	hd.Set("Ms-Author-Via", "DAV") // else Office and Windows try FrontPage first
	hd.Set("Allow", allow)
	hd.Set("Accept-Patch", patchType)
	hd.Set("Accept-Ranges", "bytes")
	hd.Set("Content-Length", "0")
}

// Discover answers what Windows asks about the root of the server before it looks at the prefix: OPTIONS, and PROPFIND, where it wants to see
// a folder. The answers are the same for everybody. Everything else, and every other path, is next's.
func (h *Handler) Discover(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		root := h.prefix != "" && (r.URL.Path == "/" || r.URL.Path == "*" || r.URL.Path == "")
		switch {
		case root && r.Method == http.MethodOptions:
			davHeaders(w.Header(), "OPTIONS, GET, HEAD, PROPFIND")
			w.WriteHeader(http.StatusOK)
		case root && r.Method == "PROPFIND":
			b := []byte(multistatusOpen)
			b = append(b, "<D:response><D:href>/</D:href>"+folderStat...)
			if r.Header.Get("Depth") != "0" {
				b = append(appendEscaped(append(b, "<D:response><D:href>"...), h.prefix, true), "/</D:href>"+folderStat...)
			}
			b = append(b, multistatusClose...)
			w.Header().Set("Content-Type", xmlType)
			w.WriteHeader(http.StatusMultiStatus)
			w.Write(b)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

const folderStat = `<D:propstat><D:prop><D:resourcetype><D:collection/></D:resourcetype></D:prop>` +
	`<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>`
