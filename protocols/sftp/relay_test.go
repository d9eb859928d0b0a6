package sftp

import (
	"context"
	"strings"
	"testing"

	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// stuck is a backend that does not answer about files called "slow" until it is freed.
type stuck struct {
	mounts.Backend
	free    chan struct{}
	waiting chan struct{}
}

func (s stuck) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if strings.HasSuffix(name, "slow") {
		s.waiting <- struct{}{}
		<-s.free
	}
	return s.Backend.Stat(ctx, name)
}

// TestStuck: a request that takes long holds up those that must come after it, and nobody else of the same session.
func TestStuck(t *testing.T) {
	disk := stuck{gatewaytest.Far(mem.New(mem.Config{}), mounts.Native), make(chan struct{}), make(chan struct{}, 10)}
	b := start(t, gatewaytest.Config{Bare: true, Disks: map[string]mounts.Backend{"disk": disk}}, Config{})
	b.write("alice", "/docs/f", "x")
	w := b.wire("alice")
	w.send(typeMkdir, reply(nil).str("/docs/d").u32(0))
	w.receive()
	w.send(typeLstat, reply(nil).str("/docs/d/slow"))
	stat := w.id
	<-disk.waiting
	w.send(typeRename, reply(nil).str("/docs/d").str("/docs/e")) // has to wait: the first asks about what is in it
	rename := w.id
	for range 20 {
		if code := w.statusOf(typeLstat, reply(nil).str("/docs/f")); code != statusOK {
			t.Errorf("beside: status %d", code)
		}
	}
	close(disk.free)
	for _, want := range []uint32{stat, rename} {
		_, in := w.receive()
		if id := in.u32(); id != want {
			t.Errorf("answer %d, want %d", id, want)
		}
	}
	w.drop()
	b.quiet()
}

// TestTurns: what meets keeps its order.
func TestTurns(t *testing.T) {
	p := gatewaytest.Path
	for _, test := range []struct {
		a, b *turn
		want bool
	}{
		{reads(p("/a/b")), reads(p("/a/b")), false},
		{reads(p("/a/b")), changes(p("/a/b")), true},
		{changes(p("/a")), reads(p("/a/b")), true},
		{changes(p("/a/b")), reads(p("/a")), true},
		{changes(p("/a/b")), changes(p("/a/bc")), false},
		{changes(p("/a"), p("/b")), reads(p("/b/c")), true},
	} {
		if got := test.a.meets(test.b); got != test.want || test.b.meets(test.a) != got {
			t.Errorf("%v and %v: %v", test.a, test.b, got)
		}
	}
}

// TestRanges: how far a file has come without a gap.
func TestRanges(t *testing.T) {
	var r ranges
	for _, step := range []struct{ off, n, want int64 }{
		{0, 10, 10}, {20, 10, 10}, {40, 5, 10}, {30, 10, 10}, {10, 5, 15}, {12, 10, 45}, {0, 1, 45}, {100, 1, 45}, {45, 60, 105},
	} {
		if r.add(step.off, step.n); r.end != step.want {
			t.Errorf("after %d bytes at %d: %d, want %d", step.n, step.off, r.end, step.want)
		}
	}
	if len(r.over) != 0 {
		t.Errorf("left: %v", r.over)
	}
}
