package webdav

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
)

// sink is a ResponseWriter that costs nothing.
type sink struct {
	header http.Header
	status int
	n      int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { s.n += len(p); return len(p), nil }

// bench calls the handler without a network: what is measured is this package and the core.
func bench(b *testing.B, method, path, header, body string, files int, want int) {
	house := gatewaytest.New(b, gatewaytest.Config{})
	h, err := New(Config{Gateway: house.Gateway, Identity: house.Identity})
	if err != nil {
		b.Fatal(err)
	}
	s := house.As("alice")
	for i := range files {
		up, err := s.Create(b.Context(), gatewaytest.Path(fmt.Sprintf("/docs/a file called %05d.txt", i)), gateway.CreateOptions{Size: 4})
		if err != nil {
			b.Fatal(err)
		}
		defer up.Abort()
		if _, err := up.Write([]byte("text")); err != nil {
			b.Fatal(err)
		}
		if _, _, err := up.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.SetBasicAuth("alice", password)
		if k, v, ok := strings.Cut(header, ": "); ok {
			r.Header.Set(k, v)
		}
		w := &sink{header: make(http.Header)}
		h.ServeHTTP(w, r)
		if w.status != want {
			b.Fatalf("got %d", w.status)
		}
		b.SetBytes(int64(w.n))
	}
}

func BenchmarkPropfindAllprop10000(b *testing.B) {
	bench(b, "PROPFIND", "/dav/docs/", "Depth: 1", "", 10000, http.StatusMultiStatus)
}

func BenchmarkPropfindNamed10000(b *testing.B) {
	bench(b, "PROPFIND", "/dav/docs/", "Depth: 1",
		`<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/><getetag/></prop></propfind>`, 10000, http.StatusMultiStatus)
}

func BenchmarkPropfindFile(b *testing.B) {
	bench(b, "PROPFIND", "/dav/docs/a%20file%20called%2000000.txt", "Depth: 0", "", 1, http.StatusMultiStatus)
}

func BenchmarkGetSmall(b *testing.B) {
	bench(b, "GET", "/dav/docs/a%20file%20called%2000000.txt", "", "", 1, http.StatusOK)
}

func BenchmarkPutSmall(b *testing.B) {
	bench(b, "PUT", "/dav/docs/a%20file%20called%2000000.txt", "", strings.Repeat("x", 4096), 1, http.StatusNoContent)
}
