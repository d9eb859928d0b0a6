package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/clock"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// counter counts the requests that reach a backend across a network, below all that the core puts in front of it.
type counter struct {
	mu   sync.Mutex
	seen map[string]int // by "Verb name", guarded by mu
}

func (c *counter) note(verb, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[verb+" "+name]++
}

// over returns b with every call counted.
func (c *counter) over(b mounts.Backend) mounts.Backend {
	return mounts.Around(b, mounts.Hooks{
		Call: func(_ context.Context, op, name string, do func() error) error {
			c.note(op, name)
			return do()
		},
		List: func(_ context.Context, dir string, all iter.Seq2[mounts.Info, error]) iter.Seq2[mounts.Info, error] {
			c.note("List", dir)
			return all
		},
	})
}

// take returns what was counted since it was called last.
func (c *counter) take() map[string]int {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := c.seen
	c.seen = map[string]int{}
	return seen
}

// TestRequests says which requests an operation costs a backend across a network, the cache included: none more than the protocols need
// (PERFORMANCE 14 and 15). What is not listed is not asked. The cache is cold when nothing is remembered of the folder, and warm when it has
// just been listed.
func TestRequests(t *testing.T) {
	const n = 500
	for _, tt := range []struct {
		name       string
		do         func(ctx context.Context, s *gateway.Session) error
		cold, warm []string
	}{
		{"list", func(ctx context.Context, s *gateway.Session) error { return lists(ctx, s, n+1) }, []string{"Stat docs/d", "List docs/d"}, nil},
		{"list twice", func(ctx context.Context, s *gateway.Session) error {
			if err := lists(ctx, s, n+1); err != nil {
				return err
			}
			return lists(ctx, s, n+1)
		}, []string{"Stat docs/d", "List docs/d"}, nil},
		{"stat", func(ctx context.Context, s *gateway.Session) error {
			_, err := s.Stat(ctx, gatewaytest.Path("/docs/d/f7"))
			return err
		}, []string{"Stat docs/d/f7"}, nil},
		{"stat of what is not there", func(ctx context.Context, s *gateway.Session) error {
			if _, err := s.Stat(ctx, gatewaytest.Path("/docs/d/none")); err == nil {
				return fmt.Errorf("there is none")
			}
			return nil
		}, []string{"Stat docs/d/none"}, nil},
		{"read a file", func(ctx context.Context, s *gateway.Session) error {
			return reads(ctx, s, "/docs/d/f7", gateway.ReadOptions{}, 7)
		},
			[]string{"Open docs/d/f7"}, []string{"Open docs/d/f7"}},
		{"read a part", func(ctx context.Context, s *gateway.Session) error {
			return reads(ctx, s, "/docs/d/big", gateway.ReadOptions{Off: 300 << 10, N: 64 << 10}, 64<<10)
		}, []string{"Open docs/d/big"}, []string{"Open docs/d/big"}},
		{"open and read nothing", func(ctx context.Context, s *gateway.Session) error {
			return reads(ctx, s, "/docs/d/f7", gateway.ReadOptions{N: -1}, 0)
		}, []string{"Stat docs/d/f7"}, nil},
		{"make a file", func(ctx context.Context, s *gateway.Session) error { return puts(ctx, s, "/docs/d/new", 100) },
			[]string{"Stat docs/d/new", "Stat docs/d", "Put docs/d/new"}, []string{"Put docs/d/new"}},
		{"make three files", func(ctx context.Context, s *gateway.Session) error {
			for i := range 3 {
				if err := puts(ctx, s, fmt.Sprintf("/docs/d/new%d", i), 100); err != nil {
					return err
				}
			}
			return nil
		}, []string{ // the third miss in a row has the folder listed, which answers for all that follow
			"Stat docs/d/new0", "Stat docs/d", "Put docs/d/new0", "Stat docs/d/new1", "Put docs/d/new1", "List docs/d", "Put docs/d/new2",
		}, []string{"Put docs/d/new0", "Put docs/d/new1", "Put docs/d/new2"}},
		{"replace a file", func(ctx context.Context, s *gateway.Session) error { return puts(ctx, s, "/docs/d/f7", 100) },
			[]string{"Stat docs/d/f7", "Put docs/d/f7"}, []string{"Put docs/d/f7"}},
		{"make a large file", func(ctx context.Context, s *gateway.Session) error { return puts(ctx, s, "/docs/d/new", 1<<20) },
			[]string{"Stat docs/d/new", "Stat docs/d", "Put docs/d/new"}, []string{"Put docs/d/new"}},
		{"make a file and read it", func(ctx context.Context, s *gateway.Session) error {
			if err := puts(ctx, s, "/docs/d/new", 100); err != nil {
				return err
			}
			return reads(ctx, s, "/docs/d/new", gateway.ReadOptions{}, 100)
		}, []string{"Stat docs/d/new", "Stat docs/d", "Put docs/d/new", "Open docs/d/new"}, []string{"Put docs/d/new", "Open docs/d/new"}},
		{"delete a file", func(ctx context.Context, s *gateway.Session) error {
			return s.Remove(ctx, gatewaytest.Path("/docs/d/f7"), gateway.RemoveOptions{Recursive: true})
		}, []string{"Stat docs/d/f7", "Remove docs/d/f7"}, []string{"Remove docs/d/f7"}},
		{"make a folder", func(ctx context.Context, s *gateway.Session) error {
			return s.Mkdir(ctx, gatewaytest.Path("/docs/d/sub"))
		},
			[]string{"Stat docs/d/sub", "Stat docs/d", "Mkdir docs/d/sub"}, []string{"Mkdir docs/d/sub"}},
		{"make a folder and files in it", func(ctx context.Context, s *gateway.Session) error {
			if err := s.Mkdir(ctx, gatewaytest.Path("/docs/d/sub")); err != nil {
				return err
			}
			for i := range 2 {
				if err := puts(ctx, s, fmt.Sprintf("/docs/d/sub/%d", i), 100); err != nil {
					return err
				}
			}
			return nil
		}, []string{"Stat docs/d/sub", "Stat docs/d", "Mkdir docs/d/sub", "Put docs/d/sub/0", "Put docs/d/sub/1"},
			[]string{"Mkdir docs/d/sub", "Put docs/d/sub/0", "Put docs/d/sub/1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for what, want := range map[string][]string{"cold": tt.cold, "warm": tt.warm} {
				t.Run(what, func(t *testing.T) {
					h, c := counted(t, n)
					s := h.As("alice")
					if what == "warm" {
						if err := lists(t.Context(), s, n+1); err != nil {
							t.Fatal(err)
						}
						c.take()
					}
					if err := tt.do(t.Context(), s); err != nil {
						t.Fatal(err)
					}
					wanted := map[string]int{}
					for _, request := range want {
						wanted[request]++
					}
					if got := c.take(); !maps.Equal(got, wanted) {
						t.Errorf("got %v\nwant %v", got, wanted)
					}
				})
			}
		})
	}
}

