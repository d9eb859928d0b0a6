package e2e

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// person is a user with all principals, as the model sees them.
type person struct {
	login      string
	principals []string
}

// grantFact gives a principal actions at a path; without actions it is a deny.
type grantFact struct{ to, on, rights string }

// bundles are what rights of a grant allow. The last ones are named policies.
var bundles = map[string][]string{
	"deny": nil, "read": {"list", "download"}, "write": {"create", "modify", "delete"}, "read, write": {"list", "download", "create", "modify", "delete"},
	"policy:p-list": {"list"}, "policy:p-create": {"create"}, "policy:p-modify": {"modify", "list"}, "policy:p-delete": {"delete"}, "policy:p-get": {"download"},
}

// world is a naive model of one workspace: what there is and who was granted what. Paths are below the workspace, "" its root.
type world struct {
	nodes  map[string]bool // true: a folder
	grants []grantFact
}

func parent(p string) string { return p[:max(0, strings.LastIndexByte(p, '/'))] }

func below(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// may is the rule of POLICY §1, said as plainly as it goes.
func (w *world) may(who person, act, path string) bool {
	allowed, decided := false, false
	for at := path; ; at = parent(at) {
		found := false
		for _, g := range w.grants {
			if g.on != at || !slices.Contains(who.principals, g.to) {
				continue
			}
			if g.rights == "deny" {
				return false
			}
			found = true
			allowed = allowed || !decided && slices.Contains(bundles[g.rights], act)
		}
		decided = decided || found
		if at == "" {
			return allowed
		}
	}
}

// mayTree is may for path and every place below it that a grant names.
func (w *world) mayTree(who person, act, path string) bool {
	return w.may(who, act, path) && !slices.ContainsFunc(w.grants, func(g grantFact) bool { return below(g.on, path) && !w.may(who, act, g.on) })
}

// refusal is how somebody who may not is told so: who may not know of the node hears that it is not there.
func (w *world) refusal(who person, path string) string {
	if w.may(who, "list", path) || w.may(who, "download", path) {
		return "denied"
	}
	return "absent"
}

func (w *world) exists(path string) bool { _, ok := w.nodes[path]; return ok }

// named reports whether a grant names path or something below it.
func (w *world) named(path string) bool {
	return slices.ContainsFunc(w.grants, func(g grantFact) bool { return g.on == path || below(g.on, path) })
}

func (w *world) remove(path string) {
	maps.DeleteFunc(w.nodes, func(p string, _ bool) bool { return p == path || below(p, path) })
}

// expect returns every reason there is to refuse, none when the request must succeed.
func (w *world) expect(who person, method, path, to string) (reasons []string) {
	because := func(refused bool, reason string) {
		if refused {
			reasons = append(reasons, reason)
		}
	}
	need := func(act, p string) { because(!w.may(who, act, p), w.refusal(who, p)) }
	dir, exists := w.nodes[path], w.exists(path)
	switch method {
	case "GET":
		need("download", path)
		because(!exists, "absent")
	case "PROPFIND":
		need("list", path)
		because(!exists, "absent")
	case "PUT":
		because(exists && dir, "wrong kind")
		act := "create"
		if exists {
			act = "modify"
		}
		need(act, path)
		because(!w.nodes[parent(path)], "absent")
	case "MKCOL":
		need("create", path)
		because(exists, "wrong kind")
		because(!w.nodes[parent(path)], "absent")
	case "DELETE":
		because(!w.mayTree(who, "delete", path), w.refusal(who, path))
		because(!exists, "absent")
	case "PROPPATCH":
		act := "modify"
		if dir {
			act = "create"
		}
		need(act, path)
		because(!exists, "absent")
	case "COPY", "MOVE":
		act := "download"
		if method == "MOVE" {
			act = "delete"
		}
		because(!w.mayTree(who, act, path), w.refusal(who, path))
		because(!exists, "absent")
		because(!w.mayTree(who, "create", to), w.refusal(who, to))
		because(w.exists(to) && !w.mayTree(who, "delete", to), w.refusal(who, to))
		because(!w.nodes[parent(to)], "absent")
	}
	return reasons
}

// do makes what succeeded so.
func (w *world) do(method, path, to string) {
	switch method {
	case "PUT":
		w.nodes[path] = false
	case "MKCOL":
		w.nodes[path] = true
	case "DELETE":
		w.remove(path)
	case "COPY", "MOVE":
		w.remove(to)
		for p, dir := range maps.Clone(w.nodes) {
			if p == path || below(p, path) {
				w.nodes[to+p[len(path):]] = dir
			}
		}
		if method == "MOVE" {
			w.remove(path)
		}
	}
}

// shown reports whether a door has the request, and answers it by the node's own rights alone. A kernel asks for each folder on the way first,
// and an object store for none; neither tells a folder that is missing from one that it makes.
func (w *world) shown(door string, who person, method, path string) bool {
	dir, exists := w.nodes[path], w.exists(path)
	if !slices.Contains([]string{"GET", "PUT", "DELETE", "MKCOL", "PROPFIND"}, method) || door == "webdav" || path == "" || dir && method != "MKCOL" {
		return false
	}
	switch door {
	case "s3":
		return method != "MKCOL" && w.nodes[parent(path)] && (exists || method != "DELETE") && (method != "DELETE" || w.may(who, "list", path))
	case "fuse":
		if exists && !w.may(who, "list", path) {
			return false
		}
		for at := parent(path); ; at = parent(at) {
			if !w.may(who, "list", at) {
				return false
			}
			if at == "" {
				return true
			}
		}
	}
	return true
}

// through does a request by another door and returns "done" or "refused", with why.
func (w *world) through(d way, method, path, content string) (outcome string, err error) {
	switch method {
	case "GET":
		_, err = d.get(path)
	case "PUT":
		err = d.put(path, content)
	case "DELETE":
		err = d.remove(path)
	case "MKCOL":
		err = d.mkdir(path)
	case "PROPFIND":
		_, err = d.size(path)
	}
	if err != nil {
		return "refused", err
	}
	return "done", nil
}

// class is what a status means.
func class(status int) string {
	switch status {
	case 403:
		return "denied"
	case 404, 409:
		return "absent"
	case 405:
		return "wrong kind"
	}
	if status >= 200 && status < 300 {
		return "done"
	}
	return fmt.Sprint("status ", status)
}

// A01: random rights, users, paths and requests over the wire, against the model. The error class counts, too.
func TestA01Rights(t *testing.T) {
	t.Parallel()
	n := seed(t)
	rng := rand.New(rand.NewPCG(n, 7))
	people := []person{
		{"u0", []string{"user:u0", "group:/", "group:/g", "profile:standard", "everyone", "role:r0"}},
		{"u1", []string{"user:u1", "group:/", "group:/g", "group:/g/h", "profile:standard", "everyone", "role:r0", "role:r1"}},
		{"u2", []string{"user:u2", "group:/", "group:/x", "profile:external", "everyone"}},
		{"u3", []string{"user:u3", "group:/", "profile:standard", "everyone", "role:r1"}},
	}
	b := prepare(t)
	b.serve()
	state := `
datasources: [{name: disk, driver: local, options: {path: FILES}, durability: written}]
groups: [{path: /g}, {path: /g/h}, {path: /x}]
roles: [{name: r0}, {name: r1}]
users:
  - {login: u0, password: u0-password, group: /g, roles: [r0], s3Keys: [{id: u0-key, secret: u0-secret-0123456789}]}
  - {login: u1, password: u1-password, group: /g/h, roles: [r0, r1], s3Keys: [{id: u1-key, secret: u1-secret-0123456789}]}
  - {login: u2, password: u2-password, group: /x, profile: external, s3Keys: [{id: u2-key, secret: u2-secret-0123456789}]}
  - {login: u3, password: u3-password, roles: [r1], s3Keys: [{id: u3-key, secret: u3-secret-0123456789}]}
policies:
`
	for name, acts := range bundles {
		if p, ok := strings.CutPrefix(name, "policy:"); ok {
			state += fmt.Sprintf("  - {name: %s, kind: acl, rules: [{effect: allow, principals: [everyone], actions: [%s]}]}\n", p, strings.Join(acts, ", "))
		}
	}
	b.apply(state)
	clients, doors := map[string]*client{}, map[string]map[string]way{}
	for _, p := range people {
		clients[p.login], doors[p.login] = b.as(p.login), b.ways(p.login)
	}
	places := []string{"", "/a", "/b", "/a/c", "/a/c/d", "/b/e", "/a/f", "/a/c/g", "/a/c/d/h", "/b/e/i"}
	names := slices.Sorted(maps.Keys(bundles))
	rounds, requests := 60, 100
	if testing.Short() {
		rounds = 8
	}
	done := map[string]int{}
	tuples := 0
	for round := range rounds {
		slug := fmt.Sprintf("w%02d", round)
		w := &world{nodes: map[string]bool{"": true}}
		root := filepath.Join(b.files, slug)
		for _, p := range places {
			w.nodes[p] = p < "/a/f" && p != "/a/c/g" || p == "/b" || p == "/b/e" || p == "/a/c/d"
			if w.nodes[p] {
				if err := os.MkdirAll(root+p, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, p := range places {
			if !w.nodes[p] {
				write(t, root+p, "content")
			}
		}
		spec := "workspaces:\n  - {slug: " + slug + ", roots: [\"disk:/" + slug + "\"]}\ngrants:\n"
		seen := map[string]bool{}
		for range 3 + rng.IntN(10) {
			who := people[rng.IntN(len(people))]
			g := grantFact{who.principals[rng.IntN(len(who.principals))], places[rng.IntN(len(places))], names[rng.IntN(len(names))]}
			if rng.IntN(3) == 0 {
				g.rights = "read, write"
			}
			if seen[g.to+g.on] {
				continue
			}
			seen[g.to+g.on] = true
			w.grants = append(w.grants, g)
			spec += fmt.Sprintf("  - {to: %q, on: %q, rights: [%s]}\n", g.to, slug+":/"+strings.TrimPrefix(g.on, "/"), quoted(g.rights))
		}
		b.apply(spec)
		pick := func() string {
			p := places[rng.IntN(len(places))]
			if rng.IntN(4) == 0 {
				p += "/new" + fmt.Sprint(rng.IntN(3))
			}
			return p
		}
		for range requests {
			who := people[rng.IntN(len(people))]
			c := clients[who.login]
			method := []string{"GET", "PROPFIND", "PUT", "MKCOL", "DELETE", "COPY", "MOVE", "PROPPATCH"}[rng.IntN(8)]
			path, to := pick(), pick()
			if path == "" && method != "PROPFIND" || method == "GET" && w.nodes[path] || to == "" && (method == "COPY" || method == "MOVE") {
				continue // roots of workspaces and pages of folders have rules of their own
			}
			if (method == "COPY" || method == "MOVE") && (path == to || below(path, to) || below(to, path)) {
				continue
			}
			want := w.expect(who, method, path, to)
			changes := method == "DELETE" || method == "MOVE" || method == "COPY" || method == "PUT" || method == "MKCOL"
			if len(want) == 0 && (method == "DELETE" || method == "MOVE") && w.named(path) || len(want) == 0 && (method == "MOVE" || method == "COPY") && w.exists(to) && w.named(to) {
				continue // grants would go with the node
			}
			if door := wayNames[rng.IntN(len(wayNames))]; doors[who.login][door] != nil && w.shown(door, who, method, path) {
				tuples++
				is, err := w.through(doors[who.login][door], method, "/"+slug+path, "put by "+who.login)
				for end := time.Now().Add(2 * time.Second); door == "fuse" && err != nil && len(want) == 0 && time.Now().Before(end); {
					// The kernel may still believe what it was told a moment ago: that another door has changed it is on its way.
					is, err = w.through(doors[who.login][door], method, "/"+slug+path, "put by "+who.login)
				}
				done[door+" "+is]++
				if (is == "done") != (len(want) == 0) {
					t.Fatalf("round %d: %s by %s on %s through %s: %s (%v), the model says %v\n%s\nnodes %v", round, method, who.login, path, door, is, err, want, spec, w.nodes)
				}
				if is == "done" && changes {
					w.do(method, path, to)
				}
				continue
			}
			var got reply
			switch method {
			case "PUT":
				got = c.do(method, "/"+slug+path, "put by "+who.login)
			case "PROPPATCH":
				got = c.do(method, "/"+slug+path, `<propertyupdate xmlns="DAV:"><set><prop><m xmlns="urn:e2e">x</m></prop></set></propertyupdate>`)
			case "PROPFIND":
				got = c.do(method, "/"+slug+path, "", "Depth: 0")
			default:
				got = c.do(method, "/"+slug+path, "", c.to("/"+slug+to))
			}
			tuples++
			is := class(got.status)
			done[is]++
			if len(want) == 0 && is != "done" || len(want) > 0 && !slices.Contains(want, is) {
				t.Fatalf("round %d: %s by %s on %s (to %s): %d %s, the model says %v\n%s\nnodes %v", round, method, who.login, path, to, got.status, got.body, want, spec, w.nodes)
			}
			if is == "done" && changes {
				w.do(method, path, to)
			}
			if method == "PROPFIND" && is == "done" && w.nodes[path] {
				var names []string
				nodes, _, err := c.list("/"+slug+path, 1)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range nodes[1:] {
					names = append(names, strings.TrimPrefix(n.path, "/"+slug))
				}
				var model []string
				for p := range w.nodes {
					if p != "" && parent(p) == path && w.may(who, "list", p) {
						model = append(model, p)
					}
				}
				slices.Sort(names)
				slices.Sort(model)
				if !slices.Equal(names, model) {
					t.Fatalf("round %d: %s lists %s: got %v, the model has %v\n%s", round, who.login, path, names, model, spec)
				}
			}
		}
		// What lies on the disk is what the model has: nobody changed anything in passing.
		for p, dir := range w.nodes {
			if info, err := os.Stat(root + p); err != nil || info.IsDir() != dir {
				t.Fatalf("round %d: %s is %v, %v; the model has it as a folder: %t", round, p, info, err, dir)
			}
		}
	}
	for door := range doors["u0"] {
		if door != "webdav" && (done[door+" done"] == 0 || done[door+" refused"] == 0) {
			t.Errorf("the requests through %s show little: %v", door, done)
		}
	}
	if done["done"] < tuples/20 || done["denied"] == 0 || done["absent"] == 0 {
		t.Errorf("the requests show little: %v", done)
	}
	t.Logf("%d requests, 0 differences: %v", tuples, done)
	b.sound()
}

func quoted(rights string) string {
	if strings.HasPrefix(rights, "policy:") {
		return `"` + rights + `"`
	}
	return rights
}
