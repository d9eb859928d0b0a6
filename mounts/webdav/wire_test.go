package webdav_test

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// tally notes the methods that pass to a server.
type tally struct {
	mu   sync.Mutex
	seen []string
	next http.Handler
}

func (c *tally) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.seen = append(c.seen, r.Method)
	c.mu.Unlock()
	body, err := io.ReadAll(r.Body) // a proxy that passes it on piecemeal breaks off when the answer comes before its end
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	c.next.ServeHTTP(w, r)
}

func (c *tally) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	slices.Sort(c.seen)
	s := strings.Join(c.seen, " ")
	c.seen = nil
	return s
}

// TestRequests counts what each call costs on the wire.
func TestRequests(t *testing.T) {
	for name, begin := range map[string]start{"Apache": servertest.Apache, "nginx": servertest.Nginx, "rclone": servertest.RcloneWebDAV} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := begin(t, servertest.WebDAVOptions{})
			proxy := &tally{next: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: s.Addr})
				r.Out.Host = r.In.Host
			}}}
			b := mount(t, serve(t, proxy))
			others := mount(t, servertest.WebDAVConfig(s, servertest.WebDAVOptions{})) // past the proxy
			for i := range 50 {
				put(t, b, fmt.Sprint("many-", i), "x")
			}
			put(t, b, "f", strings.Repeat("old", 100_000))
			if err := b.Mkdir(t.Context(), "d"); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Stat(t.Context(), "d"); err != nil {
				t.Fatal(err)
			}
			for _, test := range []struct {
				what                  string
				do                    func() error
				apache, nginx, others string
			}{
				{"opening", func() error { return nil }, "", "", ""},
				{"Stat", func() error { _, err := b.Stat(t.Context(), "f"); return err }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"Stat of a folder", func() error { _, err := b.Stat(t.Context(), "d"); return err }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"Stat of nothing in a new folder", func() error {
					if err := errors.Join(others.Mkdir(t.Context(), "new"), others.Mkdir(t.Context(), "new/below")); err != nil {
						return err
					}
					if _, err := b.Stat(t.Context(), "new/none"); fault.KindOf(err) != fault.NotExist {
						return err
					}
					return nil
				}, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"Stat of that folder", func() error { _, err := b.Stat(t.Context(), "new"); return err }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"List of it", func() error { names(t, b, "new"); return nil }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"Stat of a listed folder", func() error { _, err := b.Stat(t.Context(), "new/below"); return err }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"List", func() error { names(t, b, "."); return nil }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"range", func() error {
					r, err := b.Open(t.Context(), "f", 1000, 5000)
					if err != nil {
						return err
					}
					_, err = r.(mounts.Stater).Stat()
					io.Copy(io.Discard, r)
					return errors.Join(err, r.Close())
				}, "GET", "GET", "GET"},
				{"small Put", func() error { _, err := mounts.WriteFile(t.Context(), b, "f", []byte("x")); return err },
					"PUT", "PUT", "MOVE PROPFIND PROPFIND PUT"},
				{"large Put", func() error { _, err := mounts.WriteFile(t.Context(), b, "f", make([]byte, 1<<20)); return err },
					"PUT", "PUT", "MOVE PROPFIND PROPFIND PUT"},
				{"Mkdir", func() error { return b.Mkdir(t.Context(), "e") }, "MKCOL", "MKCOL", "MKCOL PROPFIND"},
				{"Stat of what Mkdir made", func() error { _, err := b.Stat(t.Context(), "e"); return err }, "PROPFIND", "PROPFIND", "PROPFIND"},
				{"Stat where a file took its place", func() error {
					err := others.Remove(t.Context(), "e")
					put(t, others, "e", "x")
					info, serr := b.Stat(t.Context(), "e")
					if info.IsDir() || info.Size != 1 {
						err = errors.Join(err, fmt.Errorf("it is %+v", info))
					}
					return errors.Join(err, serr)
				}, "PROPFIND PROPFIND", "PROPFIND", "PROPFIND"},
				{"Rename", func() error { return b.Rename(t.Context(), "f", "g") }, "MOVE", "MOVE PROPFIND PROPFIND PROPFIND PROPFIND", "MOVE"},
				{"Remove", func() error { return b.Remove(t.Context(), "g") }, "DELETE", "DELETE", "DELETE PROPFIND"},
				{"Purge", func() error { return b.(mounts.Purger).Purge(t.Context(), "d") }, "DELETE DELETE", "DELETE PROPFIND", "DELETE"},
			} {
				if test.what == "opening" {
					proxy.take()
					continue
				}
				err := test.do()
				expect := map[string]string{"Apache": test.apache, "nginx": test.nginx, "rclone": test.others}[name]
				if got := proxy.take(); got != expect || err != nil {
					t.Errorf("%s: %s, %v; want %s", test.what, got, err, expect)
				}
			}
		})
	}
}

