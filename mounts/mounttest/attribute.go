package mounttest

import (
	"bytes"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// attempt runs do with the capability, or yields Denied without it.
func attempt[T any](b mounts.Backend, do func(c T) error) error {
	if c, ok := mounts.As[T](b); ok {
		return do(c)
	}
	return os.ErrPermission
}

func testTimes(t *testing.T, b mounts.Backend) {
	grain := max(b.Features().ModTimeGrain, 1)
	if b.Features().ModTime == mounts.Refused {
		return
	}
	ctx := t.Context()
	want := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC).Truncate(grain)
	info, err := b.Put(ctx, "f", strings.NewReader("x"), mounts.PutOptions{Size: 1, ModTime: want})
	if err != nil || !info.ModTime.Equal(want) {
		t.Errorf("Put with ModTime: %v, %v; want %v", info.ModTime, err, want)
	}
	c := need[mounts.TimeSetter](t, b, b.Features().ModTime)
	Script(t, b, "mkdir d -> ok")
	for _, name := range []string{"f", "d"} {
		for _, want := range []time.Time{want.Add(grain), time.Unix(0, 0).UTC(), time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)} {
			before, _ := b.Stat(ctx, name)
			if err := c.SetModTime(ctx, name, want); err != nil {
				t.Errorf("SetModTime(%s): %v", name, err)
			}
			after, err := b.Stat(ctx, name)
			if err != nil || !after.ModTime.Equal(want) {
				t.Errorf("after SetModTime(%s): %v, %v; want %v", name, after.ModTime, err, want)
			}
			if before.Change != 0 && before.Change > after.Change {
				t.Errorf("Change of %s went back", name)
			}
		}
	}
	if err := c.SetModTime(ctx, "none", want); fault.KindOf(err) != fault.NotExist {
		t.Errorf("SetModTime of nothing: %v; want NotExist", err)
	}
}

func testMode(t *testing.T, b mounts.Backend) {
	c, ok := mounts.As[mounts.ModeSetter](b)
	if !ok {
		t.Skip("not a capability of this backend")
	}
	ctx := t.Context()
	info, err := b.Put(ctx, "f", strings.NewReader("x"), mounts.PutOptions{Size: 1, Mode: 0o604})
	if err != nil || info.Mode != 0o604 {
		t.Errorf("Put with mode 0604: %v, %v", info.Mode, err)
	}
	if err := c.SetMode(ctx, "f", 0o666); err != nil {
		t.Error(err)
	}
	info, err = b.Put(ctx, "f", strings.NewReader("y"), mounts.PutOptions{Size: 1, Mode: 0o600})
	if err != nil || info.Mode != 0o666 {
		t.Errorf("replacing a file of mode 0666 gives %v, %v; want the same", info.Mode, err)
	}
	if err := c.SetMode(ctx, "none", 0o600); fault.KindOf(err) != fault.NotExist {
		t.Errorf("SetMode of nothing: %v; want NotExist", err)
	}
}

func testTruncate(t *testing.T, b mounts.Backend) {
	c, ok := mounts.As[mounts.Truncater](b)
	if !ok {
		t.Skip("not a capability of this backend")
	}
	ctx := t.Context()
	Script(t, b, `
		put f hello -> ok
		mkdir d     -> ok
	`)
	for _, test := range []struct {
		name string
		size int64
		want string
	}{{"f", 2, "ok"}, {"f", 4, "ok"}, {"f", -1, "! invalid"}, {"d", 0, "! is a folder"}, {"none", 0, "! does not exist"}} {
		if got := outcome(c.Truncate(ctx, test.name, test.size)); got != test.want {
			t.Errorf("Truncate(%s, %d) -> %s, want %s", test.name, test.size, got, test.want)
		}
	}
	Script(t, b, `cat f -> "he\x00\x00"`)
}

func testXattr(t *testing.T, b mounts.Backend) {
	c := need[mounts.Xattrer](t, b, b.Features().Xattr)
	ctx := t.Context()
	Script(t, b, `
		put f hello -> ok
		mkdir d     -> ok
	`)
	for _, name := range []string{"f", "d"} {
		if _, err := c.Xattr(ctx, name, "a"); fault.KindOf(err) != fault.NotExist || err == nil {
			t.Errorf("Xattr that is missing: %v; want NotExist", err)
		}
		if err := c.RemoveXattr(ctx, name, "a"); fault.KindOf(err) != fault.NotExist || err == nil {
			t.Errorf("RemoveXattr that is missing: %v; want NotExist", err)
		}
		big := bytes.Repeat([]byte("0123456789"), 100)
		for attr, value := range map[string][]byte{"a": []byte("1"), "b.c": {0, 1, 255}, "big": big, "empty": {}} {
			if err := c.SetXattr(ctx, name, attr, value); err != nil {
				t.Errorf("SetXattr(%s, %s): %v", name, attr, err)
			}
			if got, err := c.Xattr(ctx, name, attr); err != nil || !bytes.Equal(got, value) {
				t.Errorf("Xattr(%s, %s) = %q, %v", name, attr, got, err)
			}
		}
		if err := c.SetXattr(ctx, name, "a", []byte("2")); err != nil {
			t.Error(err)
		}
		if err := c.RemoveXattr(ctx, name, "empty"); err != nil {
			t.Error(err)
		}
		got, err := c.Xattrs(ctx, name)
		slices.Sort(got)
		if want := []string{"a", "b.c", "big"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("Xattrs(%s) = %q, %v; want %q", name, got, err, want)
		}
	}
	if err := c.SetXattr(ctx, "none", "a", nil); fault.KindOf(err) != fault.NotExist || err == nil {
		t.Errorf("SetXattr of nothing: %v; want NotExist", err)
	}
}
