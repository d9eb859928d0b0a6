package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fact is what is known of one name.
type fact struct {
	Dir     bool
	Content string // a file's
	Mark    string // its dead property
}

// writer works alone in a folder of its own and keeps a manifest: what it was told is so, and what one unanswered request may have made so.
type writer struct {
	c     *client
	rng   *rand.Rand
	dir   string // path of its folder
	sure  map[string]fact
	maybe map[string]fact // nil unless the last request was not answered
	acked int
	count int
	what  string // the last request
}

func newWriter(c *client, dir string, seed uint64, id int) *writer {
	return &writer{c: c, rng: rand.New(rand.NewPCG(seed, uint64(id))), dir: dir, sure: map[string]fact{}}
}

// step does one random change and notes its outcome. It reports false once the box does not answer.
func (w *writer) step(ctx context.Context) (alive bool, err error) {
	w.count++
	next := maps.Clone(w.sure)
	method, name, body, header := w.choose(next)
	w.what = fmt.Sprint(method, " ", name, " ", header)
	w.maybe = next
	r, err := w.c.try(ctx, method, w.dir+"/"+name, strings.NewReader(body), header...)
	switch {
	case err != nil:
		return false, nil
	case r.ok() && !(r.status == 207 && !strings.Contains(r.body, " 200 OK")):
		w.sure, w.maybe = next, nil
		w.acked++
	case r.status >= 500:
		return true, &refused{r.status}
	default:
		return true, fmt.Errorf("%s %s%s %v: %d %s", method, w.dir, name, header, r.status, r.body)
	}
	return true, nil
}

// refused is an answer that says that the server could not, which tests with faults expect. Whether it did is then unknown.
type refused struct{ status int }

func (r *refused) Error() string { return fmt.Sprint("status ", r.status) }

// choose picks a change that must succeed, makes it in m and returns its request.
func (w *writer) choose(m map[string]fact) (method, name, body string, header []string) {
	var files, dirs []string
	for _, n := range slices.Sorted(maps.Keys(m)) {
		if m[n].Dir {
			dirs = append(dirs, n)
		} else {
			files = append(files, n)
		}
	}
	pick := func(list []string) string { return list[w.rng.IntN(len(list))] }
	place := func() string { // a name that may be taken
		n := fmt.Sprintf("f%d ü&.txt", w.rng.IntN(12))
		if len(dirs) > 0 && w.rng.IntN(2) == 0 {
			n = pick(dirs) + "/" + n
		}
		return n
	}
	newDir := func() string {
		for {
			if n := fmt.Sprintf("d%d", w.rng.IntN(50)); !m[n].Dir {
				return n
			}
		}
	}
	fresh := fact{Content: w.content()}
	put := func() (string, string, string, []string) {
		n := place()
		fresh.Mark = m[n].Mark // an overwrite keeps properties
		m[n] = fresh
		return "PUT", n, fresh.Content, nil
	}
	switch k := w.rng.IntN(10); {
	case k < 4 || len(files) == 0:
		return put()
	case k == 4 && len(dirs) < 6:
		n := newDir()
		m[n] = fact{Dir: true}
		return "MKCOL", n, "", nil
	case k == 5 && len(dirs) > 0:
		from, to := pick(dirs), newDir()
		move(m, from, to)
		return "MOVE", from, "", []string{w.c.to(w.dir + "/" + to)}
	case k == 6 && len(dirs) > 3:
		n := pick(dirs)
		drop(m, n)
		return "DELETE", n, "", nil
	case k == 7:
		n := pick(files)
		drop(m, n)
		return "DELETE", n, "", nil
	case k == 8:
		n, mark := pick(files), fmt.Sprint("mark ", w.count)
		f := m[n]
		f.Mark = mark
		m[n] = f
		return "PROPPATCH", n, `<propertyupdate xmlns="DAV:" xmlns:e="urn:e2e"><set><prop><e:mark>` + mark + `</e:mark></prop></set></propertyupdate>`, nil
	}
	from, to := pick(files), place()
	if from == to {
		return put()
	}
	move(m, from, to)
	return "MOVE", from, "", []string{w.c.to(w.dir + "/" + to), "Overwrite: T"}
}

// content is text that says whose it is and how long, so that a torn or mixed file is known for one.
func (w *writer) content() string {
	size := w.rng.IntN(2 << 10)
	if w.rng.IntN(8) == 0 {
		size = w.rng.IntN(256 << 10)
	}
	line := fmt.Sprintf("%s %d %d\n", w.dir, w.count, size)
	return strings.Repeat(line, 1+size/len(line))
}

func drop(m map[string]fact, name string) {
	maps.DeleteFunc(m, func(n string, _ fact) bool { return n == name || strings.HasPrefix(n, name+"/") })
}

func move(m map[string]fact, from, to string) {
	drop(m, to)
	for _, n := range slices.Sorted(maps.Keys(m)) {
		if n == from || strings.HasPrefix(n, from+"/") {
			m[to+n[len(from):]] = m[n]
			delete(m, n)
		}
	}
}

// verify compares the folder with the manifest: acknowledged changes are there, one that was not answered wholly or not at all.
func (w *writer) verify(t *testing.T) {
	t.Helper()
	got, err := w.look()
	if err != nil {
		t.Errorf("%s: %v", w.dir, err)
		return
	}
	if cmp.Equal(got, w.sure) {
		w.maybe = nil
		return
	}
	if w.maybe != nil && cmp.Equal(got, w.maybe) {
		w.sure, w.maybe = w.maybe, nil
		return
	}
	t.Errorf("%s after %d acknowledged changes, the last request was %s (unanswered: %t): -want +got\n%s", w.dir, w.acked, w.what, w.maybe != nil,
		tail(cmp.Diff(short(w.sure), short(got)), 3000))
	w.sure, w.maybe = got, nil
}

// short makes a manifest fit for people.
func short(m map[string]fact) map[string]string {
	s := make(map[string]string)
	for n, f := range m {
		head, _, _ := strings.Cut(f.Content, "\n")
		s[n] = fmt.Sprintf("dir %t, %d bytes of %q, mark %q", f.Dir, len(f.Content), head, f.Mark)
	}
	return s
}

// look reads the whole folder over the wire.
func (w *writer) look() (map[string]fact, error) {
	found := map[string]fact{}
	todo := []string{w.dir}
	for len(todo) > 0 {
		dir := todo[0]
		todo = todo[1:]
		nodes, status, err := w.c.list(dir, 1)
		if err != nil || status != 207 {
			return nil, errors.Join(err, fmt.Errorf("PROPFIND %s: %d", dir, status))
		}
		for _, n := range nodes {
			if n.path == dir {
				continue
			}
			f := fact{Dir: n.dir, Mark: n.mark}
			if n.dir {
				todo = append(todo, n.path)
			} else {
				r, err := w.c.try(context.Background(), "GET", n.path, nil)
				if err != nil || r.status != 200 {
					return nil, errors.Join(err, fmt.Errorf("GET %s: %d", n.path, r.status))
				}
				f.Content = r.body
			}
			found[strings.TrimPrefix(n.path, w.dir+"/")] = f
		}
	}
	return found, nil
}
