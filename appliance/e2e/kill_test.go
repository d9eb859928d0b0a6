package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// seed returns that of a random test: from CELLGATE_E2E_SEED to play a run again, else a new one. It is printed.
func seed(t *testing.T) uint64 {
	n := rand.Uint64N(1 << 32)
	if v := os.Getenv("CELLGATE_E2E_SEED"); v != "" {
		var err error
		if n, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CELLGATE_E2E_SEED=%d", n)
	return n
}

// workers starts writers that change things until the box is gone or ctx ends, and returns a wait for them.
func workers(t *testing.T, ctx context.Context, writers []*writer) (wait func()) {
	var wg sync.WaitGroup
	for _, w := range writers {
		wg.Go(func() {
			for ctx.Err() == nil {
				alive, err := w.step(context.Background())
				if err != nil && !errors.As(err, new(*refused)) {
					t.Error(err)
					return
				}
				if !alive {
					return
				}
			}
		})
	}
	return wg.Wait
}

// governor applies a new declared state again and again: a group and a policy each time, which come and go together.
type governor struct {
	b     *box
	sure  []string
	maybe string
}

func (g *governor) run(t *testing.T, ctx context.Context, wg *sync.WaitGroup) {
	wg.Go(func() {
		for ctx.Err() == nil {
			name := fmt.Sprintf("g%d", len(g.sure)+rand.IntN(1<<30))
			state := fmt.Sprintf("groups: [{path: /%s}]\npolicies: [{name: %s, kind: acl, rules: [{effect: allow, principals: [everyone], actions: [list]}]}]\n", name, name)
			g.maybe = name
			if _, err := (command{stdin: state}).try(t, binary, "apply", "-f", "-", "--data", g.b.data); err != nil {
				return
			}
			g.sure, g.maybe = append(g.sure, name), ""
		}
	})
}

func (g *governor) verify(t *testing.T) {
	t.Helper()
	groups, policies := g.b.cellgate("group", "list"), g.b.cellgate("policy", "list")
	for _, name := range g.sure {
		if !strings.Contains(groups, "/"+name) || !strings.Contains(policies, name) {
			t.Errorf("the acknowledged state %s is lost", name)
		}
	}
	if g.maybe == "" {
		return
	}
	a, b := strings.Contains(groups, "/"+g.maybe), strings.Contains(policies, g.maybe)
	if a != b {
		t.Errorf("half of a state was applied: group %t, policy %t", a, b)
	}
	if a {
		g.sure = append(g.sure, g.maybe)
	}
	g.maybe = ""
}

// D04: whatever was acknowledged survives kill -9, again and again; what was not is wholly there or not at all.
func TestD04Kill(t *testing.T) {
	t.Parallel()
	cycles := 20
	if testing.Short() {
		cycles = 3
	}
	n := seed(t)
	rng := rand.New(rand.NewPCG(n, 99))
	b := start(t, common)
	var writers []*writer
	for i := range 8 {
		c := b.as([]string{"alice", "bob"}[i%2])
		dir := fmt.Sprintf("/docs/w%d", i)
		c.want("MKCOL", dir, "", 201)
		writers = append(writers, newWriter(c, dir, n, i))
	}
	gov := &governor{b: b}
	var slowest time.Duration
	acked := 0
	for cycle := range cycles {
		ctx, cancel := context.WithCancel(t.Context())
		wait := workers(t, ctx, writers)
		var wg sync.WaitGroup
		gov.run(t, ctx, &wg)
		time.Sleep(time.Duration(20+rng.IntN(1980)) * time.Millisecond)
		b.kill()
		cancel()
		wait()
		wg.Wait()
		if rng.IntN(4) == 0 { // and once more while it recovers
			b.begun = func(p *os.Process) {
				time.AfterFunc(time.Duration(rng.IntN(200))*time.Millisecond, func() { _ = p.Kill() })
			}
			_ = b.tryServe()
			b.kill()
			b.begun = nil
		}
		b.serve()
		slowest = max(slowest, b.took)
		for _, w := range writers {
			w.verify(t)
		}
		gov.verify(t)
		b.sound()
		if t.Failed() {
			t.Fatalf("in cycle %d", cycle)
		}
	}
	for _, w := range writers {
		acked += w.acked
	}
	if acked < cycles*20 || len(gov.sure) == 0 {
		t.Errorf("only %d changes and %d states were acknowledged: this shows nothing", acked, len(gov.sure))
	}
	if slowest > 3*time.Second {
		t.Errorf("ready after %v, more than 3 s", slowest)
	}
	b.stop()
	b.sound()
	t.Logf("%d cycles, %d changes and %d states acknowledged and kept, ready after at most %v", cycles, acked, len(gov.sure), slowest.Round(time.Millisecond))
}

// N06: SIGTERM under load: what runs is finished or refused, nothing acknowledged is lost, and the next box is there at once.
func TestN06Stop(t *testing.T) {
	t.Parallel()
	b := start(t, common)
	n := seed(t)
	var writers []*writer
	for i := range 6 {
		c := b.as("alice")
		dir := fmt.Sprintf("/docs/w%d", i)
		c.want("MKCOL", dir, "", 201)
		writers = append(writers, newWriter(c, dir, n, i))
	}
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	var slowest time.Duration
	for range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		wait := workers(t, ctx, writers)
		// An upload that is on its way when the signal comes, and takes another second, comes through.
		body := strings.Repeat("slow upload ", 1<<16)
		slow := b.as("bob")
		var status atomic.Int32
		var wg sync.WaitGroup
		began := make(chan struct{})
		wg.Go(func() {
			r, err := slow.try(context.Background(), "PUT", "/docs/slow", &slowReader{text: body, pause: 50 * time.Millisecond, began: began})
			if err == nil {
				status.Store(int32(r.status))
			}
		})
		<-began
		time.Sleep(300 * time.Millisecond)
		b.stop()
		cancel()
		wait()
		wg.Wait()
		b.serve()
		slowest = max(slowest, b.took)
		for _, w := range writers {
			w.verify(t)
		}
		switch got := b.as("bob").do("GET", "/docs/slow", ""); {
		case status.Load()/100 == 2 && got.body != body:
			t.Errorf("an acknowledged upload is lost: %d, %d bytes", got.status, len(got.body))
		case status.Load()/100 != 2:
			t.Errorf("an upload in flight at SIGTERM ended with %d", status.Load())
		}
		b.sound()
		b.as("bob").do("DELETE", "/docs/slow", "")
	}
	acked := 0
	for _, w := range writers {
		acked += w.acked
	}
	if acked < 20 {
		t.Errorf("only %d changes were acknowledged: this shows nothing", acked)
	}
	if slowest > 2*time.Second {
		t.Errorf("ready after %v, more than 2 s", slowest)
	}
	t.Logf("%d stops under load, %d changes kept, ready after at most %v", rounds, acked, slowest.Round(time.Millisecond))
}

// slowReader gives text in 32 pieces with a pause before each.
type slowReader struct {
	text  string
	pause time.Duration
	at    int
	began chan struct{}
}

func (r *slowReader) Read(p []byte) (int, error) {
	if r.at == 0 {
		close(r.began)
	}
	time.Sleep(r.pause)
	n := copy(p[:min(len(p), len(r.text)/32+1)], r.text[r.at:])
	r.at += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}
