package probe_test

import (
	"context"
	"io"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/probe"
)

func TestRun(t *testing.T) {
	disk, err := local.Driver().Open(t.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	for name, b := range map[string]mounts.Backend{"mem": mem.New(mem.Config{}), "local": disk} {
		claimed := b.Features()
		r, err := probe.Run(t.Context(), b, ".", false)
		if err != nil || !r.OK() {
			t.Errorf("%s: %v %+v", name, err, r)
		}
		if r.Features.AtomicReplace != claimed.AtomicReplace || r.Features.CaseSensitive != claimed.CaseSensitive || r.Latency.Put <= 0 || r.Skew.Seconds() > 1 {
			t.Errorf("%s: %+v", name, r)
		}
		for i, err := range b.List(t.Context(), ".") {
			if err == nil && i.Name != mounts.Area {
				t.Errorf("%s: %s is left behind", name, i.Name)
			}
		}
	}
}

// liar claims what it does not do.
type liar struct{ mounts.Backend }

func (l liar) Rename(ctx context.Context, from, to string) error { return l.Backend.Mkdir(ctx, to) }

func (l liar) Features() mounts.Features {
	f := l.Backend.Features()
	f.ConditionalWrite, f.Hash, f.Space = mounts.Native, mounts.Native, mounts.Native
	return f
}

// PutIf ignores the condition.
func (l liar) PutIf(ctx context.Context, name, _ string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	return l.Put(ctx, name, src, opt)
}

func (l liar) Hash(context.Context, string, string) ([]byte, error) { return []byte("wrong"), nil }

func TestLies(t *testing.T) {
	r, err := probe.Run(t.Context(), liar{mem.New(mem.Config{})}, ".", false)
	if err != nil {
		t.Fatal(err)
	}
	failed := map[string]bool{}
	for _, c := range r.Checks {
		failed[c.Name] = c.Failed
	}
	for _, name := range []string{"atomic replace", "conditional write", "rename of folders", "hash", "free space"} {
		if !failed[name] {
			t.Errorf("%s: passed", name)
		}
	}
	if f := r.Features; r.OK() || f.ConditionalWrite != mounts.Refused || f.Rename != mounts.Refused || f.Hash != mounts.Refused {
		t.Errorf("%+v", r.Features)
	}
}

func TestReadOnly(t *testing.T) {
	r, err := probe.Run(t.Context(), mem.New(mem.Config{}), ".", true)
	if err != nil || !r.OK() || len(r.Checks) < 10 || r.Latency.Put != 0 {
		t.Errorf("%v %+v", err, r)
	}
}
