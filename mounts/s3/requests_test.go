package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// TestRequests counts what calls ask the server for.
func TestRequests(t *testing.T) {
	f := newFake(t, false)
	cfg := remembering(f.config())
	b := opened(t, cfg, "")
	ctx := t.Context()
	check := func(what string, err error, want ...string) {
		t.Helper()
		got := f.requests()
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s asked for %q, %v; want %q", what, got, err, want)
		}
	}
	write := func(name string) error { _, err := mounts.WriteFile(ctx, b, name, []byte("0123456789")); return err }
	f.requests()
	check("opening again", func() error { b = opened(t, cfg, ""); return nil }(), "GET ?versioning=", "LIST ")
	check("Mkdir", b.Mkdir(ctx, "d"), "HEAD d", "LIST d/", "PUT d/")
	check("Put into a new folder", write("d/f"), "PUT d/f")
	check("Put again", write("d/f"), "PUT d/f")
	f.put("seen/x/y", "1")
	_, err := listed(ctx, b, "seen")
	check("List", err, "LIST seen/")
	check("Put into a listed folder", write("seen/f"), "PUT seen/f")
	if err := write("seen/x"); fault.KindOf(err) != fault.IsDir {
		t.Errorf("Put over a folder that was listed: %v; want IsDir", err)
	}
	f.requests()
	b = opened(t, cfg, "")
	f.requests()
	check("Put where nothing is known", write("d/f"), "LIST d/", "LIST d/f/", "PUT d/f")
	r, err := b.Open(ctx, "d/f", 2, 3)
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	info, serr := r.(mounts.Stater).Stat()
	r.Close()
	if string(got) != "234" || serr != nil || info.Size != 10 || info.Tag == "" || info.ModTime.IsZero() {
		t.Errorf("a range read yields %q of %+v", got, info)
	}
	check("a range read with its Info", err, "GET d/f")
	_, err = b.Stat(ctx, "d/f")
	check("Stat of a file seen before", err, "HEAD d/f")
	_, err = b.Stat(ctx, "d")
	check("Stat of a folder", err, "HEAD d", "LIST d/")
	_, err = b.CopyFile(ctx, "d/f", "d/g")
	check("CopyFile", err, "HEAD d/f", "LIST d/g/", "PUT d/g")
	check("Rename", b.Rename(ctx, "d/g", "d/h"), "DELETE d/g", "HEAD d/g", "HEAD d/h", "LIST d/h/", "PUT d/h")
	check("Remove", b.Remove(ctx, "d/h"), "DELETE d/h", "HEAD d/h", "LIST d/h/")
	check("Remove of a file that was put", errors.Join(write("d/h"), b.Remove(ctx, "d/h")), "DELETE d/h", "LIST d/h/", "PUT d/h")
	f.put("bare/1", "1")
	f.put("bare/2", "2")
	f.put("bare/3/x", "3")
	_, err = listed(ctx, b, "bare")
	check("List of a folder without a marker", err, "LIST bare/")
	check("Remove of a file that was listed", b.Remove(ctx, "bare/1"), "DELETE bare/1", "PUT bare/")
	check("Remove of another", b.Remove(ctx, "bare/2"), "DELETE bare/2")
	if r, err = b.Open(ctx, "bare/3/x", 0, -1); err != nil {
		t.Fatal(err)
	}
	r.Close()
	check("Remove of a file that was read", b.Remove(ctx, "bare/3/x"), "DELETE bare/3/x", "GET bare/3/x", "PUT bare/3/")
	if err := b.Remove(ctx, "bare/3/x"); fault.KindOf(err) != fault.NotExist {
		t.Errorf("Remove of what was removed: %v; want NotExist", err)
	}
	if err := b.Remove(ctx, "never/was"); fault.KindOf(err) != fault.NotExist || slices.Contains(f.keys(), "never/") {
		t.Errorf("Remove of what never was: %v, and now there is %q", err, f.keys())
	}
	if err := b.Remove(ctx, "bare"); fault.KindOf(err) != fault.NotEmpty {
		t.Errorf("Remove of a folder with a folder in it: %v; want NotEmpty", err)
	}
	f.requests()

	for i := range 2500 {
		f.put(fmt.Sprintf("many/%04d", i), "")
	}
	f.requests()
	n, err := listed(ctx, b, "many")
	check("List of 2,500", err, "LIST many/", "LIST many/", "LIST many/")
	if len(n) != 2500 {
		t.Errorf("%d are listed", len(n))
	}
	check("Purge of 2,500", b.Purge(ctx, "many"), "HEAD many", "LIST many/", "LIST many/", "LIST many/", "LIST many/", "LIST many/",
		"POST ?delete=", "POST ?delete=", "POST ?delete=")
}

