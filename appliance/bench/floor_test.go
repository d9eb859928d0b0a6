package bench

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"golang.org/x/net/webdav"
)

// floor serves dir with as little as Go can do it with: http.FileServer, a PUT into a temporary file that is renamed, and x/net/webdav for
// PROPFIND. What a gateway in Go costs more than this, it costs by itself.
func floor(dir string, out io.Writer) int {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	get := http.FileServer(http.Dir(dir))
	dav := &webdav.Handler{FileSystem: webdav.Dir(dir), LockSystem: webdav.NewMemLS()}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Join(dir, filepath.FromSlash(filepath.Clean("/"+r.URL.Path)))
		switch r.Method {
		case http.MethodGet, http.MethodHead:
			get.ServeHTTP(w, r)
		case http.MethodPut:
			answer(w, put(name, r.Body), http.StatusCreated)
		case http.MethodDelete:
			answer(w, os.RemoveAll(name), http.StatusNoContent)
		default:
			dav.ServeHTTP(w, r)
		}
	})
	fmt.Fprintln(out, "ready", l.Addr())
	fmt.Fprintln(os.Stderr, http.Serve(l, handler))
	return 1
}

func answer(w http.ResponseWriter, err error, status int) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
}

func put(name string, body io.Reader) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".put-*")
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
