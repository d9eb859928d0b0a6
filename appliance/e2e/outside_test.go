package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// outsideRecords are the changes that the audit log says were made outside: "action place".
func (b *box) outsideRecords() (all []string) {
	b.t.Helper()
	var records []struct{ Action, Place, Protocol, Actor string }
	if err := json.Unmarshal([]byte(b.cellgate("audit", "list", "--json", "--limit", "0")), &records); err != nil {
		b.t.Fatal(err)
	}
	for _, r := range records {
		if r.Protocol == "outside" {
			if r.Actor != "" {
				b.t.Errorf("%s of %s is said to be %s's", r.Action, r.Place, r.Actor)
			}
			all = append(all, r.Action+" "+r.Place)
		}
	}
	slices.Sort(all)
	return all
}

// hand is somebody who works on the storage beside the gateway, in its folder docs.
type hand struct {
	put    func(name, text string)
	remove func(name string)
	mkdir  func(name string)
}

func (k *kind) hand(t *testing.T) hand {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	if k.fake != nil {
		return hand{
			put: func(name, text string) { k.fake.Put("/docs/"+name, text) }, remove: func(name string) { k.fake.Remove("/docs/" + name) },
			mkdir: func(name string) { k.fake.Mkdir("/docs/" + name) },
		}
	}
	at := func(name string) string { return filepath.Join(k.server.Root, "docs", name) }
	var owner func(name string)
	if info, err := os.Stat(at(".")); err == nil { // what an FTP server's user shall read and write has to be that user's
		owner = func(name string) { must(own(at(name), info)) }
	}
	return hand{
		put: func(name, text string) {
			must(os.WriteFile(at(name)+".new", []byte(text), 0o644))
			owner(name + ".new")
			must(os.Rename(at(name)+".new", at(name)))
		},
		remove: func(name string) { must(os.RemoveAll(at(name))) },
		mkdir: func(name string) {
			must(os.Mkdir(at(name), 0o755))
			owner(name)
			if k.name == "s3" { // a folder is there as soon as something is in it
				must(os.WriteFile(at(name+"/x"), nil, 0o644))
			}
		},
	}
}

// A change made behind the gateway is seen within the age of the cache, on every kind of storage, and recorded as made outside: once, with what
// the gateway does itself never among it. Dropbox tells by itself; the folders in use of the others are looked at.
func TestOutsideChanges(t *testing.T) {
	eachKind(t, func(t *testing.T, k *kind) {
		const age = 2 * time.Second
		k.options["cacheAge"], k.options["poll"] = "2s", "1s"
		if k.fake != nil {
			k.options["poll"] = "0s"
		}
		b := start(t, k.state())
		alice, other := b.as("alice"), k.hand(t)
		for _, name := range []string{"kept", "changed", "gone"} {
			alice.want("PUT", "/docs/"+name, "first", 201)
		}
		look := func() string {
			t.Helper()
			nodes, status, err := alice.list("/docs", 1)
			if err != nil || status != 207 {
				t.Fatalf("PROPFIND: %d %v", status, err)
			}
			var names []string
			for _, n := range nodes {
				names = append(names, strings.TrimPrefix(n.path, "/docs"))
			}
			slices.Sort(names)
			return strings.Join(names, " ")
		}
		look()
		time.Sleep(1500 * time.Millisecond) // so that the folder was looked at
		other.put("changed", "second, and longer")
		other.put("new", "by hand")
		other.mkdir("folder")
		other.remove("gone")
		began := time.Now()
		eventually(t, age+time.Second, "the changes are seen", func() bool { return look() == " /changed /folder /kept /new" })
		listed := time.Since(began)
		eventually(t, age+time.Second-listed, "the new content is read", func() bool {
			return alice.do("GET", "/docs/changed", "").body == "second, and longer"
		})
		seen := time.Since(began)
		if got := alice.want("GET", "/docs/new", "", 200); got.body != "by hand" {
			t.Errorf("the new file is %q", got.body)
		}
		alice.want("GET", "/docs/gone", "", 404)

		want := []string{"create far:/docs/folder", "create far:/docs/new", "delete far:/docs/gone", "modify far:/docs/changed"}
		var got []string
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && !slices.Equal(got, want); time.Sleep(100 * time.Millisecond) {
			got = b.outsideRecords()
		}
		if !slices.Equal(got, want) {
			t.Fatalf("recorded %q, want %q", got, want)
		}
		recorded := time.Since(began)

		// What the gateway does itself is not somebody else's, whatever is done after the other; and the same is not said twice.
		for i := range 5 {
			name := fmt.Sprintf("/docs/own%d", i)
			alice.want("PUT", name, "own", 201)
			alice.want("PUT", name, "own again", 204)
			alice.want("MOVE", name, "", 201, alice.to(name+"-moved"))
			alice.want("DELETE", name+"-moved", "", 204)
		}
		alice.want("MKCOL", "/docs/sub", "", 201)
		alice.want("PUT", "/docs/kept", "through the gateway", 204)
		look()
		time.Sleep(3 * time.Second)
		if got := b.outsideRecords(); !slices.Equal(got, want) {
			t.Errorf("after what the gateway did itself: %q, want %q", got, want)
		}
		t.Logf("%s: listed after %v, read after %v, recorded after %v", k.name, listed.Round(time.Millisecond), seen.Round(time.Millisecond), recorded.Round(time.Millisecond))
		b.sound()
	})
}

// own gives a file to who owns another.
func own(name string, like os.FileInfo) error {
	st, ok := like.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return os.Chown(name, int(st.Uid), int(st.Gid))
}