// TestLateAnswer: what was seen of a file before it was removed is not believed afterwards.
func TestLateAnswer(t *testing.T) {
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	for name, ask := range map[string]func() error{
		"Stat": func() error { _, err := b.Stat(t.Context(), "f"); return err },
		"List": func() error { _, err := listed(t.Context(), b, "."); return err },
		"Open": func() error {
			r, err := b.Open(t.Context(), "f", 0, -1)
			if err == nil {
				err = r.Close()
			}
			return err
		},
	} {
		if _, err := mounts.WriteFile(t.Context(), b, "f", []byte("1")); err != nil {
			t.Fatal(err)
		}
		b.facts.forget("f") // so that all is asked
		seen, removed := make(chan struct{}), make(chan struct{})
		var once sync.Once
		f.before.set(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == "GET" || r.Method == "HEAD" {
				once.Do(func() { close(seen) })
				<-removed // the answer comes after it, whatever it says
			}
			return false
		})
		asked := make(chan error, 1)
		go func() { asked <- ask() }()
		<-seen
		b.facts.forget("f") // as at the end of a Remove
		close(removed)
		if err := <-asked; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if known, ok := b.facts.get("f"); ok && known.file {
			t.Errorf("%s: a file is believed in that was removed meanwhile", name)
		}
		f.before.set(func(http.ResponseWriter, *http.Request) bool { return false })
	}
}

func listed(ctx context.Context, b mounts.Backend, dir string) (names []string, err error) {
	for info, err := range b.List(ctx, dir) {
		if err != nil {
			return nil, err
		}
		if info.IsDir() {
			info.Name += "/"
		}
		names = append(names, info.Name)
	}
	return names, nil
}

// heap samples the heap while do runs and returns how far it grew at most, with garbage and without.
func heap(do func()) (most, live int64) {
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	marked := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				runtime.ReadMemStats(&now)
				most = max(most, int64(now.HeapAlloc)-int64(before.HeapAlloc))
				metrics.Read(marked)
				live = max(live, int64(marked[0].Value.Uint64())-int64(before.HeapAlloc))
			}
		}
	}()
	do()
	close(stop)
	<-stopped
	return most, live
}

// TestListMemory: very many entries come through in little memory.
func TestListMemory(t *testing.T) {
	many := 200_000
	if testing.Short() {
		many = 50_000
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Has("versioning") {
			io.WriteString(w, "<VersioningConfiguration/>")
			return
		}
		page := 0
		fmt.Sscan(q.Get("continuation-token"), &page)
		var out bytes.Buffer
		out.WriteString("<ListBucketResult>")
		for i := page * 1000; i < page*1000+1000; i++ {
			fmt.Fprintf(&out, "<Contents><Key>%s%09d</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified><ETag>&quot;d41d8cd98f00b204e9800998ecf8427e&quot;</ETag><Size>1</Size></Contents>", q.Get("prefix"), i)
		}
		fmt.Fprintf(&out, "<IsTruncated>%t</IsTruncated><NextContinuationToken>%d</NextContinuationToken></ListBucketResult>", (page+1)*1000 < many, page+1)
		w.Write(out.Bytes())
	}))
	defer server.Close()
	f := fake{Server: server}
	cfg := f.config()
	cfg.ReadOnly = true
	b := opened(t, cfg, "")
	n := 0
	grown, live := heap(func() {
		for _, err := range b.List(t.Context(), "d") {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
	})
	t.Logf("%d entries in %d KiB, %d KiB of them live", n, grown>>10, live>>10)
	if n != many || live > 12<<20 {
		t.Errorf("%d of %d entries, and what lives grew by %d MiB; want at most 12", n, many, live>>20)
	}
}

