package gateway

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
)

func TestSerial(t *testing.T) {
	name := func(p string) []span { return []span{{path: p}} }
	tree := func(p string) []span { return []span{{path: p, tree: true}} }
	for _, tt := range []struct {
		what  string
		a, b  []span
		clash bool
	}{
		{"a name with itself", name("a/b"), name("a/b"), true},
		{"two names", name("a/b"), name("a/c"), false},
		{"a folder and what it holds", name("a"), name("a/b"), false},
		{"a tree and what it holds", tree("a"), name("a/b/c"), true},
		{"what a tree holds and the tree", name("a/b/c"), tree("a"), true},
		{"a tree and its name", tree("a"), name("a"), true},
		{"trees within each other", tree("a"), tree("a/b"), true},
		{"trees side by side", tree("a/b"), tree("a/bc"), false},
		{"the root's tree and anything", tree("."), name("x"), true},
		{"two of each", append(tree("a"), tree("b")...), append(tree("c"), name("b/x")...), true},
	} {
		t.Run(tt.what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s serial
				release, err := s.claim(t.Context(), tt.a...)
				if err != nil {
					t.Fatal(err)
				}
				got := false
				go func() {
					second, err := s.claim(context.Background(), tt.b...)
					if err != nil {
						t.Error(err)
						return
					}
					got = true
					second()
				}()
				synctest.Wait()
				if got == tt.clash {
					t.Errorf("%v while %v is held: %t", tt.b, tt.a, got)
				}
				release()
				synctest.Wait()
				if !got || len(s.held) != 0 {
					t.Errorf("after release: got it %t, %d entries left", got, len(s.held))
				}
			})
		})
	}
}

func TestSerialWaitEnds(t *testing.T) {
	var s serial
	release, err := s.claim(t.Context(), span{path: "a", tree: true}, span{path: "a/b"}, span{path: "a"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.claim(ctx, span{path: "a/b/c"}); err == nil {
		t.Error("claimed what is held")
	}
	release()
	if len(s.held) != 0 {
		t.Errorf("%d entries left", len(s.held))
	}
}

// TestSerialExcludes claims at random from many goroutines and looks whether two that conflict were ever let in together.
func TestSerialExcludes(t *testing.T) {
	var s serial
	var mu sync.Mutex
	inside := map[*[]span]bool{}
	paths := []string{".", "a", "b", "a/x", "a/y", "a/x/1", "b/z"}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 7))
			for range 500 {
				mine := make([]span, 1+r.IntN(2))
				for i := range mine {
					mine[i] = span{path: paths[r.IntN(len(paths))], tree: r.IntN(2) == 0}
				}
				release, err := s.claim(context.Background(), mine...)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				for other := range inside {
					if conflicting(mine, *other) {
						t.Errorf("%v and %v at once", mine, *other)
					}
				}
				inside[&mine] = true
				mu.Unlock()
				mu.Lock()
				delete(inside, &mine)
				mu.Unlock()
				release()
			}
		})
	}
	wg.Wait()
}

func conflicting(a, b []span) bool {
	for _, x := range a {
		for _, y := range b {
			if x.path == y.path || x.tree && within(x.path, y.path) || y.tree && within(y.path, x.path) {
				return true
			}
		}
	}
	return false
}
