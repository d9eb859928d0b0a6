package fuse

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"cellgate/internal/fault"
)

// TestStatuses: every kind means something to a process.
func TestStatuses(t *testing.T) {
	for _, k := range fault.Kinds() {
		if _, ok := statuses[k]; !ok {
			t.Errorf("%v has no errno", k)
		}
	}
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0},
		{syscall.EXDEV, syscall.EXDEV},
		{fault.New("x", "/p", fault.Quota, nil), syscall.EDQUOT},
		{fault.New("x", "/p", fault.Locked, syscall.EPERM), syscall.EBUSY},
		{errors.Join(nil, syscall.ESTALE), syscall.ESTALE},
		{errors.Join(fault.New("x", "/p", fault.NotExist, nil), nil), syscall.ENOENT},
		{context.Canceled, syscall.EINTR},
		{errors.New("a bug"), syscall.EIO},
	} {
		if got := errnoOf(tt.err); got != tt.want {
			t.Errorf("%v: %v; want %v", tt.err, got, tt.want)
		}
	}
}

// FuzzAttrName: names of attributes become names of properties that XML allows, and come back.
func FuzzAttrName(f *testing.F) {
	for _, s := range []string{"a", "mime_type", "1st", "ünï x", "\xff\x00", "_", "_5f", "a.b-c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, attr string) {
		if attr == "" {
			return
		}
		prop := xattrName(attr)
		for i := range len(prop) {
			c := prop[i]
			letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_'
			if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '.' || c == '-')) {
				t.Fatalf("%q is no name", prop)
			}
		}
		if got, ok := attrName(prop); !ok || got != attr {
			t.Fatalf("%q came back as %q, %v", attr, got, ok)
		}
		if got, ok := attrName(attr); ok && xattrName(got) != attr {
			t.Fatalf("%q and %q are the same", attr, got)
		}
	})
}

// TestLockRanges: what one owner locks and unlocks piece by piece is what a model of single bytes says.
func TestLockRanges(t *testing.T) {
	var ls lockList
	model := map[uint64]bool{}
	for i := range uint64(500) {
		start := i * 7919 % 50
		l := held{owner: 1, start: start, end: start + i*31%17, writes: i%3 == 0}
		ls.clear(l)
		for b := l.start; b <= l.end; b++ {
			delete(model, b)
		}
		if i%4 != 3 {
			ls.all = append(ls.all, l)
			for b := l.start; b <= l.end; b++ {
				model[b] = l.writes
			}
		}
		for b := range uint64(80) {
			writes, taken := model[b]
			_, w := ls.conflict(held{owner: 2, start: b, end: b, writes: true})
			_, r := ls.conflict(held{owner: 2, start: b, end: b})
			if w != taken || r != writes {
				t.Fatalf("step %d, byte %d: conflicts %v %v; want %v %v", i, b, w, r, taken, writes)
			}
			if _, own := ls.conflict(held{owner: 1, start: b, end: b, writes: true}); own {
				t.Fatal("in its own way")
			}
		}
	}
}