// TestPutMemory: neither a long upload nor many of unknown length take more than some parts.
func TestPutMemory(t *testing.T) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 128 << 20
	}
	server := servertest.S3(t, servertest.S3Options{})
	b := opened(t, servertest.S3Config(server, servertest.S3Options{}), "")
	for name, declared := range map[string]int64{"declared": size, "unknown": -1} {
		grown, _ := heap(func() {
			info, err := b.Put(t.Context(), "large", io.LimitReader(rand.NewChaCha8([32]byte{1}), max(declared, size)), mounts.PutOptions{Size: declared})
			if err != nil || info.Size != max(declared, size) {
				t.Errorf("Put: %+v, %v", info, err)
			}
		})
		t.Logf("%s: the heap grew by %.1f MiB at most", name, float64(grown)/(1<<20))
		if grown > 48<<20 {
			t.Errorf("%s: the heap grew by %d MiB; want at most 48", name, grown>>20)
		}
	}
}

// TestPartSizes: every declared length fits into 10,000 parts, and one of unknown length grows to where the memory ends.
func TestPartSizes(t *testing.T) {
	for _, size := range []int64{-1, 1, 9 << 20, 78 << 30, 79 << 30, 1 << 40, maxObject} {
		n := partSize(8<<20, size)
		if n < 8<<20 || size > n*maxParts || n > 5<<30 {
			t.Errorf("parts of %d bytes for a file of %d", n, size)
		}
	}
	m := parts{u: &upload{opt: mounts.PutOptions{Size: -1}}, size: 8 << 20}
	total := int64(0)
	for i := 1; i <= maxParts; i++ {
		total += m.length(i)
	}
	if total < 160<<30 {
		t.Errorf("an upload of unknown length ends at %d GiB", total>>30)
	}
}

// TestLongParts: parts that do not fit into memory are sent as they come.
func TestLongParts(t *testing.T) {
	t.Parallel()
	for _, tls := range []bool{false, true} {
		f := newFake(t, tls)
		b := opened(t, remembering(f.config()), "")
		b.partSize = 1 << 20
		content := make([]byte, 10<<20+7)
		rand.NewChaCha8([32]byte{2}).Read(content)
		u := &upload{b: b, op: "Put", name: "f", key: "f", opt: mounts.PutOptions{Size: int64(len(content))}, room: func() error { return nil }}
		u.src = &source{src: bytes.NewReader(content), want: u.opt.Size}
		m := parts{u: u, size: 5 << 20}
		m.change.L = &m.mu
		var err error
		if m.id, err = b.core.NewMultipartUpload(t.Context(), b.bucket, "f", u.options(false)); err != nil {
			t.Fatal(err)
		}
		if err := m.upload(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := b.join(t.Context(), "f", m.id, m.sent, u.options(true), u.opt.Size); err != nil {
			t.Fatal(err)
		}
		if got, err := mounts.ReadFile(t.Context(), b, "f", 1<<30); err != nil || !bytes.Equal(got, content) || len(m.sent) != 3 {
			t.Errorf("%d bytes in %d parts came back, %v", len(got), len(m.sent), err)
		}
	}
}

// TestPartAgain: a part that the server is too busy for is sent again, and a lost answer to the last step is looked into.
func TestPartAgain(t *testing.T) {
	t.Parallel()
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	var busy, lost atomic.Int32
	var tried sync.Map
	f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Query().Has("partNumber"):
			busy.Add(1)
			if _, again := tried.LoadOrStore(r.URL.Query().Get("partNumber"), true); again {
				return false
			}
			io.Copy(io.Discard, r.Body)
			refuse(w, 503, "SlowDown")
			return true
		case r.Method == "POST" && r.URL.Query().Has("uploadId") && lost.Add(1) == 1:
			body, _ := io.ReadAll(r.Body)
			f.mu.Lock()
			f.multipart(httptest.NewRecorder(), r, r.URL.Query(), "f", body)
			f.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		return false
	})
	content := bytes.Repeat([]byte("0123456789abcdef"), 20<<16)
	info, err := b.Put(t.Context(), "f", bytes.NewReader(content), mounts.PutOptions{Size: -1})
	if err != nil || info.Size != int64(len(content)) || !strings.HasSuffix(info.Tag, "-3") {
		t.Errorf("Put: %+v, %v", info, err)
	}
	if got, err := mounts.ReadFile(t.Context(), b, "f", 1<<30); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if busy.Load() < 6 || lost.Load() != 2 {
		t.Errorf("%d parts and %d joins were tried", busy.Load(), lost.Load())
	}
}

