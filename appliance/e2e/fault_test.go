package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/mounts/mounttest/netfault"
)

// seven is a box with seven datasources: the disk, with the workspace docs, and six across a network, each with a workspace of its
// name, "at-" and its kind. Each of the six is reached through a link of its own.
type seven struct {
	*box
	names []string // of the six
	far   map[string]*kind
	links map[string]*netfault.Proxy
}

// startSeven starts such a box with all servers up, and a file "f" in every workspace. Requests to the six may take 2 s, and transfers stand
// still for 3 s.
func startSeven(t *testing.T) *seven {
	t.Helper()
	s := &seven{names: []string{"at-sftp", "at-webdav", "at-smb", "at-s3", "at-proftpd", "at-dropbox"}, far: map[string]*kind{}, links: map[string]*netfault.Proxy{}}
	var sources, workspaces strings.Builder
	for _, name := range s.names {
		k := startKind(t, strings.TrimPrefix(name, "at-"))
		link := netfault.New(t, k.addr())
		k.via(link)
		k.options["deadline"], k.options["progress"] = "2s", "3s"
		s.far[name], s.links[name] = k, link
		fmt.Fprintf(&sources, "  - %s\n", k.datasource(name))
		fmt.Fprintf(&workspaces, "  - {slug: %s, roots: [\"%s:/w\"], grants: [{to: \"user:alice\", rights: [read, write]}]}\n", name, name)
	}
	state := strings.Replace(common, "datasources: [{name: disk, driver: local, options: {path: FILES}}]",
		"datasources:\n  - {name: disk, driver: local, options: {path: FILES}}\n"+sources.String(), 1)
	s.box = start(t, state+workspaces.String())
	alice := s.as("alice")
	for _, name := range s.spaces() {
		alice.want("PUT", "/"+name+"/f", "content of "+name, 201)
	}
	return s
}

// spaces are the slugs of all seven workspaces.
func (s *seven) spaces() []string { return append([]string{"docs"}, s.names...) }

// serves reports whether a workspace can be read and written.
func (s *seven) serves(c *client, slug string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := c.try(ctx, "GET", "/"+slug+"/f", nil)
	if err != nil || r.body != "content of "+slug {
		return false
	}
	r, err = c.try(ctx, "PUT", "/"+slug+"/probe", strings.NewReader(time.Now().String()))
	return err == nil && r.ok()
}

// figures are what clients met.
type figures struct {
	mu     sync.Mutex
	took   []time.Duration
	failed int
	first  string // of what failed
}

func (f *figures) add(what string, took time.Duration, r reply, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.took = append(f.took, took)
	if err == nil && r.ok() {
		return
	}
	if f.failed++; f.first == "" {
		f.first = fmt.Sprintf("%s: %d %.200s %v after %v", what, r.status, r.body, err, took)
	}
}

// p99 is the duration that one in a hundred requests exceeds, and the longest of all.
func (f *figures) p99() (p99, longest time.Duration) {
	slices.Sort(f.took)
	return f.took[len(f.took)*99/100], f.took[len(f.took)-1]
}

// load lets so many clients use the victim, and 20 the other workspaces, for a while. They rest between requests: what is measured is how
// long others wait, not what the machine can do at most.
func (s *seven) load(d time.Duration, clients int, victim string) (others, stalled *figures) {
	others, stalled = new(figures), new(figures)
	rest := slices.DeleteFunc(s.spaces(), func(n string) bool { return n == victim })
	c := s.as("alice")
	run := func(f *figures, i int, slug func(n int) string) {
		time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
		for n, end := 0, time.Now().Add(d); time.Now().Before(end); n++ {
			dir := "/" + slug(n)
			for _, verb := range []string{"PUT", "GET", "PROPFIND"} {
				path, body := fmt.Sprintf("%s/c%d", dir, i), ""
				if verb == "PUT" {
					body = strings.Repeat("0123456789abcdef", 64)
				}
				began := time.Now()
				r, err := c.try(context.Background(), verb, path, strings.NewReader(body), "Depth: 0")
				f.add(verb+" "+path, time.Since(began), r, err)
				time.Sleep(200 * time.Millisecond)
			}
		}
	}
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() { run(others, i, func(n int) string { return rest[(i+n)%len(rest)] }) })
	}
	for i := range clients {
		wg.Go(func() { run(stalled, 100+i, func(int) string { return victim }) })
	}
	wg.Wait()
	return others, stalled
}