// peak returns by how much the heap grew at most while do ran.
func peak(do func()) uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, most := m.HeapAlloc, m.HeapAlloc
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	do()
	close(done)
	<-stopped
	return most - before
}

// TestMemory: neither a listing of 200,000 entries nor a stream without a known length is kept.
func TestMemory(t *testing.T) {
	const entries, size = 200_000, 200 << 20
	h := disk(t)
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "PROPFIND" && r.URL.Path == "/dav/big/":
			w.WriteHeader(207)
			io.WriteString(w, `<D:multistatus xmlns:D="DAV:">`+answer("/dav/big/", "<D:resourcetype><D:collection/></D:resourcetype>"))
			for i := range entries {
				io.WriteString(w, answer(fmt.Sprintf("/dav/big/file-%06d", i), `<D:getcontentlength>5</D:getcontentlength><D:getetag>"x"</D:getetag>`))
			}
			io.WriteString(w, `</D:multistatus>`)
		case r.Method == "PUT" && !strings.Contains(r.URL.Path, "/f"):
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(201)
		case r.Method == "GET":
			w.Header().Set("Content-Length", fmt.Sprint(size))
			w.Header().Set("Last-Modified", "Sun, 22 Nov 2026 02:20:30 GMT")
			io.CopyN(w, zeros{}, size)
		default:
			h.ServeHTTP(w, r)
		}
	}))
	b := mount(t, with(cfg, "put", "direct"))
	grown := peak(func() {
		n, start := 0, time.Now()
		for _, err := range b.List(t.Context(), "big") {
			if err != nil {
				t.Fatal(err)
			}
			if n++; n == 1 && time.Since(start) > time.Second {
				t.Errorf("the first entry came after %v", time.Since(start))
			}
		}
		if n != entries {
			t.Errorf("%d entries", n)
		}
		t.Logf("%d entries in %v", n, time.Since(start))
	})
	if grown > 12<<20 {
		t.Errorf("a listing took %d MiB", grown>>20)
	}
	grown = peak(func() {
		if _, err := b.Put(t.Context(), "g", io.LimitReader(zeros{}, size), mounts.PutOptions{Size: -1}); err != nil {
			t.Error(err)
		}
	})
	if grown > 12<<20 {
		t.Errorf("an upload took %d MiB", grown>>20)
	}
	grown = peak(func() {
		r, err := b.Open(t.Context(), "g", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if n, err := io.Copy(io.Discard, struct{ io.Reader }{r}); n != size || err != nil {
			t.Errorf("read %d, %v", n, err)
		}
	})
	if grown > 8<<20 {
		t.Errorf("a download took %d MiB", grown>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// answer is a DAV:response.
func answer(href, props string) string {
	return `<D:response><D:href>` + href + `</D:href><D:propstat><D:prop>` + props + `</D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>`
}

// TestHostileListing: what a server says of names, sizes and hosts is not believed, nor is it waited for without end.
func TestHostileListing(t *testing.T) {
	steady(t)
	var body atomic.Pointer[string]
	var status atomic.Int32
	h := disk(t)
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := body.Load(); p != nil {
			w.WriteHeader(int(status.Load()))
			io.WriteString(w, *p)
			if strings.HasSuffix(*p, "endless") {
				for r.Context().Err() == nil {
					if _, err := io.WriteString(w, strings.Repeat("x", 64<<10)); err != nil {
						return
					}
				}
			}
			return
		}
		h.ServeHTTP(w, r)
	}))
	b := mount(t, cfg)
	status.Store(207)
	root := answer("/dav/", "<D:resourcetype><D:collection/></D:resourcetype>")
	const open = `<D:multistatus xmlns:D="DAV:">`
	for _, test := range []struct {
		name, body string
		want       []string
		fails      bool
	}{
		{"names", root + answer("/dav/a%2Fb", "") + answer("/dav/%0d%0ax", "") + answer("/dav/..", "") + answer("/dav/%ff", "") + answer("/dav/ok", "<D:getcontentlength>-7</D:getcontentlength>") +
			answer("/dav/"+strings.Repeat("n", 300), "") + answer("/dav/.cellgate-x", "") + answer("/dav/deep/er", ""), []string{"ok"}, false},
		{"self last", answer("/dav/a", "") + strings.ReplaceAll(root, "/dav/", "http://127.0.0.1/%64av"), []string{"a"}, false},
		{"other host", root + answer("http://evil.example/dav/a", ""), nil, true},
		{"other place", root + answer("/etc/passwd", ""), nil, true},
		{"above", root + answer("/", ""), nil, true},
		{"a file", answer("/dav", "<D:resourcetype/>"), nil, true},
		{"page", "<html>", nil, true},
		{"endless", root + "endless", nil, true},
		{"endless tag", root + "<endless", nil, true},
		{"cut", root, nil, true},
	} {
		text := open + test.body
		if !test.fails {
			text += "</D:multistatus>"
		} else if test.name == "page" {
			text = "<html>"
		} else if !strings.Contains(test.name, "endless") && test.name != "cut" {
			text += "</D:multistatus>"
		}
		body.Store(&text)
		var got []string
		var failed error
		for info, err := range b.List(t.Context(), ".") {
			if err != nil {
				failed = err
				break
			}
			if info.Size < -1 {
				t.Errorf("%s: %+v", test.name, info)
			}
			got = append(got, info.Name)
		}
		if test.fails != (failed != nil) || !test.fails && !slices.Equal(got, test.want) {
			t.Errorf("%s: listed %q, %v; want %q", test.name, got, failed, test.want)
		}
	}
	for _, code := range []int{200, 204, 301, 400, 418, 500, 503, 599} {
		status.Store(int32(code))
		text := strings.Repeat("endless", 1)
		if code == 204 {
			text = ""
		}
		body.Store(&text)
		for name, call := range calls(t.Context(), b) {
			if code == 204 && (name == "Remove" || name == "Rename" || name == "Put" || name == "Large" || name == "Mkdir") || code == 200 {
				continue // it says that it did
			}
			if err := call(); err == nil || strings.Contains(err.Error(), "endless") {
				t.Errorf("%s answered with %d: %v", name, code, err)
			}
		}
	}
}

