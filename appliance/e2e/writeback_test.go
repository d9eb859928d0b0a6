package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/mounts/mounttest/netfault"
)

// slowStorage is a box whose workspace docs lies on SFTP across a slow line, with writeBack.
func slowStorage(t *testing.T) (*box, *kind, *netfault.Proxy) {
	t.Helper()
	k := startKind(t, "sftp")
	link := netfault.New(t, k.addr())
	k.via(link)
	k.options["writeBack"], k.options["deadline"], k.options["progress"] = "true", "2s", "3s"
	b := start(t, k.state())
	b.as("alice").want("MKCOL", "/docs/d", "", 201)
	link.Delay(50 * time.Millisecond)
	return b, k, link
}

// arrived reports how many of the files are on the backend as they were put.
func arrived(k *kind, files map[string]string) (n int) {
	for name, want := range files {
		if got, there := k.backend(name); there && got == want {
			n++
		}
	}
	return n
}

// D04 with writeBack: what was acknowledged while it waits for the backend survives kill -9, and arrives after the restart; a file that was
// written again arrives with its last content, and one that was deleted does not.
func TestD04WriteBack(t *testing.T) {
	t.Parallel()
	b, k, link := slowStorage(t)
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	waited := 0
	files := map[string]string{}
	for round := range rounds {
		var mu sync.Mutex
		alice := b.as("alice")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					name, text := fmt.Sprintf("d/%d-%d-%d", round, i, n/2), fmt.Sprintf("round %d of %d: %s", n, i, strings.Repeat("x", 100*n))
					mu.Lock()
					before := files[name]
					mu.Unlock()
					r, err := alice.try(context.Background(), "PUT", "/docs/"+name, strings.NewReader(text))
					mu.Lock()
					switch {
					case err != nil && before != "": // it may be either
						delete(files, name)
					case err == nil && r.ok():
						files[name] = text
					case err == nil:
						t.Errorf("PUT %s: %d %s", name, r.status, r.body)
					}
					mu.Unlock()
				}
			})
		}
		time.Sleep(700 * time.Millisecond)
		b.kill()
		cancel()
		wg.Wait()
		waited += len(files) - arrived(k, files)
		if round == rounds-1 {
			link.Heal()
		}
		b.serve()
		alice = b.as("alice")
		eventually(t, 10*time.Second, "the storage is open", func() bool { return alice.do("GET", "/docs/", "").status == 200 })
		names := slices.Collect(maps.Keys(files))
		each(8, func(w int) { // whether it waits or not
			for i := w; i < len(names); i += 8 {
				name, want := names[i], files[names[i]]
				if got := alice.do("GET", "/docs/"+name, ""); got.status != 200 || got.body != want {
					t.Errorf("after kill -9 %s has %d bytes (%d), want %d", name, len(got.body), got.status, len(want))
				}
			}
		})
	}
	alice := b.as("alice")
	alice.want("DELETE", "/docs/d/0-0-0", "", 204)
	delete(files, "d/0-0-0")
	eventually(t, 30*time.Second, "everything arrives", func() bool { return arrived(k, files) == len(files) })
	if _, there := k.backend("d/0-0-0"); there {
		t.Error("a deleted file is back")
	}
	if len(files) < 10*rounds || waited == 0 {
		t.Errorf("%d files were acknowledged, %d of them waited at a kill: this shows nothing", len(files), waited)
	}
	t.Logf("%d files acknowledged in %d rounds, %d of them waited for the backend when the box was killed, all arrived", len(files), rounds, waited)
	eventually(t, 10*time.Second, "nothing waits", func() bool { return !strings.Contains(b.cellgate("datasource", "show", "far"), "waits to be written") })
	b.sound()
}

// N03 with writeBack: what waits for a backend that is away is read through the box all the while, the datasource says what waits, and it
// arrives when the backend is back; a restart meanwhile changes nothing.
func TestN03WriteBack(t *testing.T) {
	t.Parallel()
	b, k, link := slowStorage(t)
	alice := b.as("alice")
	files := map[string]string{}
	link.Delay(400 * time.Millisecond)
	alice.want("PROPFIND", "/docs/d", "", 207, "Depth: 1")
	var mu sync.Mutex
	each(12, func(i int) {
		name := fmt.Sprintf("d/%d", i)
		r, err := alice.try(context.Background(), "PUT", "/docs/"+name, strings.NewReader("text of "+name))
		mu.Lock()
		defer mu.Unlock()
		if err == nil && r.ok() {
			files[name] = "text of " + name
		}
	})
	link.Refuse()
	link.Reset()
	waiting := len(files) - arrived(k, files)
	if waiting == 0 {
		t.Fatalf("%d files are there already: this shows nothing", len(files))
	}
	readable := func(d time.Duration) {
		t.Helper()
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
			for name, want := range files {
				if _, there := k.backend(name); there {
					continue // it lies where nobody can look now
				}
				if got := alice.do("GET", "/docs/"+name, ""); got.body != want {
					t.Fatalf("while the backend is away %s is %d %.200s", name, got.status, got.body)
				}
			}
			if shown := b.cellgate("datasource", "show", "far"); strings.Count(shown, "waits to be written") != waiting {
				t.Fatalf("%d files wait, and the datasource says\n%s", waiting, shown)
			}
		}
	}
	away := 14 * time.Second
	if testing.Short() {
		away = 7 * time.Second
	}
	readable(away)
	link.Heal()
	eventually(t, 30*time.Second, "everything arrives", func() bool { return arrived(k, files) == len(files) })
	eventually(t, 15*time.Second, "nothing waits", func() bool {
		return !strings.Contains(b.cellgate("datasource", "show", "far"), "waits to be written")
	})
	for name, want := range files {
		if got := alice.want("GET", "/docs/"+name, "", 200); got.body != want {
			t.Errorf("%s is %q", name, got.body)
		}
	}
	b.sound()
}