// N01: a backend that stalls under many clients costs its own mount only: the others are served as before, what waits for it ends by its
// deadline, and when it goes on so does its mount. CELLGATE_E2E_STALL is how long it stalls, 10m for a release, CELLGATE_E2E_CLIENTS how many
// clients it has, 100 for a release.
func TestN01StalledBackend(t *testing.T) {
	d, clients, victims := 10*time.Second, 40, []string{"at-sftp", "at-smb", "at-webdav"}
	if testing.Short() {
		d, victims = 8*time.Second, victims[:1]
	}
	if v := os.Getenv("CELLGATE_E2E_STALL"); v != "" {
		var err error
		if d, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	if v := os.Getenv("CELLGATE_E2E_CLIENTS"); v != "" {
		var err error
		if clients, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	s := startSeven(t)
	alice := s.as("alice")
	for _, victim := range victims {
		t.Run(victim, func(t *testing.T) {
			calm := min(d, 8*time.Second)
			before, _ := s.load(calm, clients, victim)
			s.far[victim].pause(t)
			others, stalled := s.load(d, clients, victim)
			s.far[victim].resume(t)
			resumed := time.Now()
			eventually(t, 10*time.Second, "the mount works again", func() bool { return s.serves(alice, victim) })
			healed := time.Since(resumed)
			after, _ := s.load(calm, clients, victim)

			b1, _ := before.p99()
			b2, _ := after.p99()
			base := max(b1, b2) // the machine may have been busier with other things at one of the times
			p99, longest := others.p99()
			_, waited := stalled.p99()
			t.Logf("others: p99 %v before, %v while %s stalls (longest %v, %d requests), %v after; the stalled: %d of %d requests failed, after %v at most; back after %v",
				b1, p99, victim, longest, len(others.took), b2, stalled.failed, len(stalled.took), waited, healed)
			if others.failed > 0 {
				t.Errorf("%d requests to other mounts failed: %s", others.failed, others.first)
			}
			// The figure asked for is one and a half and 250 ms, on a machine that does nothing else. Beside the other tests it can only be shown
			// that nobody waits for the stalled one, whose deadlines are seconds.
			limit := max(500*time.Millisecond, 3*base)
			if os.Getenv("CELLGATE_E2E_STALL") != "" {
				limit = min(base*3/2+25*time.Millisecond, max(250*time.Millisecond, base*3/2))
			}
			if p99 > limit {
				t.Errorf("others wait: p99 %v, without the stall %v", p99, base)
			}
			if stalled.failed < clients {
				t.Errorf("%d requests to the stalled mount failed: this shows nothing", stalled.failed)
			}
			if waited > 12*time.Second { // some requests take several calls, of 2 and 3 s each
				t.Errorf("a request to the stalled mount took %v", waited)
			}
		})
	}
	// What a stalled server kept from being tidied up goes at the next moment at which nothing is under way.
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		if out, err := (command{}).try(t, binary, "fsck", "--data", s.data); err == nil && strings.Contains(out, "0 findings") {
			break
		}
	}
	s.sound()
}

// ready is what the box says of itself.
type ready struct {
	Status      string            `json:"status"`
	Up          int               `json:"up"`
	Down        int               `json:"down"`
	Datasources map[string]string `json:"datasources"`
}

func (b *box) readiness() (st ready) {
	b.t.Helper()
	r, err := b.raw("", "GET /readyz", []string{"Connection: close"}, "")
	if err == nil && r.status != 200 {
		err = fmt.Errorf("status %d", r.status)
	}
	if err == nil {
		err = json.Unmarshal([]byte(r.body), &st)
	}
	if err != nil {
		b.t.Fatalf("readyz: %v %s", err, r.body)
	}
	return st
}

// N03: with backends down, whether they refuse connections or never answer, the box starts at once, lists everything, says what is down and
// serves the rest; what comes back is served again by itself.
func TestN03BackendsDown(t *testing.T) {
	s := startSeven(t)
	s.stop()
	counts := []int{1, 3, 6}
	if testing.Short() {
		counts = []int{3}
	}
	for _, n := range counts {
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			down := s.names[:n]
			for i, name := range down {
				if i%2 == 0 {
					s.links[name].Stall()
				} else {
					s.links[name].Refuse()
				}
			}
			s.serve()
			defer s.stop()
			if s.took > 3*time.Second {
				t.Errorf("ready after %v, more than 3 s", s.took)
			}
			alice := s.as("alice")
			began := time.Now()
			nodes, status, err := alice.list("/", 1)
			var names []string
			for _, node := range nodes {
				names = append(names, strings.TrimPrefix(node.path, "/"))
			}
			for _, slug := range s.spaces() {
				if !slices.Contains(names, slug) {
					t.Errorf("the root lists %q without %s (%d %v)", names, slug, status, err)
				}
			}
			listed := time.Since(began)
			st := s.readiness()
			if st.Status != "degraded" || st.Down != n || st.Up != 7-n {
				t.Errorf("readyz: %+v", st)
			}
			shown := s.cellgate("workspace", "list")
			for _, slug := range s.spaces() {
				if slices.Contains(down, slug) {
					if st.Datasources[slug] != "down" || !regexpLine(shown, slug, "unavailable") {
						t.Errorf("%s is down, but said to be %q\n%s", slug, st.Datasources[slug], shown)
					}
					began := time.Now()
					if r := alice.do("GET", "/"+slug+"/f", ""); r.status != 503 && r.status != 504 || time.Since(began) > 5*time.Second {
						t.Errorf("GET on %s, which is down: %d after %v", slug, r.status, time.Since(began))
					}
				} else if !s.serves(alice, slug) {
					t.Errorf("%s does not work while %q are down", slug, down)
				}
			}
			for _, name := range down {
				s.links[name].Heal()
			}
			healed := time.Now()
			for _, name := range down {
				eventually(t, 15*time.Second-time.Since(healed), name+" is back", func() bool { return s.serves(alice, name) })
			}
			t.Logf("%d of 7 down: ready after %v, root listed in %v, all back after %v", n, s.took, listed, time.Since(healed))
			eventually(t, 5*time.Second, "the box is ready", func() bool { return s.readiness().Status == "ready" })
		})
	}
}