// TestHostileReads: parts that are not what was asked for are errors, and so are files that end early.
func TestHostileReads(t *testing.T) {
	var say atomic.Pointer[http.HandlerFunc]
	h := disk(t)
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := say.Load(); p != nil && r.Method == "GET" {
			w.Header().Set("Last-Modified", "Sun, 22 Nov 2026 02:20:30 GMT")
			(*p)(w, r)
			return
		}
		h.ServeHTTP(w, r)
	}))
	b := mount(t, cfg)
	put(t, b, "f", "0123456789")
	for name, test := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		want   string // "" an error
	}{
		"ignores ranges": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "0123456789")
		}, "23456"},
		"without length": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "0123456789")
		}, "23456"},
		"shorter without length": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			io.WriteString(w, "0123")
		}, ""},
		"other range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 3-7/10")
			w.WriteHeader(206)
			io.WriteString(w, "34567")
		}, ""},
		"no range": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206); io.WriteString(w, "23456") }, ""},
		"short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 2-6/10")
			w.Header().Set("Content-Length", "5")
			w.WriteHeader(206)
			io.WriteString(w, "23")
		}, ""},
		"shorter range": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 2-3/10")
			w.WriteHeader(206)
			io.WriteString(w, "23")
		}, ""},
		"longer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 2-6/10")
			w.WriteHeader(206)
			io.WriteString(w, "23456789")
		}, "23456"},
		"squeezed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "0123456789")
		}, ""},
	} {
		f := http.HandlerFunc(test.answer)
		say.Store(&f)
		r, err := b.Open(t.Context(), "f", 2, 5)
		var got []byte
		if err == nil {
			got, err = io.ReadAll(r)
			r.Close()
		}
		if test.want == "" && err == nil || test.want != "" && (err != nil || string(got) != test.want) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, test.want)
		}
		if test.want == "" && err != nil && fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v; want Unavailable", name, err)
		}
	}
}