// TestRequestsAge: what is remembered is asked again when it is too old, once.
func TestRequestsAge(t *testing.T) {
	h, c := counted(t, 10)
	s := h.As("alice")
	for range 2 {
		h.Clock.Advance(6 * time.Second)
		for range 3 {
			if err := lists(t.Context(), s, 11); err != nil {
				t.Fatal(err)
			}
		}
		if got := c.take(); got["List docs/d"] != 1 || got["Stat docs/d"] > 1 || len(got) > 2 {
			t.Errorf("three listings within the age: %v", got)
		}
	}
}

// counted is a house whose disk lies across a network, with the folder docs/d of n small files and a big one. Nothing of it is remembered.
func counted(t *testing.T, n int) (*gatewaytest.House, *counter) {
	t.Helper()
	disk, c := mem.New(mem.Config{}), &counter{seen: map[string]int{}}
	if err := mounts.MkdirAll(t.Context(), disk, "docs/d"); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if _, err := mounts.WriteFile(t.Context(), disk, fmt.Sprintf("docs/d/f%d", i), []byte("content")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mounts.WriteFile(t.Context(), disk, "docs/d/big", bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	h := gatewaytest.New(t, gatewaytest.Config{
		Clock:  clock.At(time.Now().Add(time.Hour)),
		Limits: gateway.Limits{Retry: time.Hour}, // it would look now and then whether the backend is there
		Disks:  map[string]mounts.Backend{"disk": c.over(gatewaytest.Far(disk, mounts.Native))},
	})
	h.Clock.Advance(time.Minute)
	c.take()
	return h, c
}

func lists(ctx context.Context, s *gateway.Session, want int) error {
	if _, err := s.Stat(ctx, gatewaytest.Path("/docs/d")); err != nil { // PROPFIND tells of the folder, too
		return err
	}
	n := 0
	for _, err := range s.List(ctx, gatewaytest.Path("/docs/d")) {
		if err != nil {
			return err
		}
		n++
	}
	if n != want {
		return fmt.Errorf("listed %d, want %d", n, want)
	}
	return nil
}

func reads(ctx context.Context, s *gateway.Session, path string, opt gateway.ReadOptions, want int64) error {
	f, err := s.Open(ctx, gatewaytest.Path(path), opt)
	if err != nil {
		return err
	}
	defer f.Close()
	if want == 0 {
		return nil
	}
	n, err := f.CopyTo(ctx, io.Discard, opt.Off, want)
	if err == nil && n != want {
		err = fmt.Errorf("read %d, want %d", n, want)
	}
	return err
}

func puts(ctx context.Context, s *gateway.Session, path string, size int) error {
	return gatewaytest.Write(ctx, s, gatewaytest.Path(path), []byte(strings.Repeat("y", size)), gateway.Cond{})
}