// regexpLine reports whether a line of text begins with one word and holds another.
func regexpLine(text, first, word string) bool {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == first && strings.Contains(line, word) {
			return true
		}
	}
	return false
}

// content is pseudo-random text, so that every part of it is told from every other.
func content(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = r.Read(b)
	return b
}

// backend returns what the server of a kind has under a name of docs.
func (k *kind) backend(name string) (text string, there bool) {
	if k.fake != nil {
		return k.fake.Read("/docs/" + name)
	}
	b, err := os.ReadFile(filepath.Join(k.server.Root, "docs", name))
	return string(b), err == nil
}

// fetchFile gets a file that need not come whole.
func (c *client) fetchFile(path string) (body []byte, whole bool, status int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", c.base+"/dav"+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.SetBasicAuth(c.user, c.pass)
	res, err := c.c.Do(req)
	if err != nil {
		return nil, false, 0
	}
	defer res.Body.Close()
	body, err = io.ReadAll(res.Body)
	return body, err == nil && res.StatusCode == 200, res.StatusCode
}

// N01 through a bad line, D01 and D02: an upload whose line is cut is never published, a download whose line is cut goes on or fails visibly
// and is never short, a slow line is only slow, and one that stalls fails by the deadline and heals by itself.
func TestN01Line(t *testing.T) {
	names := kinds
	if testing.Short() {
		names = []string{"sftp", "webdav", "s3"}
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := startKind(t, name)
			link := netfault.New(t, k.addr())
			k.via(link)
			k.options["deadline"], k.options["progress"] = "2s", "3s"
			b := start(t, k.state())
			alice := b.as("alice")
			old := content(4<<20, 1)
			alice.want("PUT", "/docs/f", string(old), 201)
			back := func() {
				t.Helper()
				link.Heal()
				eventually(t, 10*time.Second, "the line works again", func() bool {
					body, whole, _ := alice.fetchFile("/docs/f")
					return whole && len(body) == len(old)
				})
			}
			if k.driver != "ftp" { // its content takes other connections than the line
				cutUploads(t, k, link, alice, back)
				cutDownloads(t, link, alice, old, back)
			}
			slowLine(t, link, alice)
			back()
			stalledLine(t, link, alice)
			back()
			b.sound()
		})
	}
}