// TestDigestCounts: each nonce lasts for three requests, whose count must grow, and a long upload meets a nonce that has expired.
func TestDigestCounts(t *testing.T) {
	h := disk(t)
	var mu sync.Mutex
	nonce, last, serial := "", 0, 0
	sum := func(s string) string { m := md5.Sum([]byte(s)); return hex.EncodeToString(m[:]) }
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := map[string]string{}
		rest, signed := strings.CutPrefix(r.Header.Get("Authorization"), "Digest ")
		for part := range strings.SplitSeq(rest, ", ") {
			k, v, _ := strings.Cut(part, "=")
			p[k] = strings.Trim(v, `"`)
		}
		mu.Lock()
		var count int
		fmt.Sscanf(p["nc"], "%x", &count)
		who, what := sum("ann:r:geheim"), sum(r.Method+":"+r.RequestURI)
		right := signed && p["response"] == sum(who+":"+p["nonce"]+":"+p["nc"]+":"+p["cnonce"]+":auth:"+what)
		if right && p["uri"] != r.RequestURI {
			t.Errorf("signed %q for %q", p["uri"], r.RequestURI)
		}
		ok := right && p["nonce"] == nonce && count > last && count <= 3
		if ok {
			last = count
		} else {
			serial++
			nonce, last = fmt.Sprintf("n%d", serial), 0
			w.Header().Set("Www-Authenticate", fmt.Sprintf(`Digest realm="r", nonce="%s", qop="auth", stale=%v`, nonce, right))
		}
		mu.Unlock()
		if !ok {
			w.WriteHeader(401)
			return
		}
		h.ServeHTTP(w, r)
	}))
	refused(t, as(cfg, "ann", "wrong"), fault.Unauthenticated, "ann")
	b := mount(t, as(cfg, "ann", "geheim"))
	for i := range 6 {
		text := strings.Repeat(fmt.Sprint(i), 700_000)
		if _, err := b.Put(t.Context(), "a b%", strings.NewReader(text), mounts.PutOptions{Size: -1}); err != nil {
			t.Fatal(err)
		}
		holds(t, b, "a b%", text)
	}
}

// TestDetour: a proxy may call the folder otherwise than we do.
func TestDetour(t *testing.T) {
	h := disk(t)
	cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.Path = strings.Replace(r.URL.Path, "/outside", "/dav", 1)
		r.Header.Set("Destination", strings.Replace(r.Header.Get("Destination"), "/outside", "/dav", 1))
		h.ServeHTTP(w, r)
	}))
	b := mount(t, with(cfg, "url", strings.Replace(cfg.Options["url"], "/dav", "/outside", 1)))
	put(t, b, "f", "hello")
	if err := b.Mkdir(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	put(t, b, "d/g", "hello")
	if got := names(t, b, "d"); !slices.Equal(got, []string{"g"}) {
		t.Errorf("listed %q", got)
	}
}

// TestAreaRefused: where the Area cannot be had under its name it is called otherwise, and where it cannot be had at all there are names beside.
func TestAreaRefused(t *testing.T) {
	h := disk(t)
	for _, forbidden := range []string{"/.cellgate", "ellgate/"} {
		cfg := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, forbidden) && r.Method != "PROPFIND" {
				w.WriteHeader(403)
				return
			}
			h.ServeHTTP(w, r)
		}))
		b := mount(t, cfg)
		put(t, b, "f", forbidden)
		put(t, b, "f", forbidden+strings.Repeat("x", 500_000))
		holds(t, b, "f", forbidden+strings.Repeat("x", 500_000))
		if got := names(t, b, "."); !slices.Contains(got, "f") || len(got) > 2 {
			t.Errorf("listed %q", got)
		}
	}
}