// TestReuse: requests share connections, also range reads and failures, and one that the server has closed costs the next call nothing.
func TestReuse(t *testing.T) {
	f := newFake(t, false)
	b := opened(t, remembering(f.config()), "")
	var dialled atomic.Int32
	base := b.transport.base.(*http.Transport)
	dial := base.DialContext
	base.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return dial(ctx, network, address)
	}
	f.CloseClientConnections()
	for range 20 {
		if _, err := mounts.WriteFile(t.Context(), b, "f", make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		if got, err := mounts.ReadFile(t.Context(), b, "f", 1<<20); err != nil || len(got) != 1<<20 {
			t.Fatal(err)
		}
		r, err := b.Open(t.Context(), "f", 100, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil { // and not to where the end shows
			t.Fatal(err)
		}
		r.Close()
		b.Stat(t.Context(), "none")
		b.Open(t.Context(), "none", 0, -1)
		listed(t.Context(), b, ".")
	}
	if n := dialled.Load(); n > 4 {
		t.Errorf("%d connections were opened, want 4 at most", n)
	}
	for range 20 {
		f.CloseClientConnections()
		_, putErr := mounts.WriteFile(t.Context(), b, "f", []byte("x"))
		f.CloseClientConnections()
		_, statErr := b.Stat(t.Context(), "f")
		f.CloseClientConnections()
		_, readErr := mounts.ReadFile(t.Context(), b, "f", 10)
		if putErr != nil || statErr != nil || readErr != nil {
			t.Errorf("after the connections were closed: %v, %v, %v", putErr, statErr, readErr)
		}
	}
}

// TestSecretsStay: no credential shows in what goes wrong, whatever the server says.
func TestSecretsStay(t *testing.T) {
	f := newFake(t, false)
	cfg := f.config()
	cfg.Credentials["sessionToken"] = secret.New("TOKENTOKENTOKEN")
	b := opened(t, remembering(cfg), "")
	f.before.set(func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(403)
		fmt.Fprintf(w, "<Error><Code>SignatureDoesNotMatch</Code><Message>AKIAFAKE fakesecretfakesecret TOKENTOKENTOKEN &#xA;\x7f%s</Message></Error>", strings.Repeat("x", 5000))
		return true
	})
	_, err := b.Stat(t.Context(), "f")
	if fault.KindOf(err) != fault.Unauthenticated {
		t.Errorf("Stat: %v; want Unauthenticated", err)
	}
	for _, word := range []string{"AKIAFAKE", "fakesecret", "TOKENTOKEN", "\n", "\x7f"} {
		if strings.Contains(err.Error(), word) || len(err.Error()) > 1000 {
			t.Errorf("%q is in %q", word, err)
		}
	}
}