func cutUploads(t *testing.T, k *kind, link *netfault.Proxy, alice *client, back func()) {
	t.Helper()
	acked := 0
	before, _ := k.backend("f")
	for i, n := range []int64{1000, 200_000, 1 << 20, 3 << 20} {
		for _, name := range []string{"f", fmt.Sprintf("new%d", i)} {
			fresh := content(4<<20, uint64(10+2*i))
			link.CutAfter(n)
			r, err := alice.try(context.Background(), "PUT", "/docs/"+name, bytes.NewReader(fresh))
			got, there := k.backend(name)
			back()
			switch {
			case err == nil && r.ok(): // it was sent again
				if acked++; got != string(fresh) {
					t.Fatalf("%s, cut after %d bytes, was acknowledged, and the backend has %d bytes", name, n, len(got))
				}
				if name == "f" {
					before = got
				}
			case name == "f" && got != before:
				t.Errorf("an upload cut after %d bytes was refused (%d), and replaced the file by %d bytes", n, r.status, len(got))
			case name != "f" && there:
				t.Errorf("an upload cut after %d bytes was refused (%d), and left %d bytes", n, r.status, len(got))
			}
			if name != "f" {
				want := 404
				if err == nil && r.ok() {
					want = 200
				}
				alice.want("GET", "/docs/"+name, "", want)
			}
		}
	}
	t.Logf("8 uploads cut, %d of them came through all the same", acked)
	alice.do("PUT", "/docs/f", string(content(4<<20, 1)))
}

func cutDownloads(t *testing.T, link *netfault.Proxy, alice *client, want []byte, back func()) {
	t.Helper()
	resumed, failed := 0, 0
	try := func(what string) {
		t.Helper()
		body, whole, status := alice.fetchFile("/docs/f")
		switch {
		case whole && sha256.Sum256(body) == sha256.Sum256(want):
			resumed++
		case whole:
			t.Errorf("a download %s is %d bytes long and taken for whole", what, len(body))
		case !bytes.HasPrefix(want, body) && status == 200:
			t.Errorf("a download %s yields bytes that are not the file's", what)
		default:
			failed++
		}
	}
	for _, n := range []int64{2000, 300_000, 1 << 20, 3 << 20} {
		link.CutAfter(n)
		try(fmt.Sprintf("cut after %d bytes", n))
		back()
	}
	link.CutEvery(1 << 20)
	try("cut every 1 MiB")
	back()
	link.Rate(4 << 20)
	time.AfterFunc(300*time.Millisecond, link.Reset)
	try("with a reset")
	back()
	t.Logf("6 downloads cut: %d resumed, %d failed visibly", resumed, failed)
}

func slowLine(t *testing.T, link *netfault.Proxy, alice *client) {
	t.Helper()
	small := content(20_000, 5)
	alice.want("PUT", "/docs/small", string(small), 201)
	link.Rate(10_000)
	done := make(chan struct{})
	var wg sync.WaitGroup
	var worst time.Duration
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				began := time.Now()
				if r, err := alice.try(context.Background(), "PUT", "/near/n", strings.NewReader("x")); err != nil || !r.ok() {
					t.Errorf("beside a slow line: %d %v", r.status, err)
				}
				worst = max(worst, time.Since(began))
			}
		}
	})
	began := time.Now()
	body, whole, status := alice.fetchFile("/docs/small")
	down := time.Since(began)
	if !whole || !bytes.Equal(body, small) {
		t.Errorf("a download of 20 KB at 10 KB/s: %d, %d bytes after %v", status, len(body), down)
	}
	began = time.Now()
	up, err := alice.try(context.Background(), "PUT", "/docs/small2", bytes.NewReader(small))
	if err != nil || !up.ok() {
		t.Errorf("an upload of 20 KB at 10 KB/s: %d %v %s after %v", up.status, err, up.body, time.Since(began))
	}
	close(done)
	wg.Wait()
	t.Logf("20 KB at 10 KB/s: down in %v, up in %v; the other mount's longest write meanwhile %v", down, time.Since(began), worst)
}

func stalledLine(t *testing.T, link *netfault.Proxy, alice *client) {
	t.Helper()
	link.Stall()
	var wg sync.WaitGroup
	for _, verb := range []string{"GET", "PUT", "MKCOL", "DELETE", "PROPFIND", "MOVE"} {
		path := map[string]string{"PUT": "/docs/stalled", "MKCOL": "/docs/d", "DELETE": "/docs/small", "MOVE": "/docs/small"}[verb]
		if path == "" {
			path = "/docs/f"
		}
		wg.Go(func() {
			began := time.Now()
			r, err := alice.try(context.Background(), verb, path, strings.NewReader(""), "Depth: 0", alice.to("/docs/moved"))
			took := time.Since(began)
			if err == nil && r.ok() && verb != "PROPFIND" && verb != "GET" || took > 12*time.Second {
				t.Errorf("%s on a stalled line: %d %v after %v", verb, r.status, err, took)
			}
		})
	}
	wg.Wait()
}
