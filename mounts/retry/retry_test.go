package retry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/flaky"
	"cellgate/mounts/mem"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/retry"
)

func TestConformance(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend { return retry.New(mem.New(mem.Config{}), retry.Config{}) })
}

// TestConformanceFlaky: with a backend that fails at every other read, nobody sees it.
func TestConformanceFlaky(t *testing.T) {
	mounttest.Run(t, func(*testing.T) mounts.Backend {
		var rules []flaky.Rule
		for i := 1; i < 4000; i += 2 {
			for _, op := range []string{"Stat", "Open", "List", "Space", "Hash", "Xattr", "Xattrs"} {
				rules = append(rules, flaky.Rule{Op: op, Call: i, Fault: fault.Unavailable})
			}
		}
		return retry.New(flaky.New(mem.New(mem.Config{}), rules...), retry.Config{Attempts: 50, Base: time.Nanosecond})
	})
}

func TestCapabilities(t *testing.T) {
	mounttest.Keeps(t, func(b mounts.Backend) mounts.Backend { return retry.New(b, retry.Config{}) })
}

// unsent fails the first calls of Put, PutIf and Mkdir before they do anything.
type unsent struct {
	mounts.Backend
	times int
	after int // bytes of the source that are read before
}

func (u *unsent) fail(src io.Reader) error {
	if u.times--; u.times < 0 {
		return nil
	}
	io.CopyN(io.Discard, src, int64(u.after))
	return fault.New("unsent", "", fault.Unavailable, mounts.Unsent(errors.New("refused")))
}

func (u *unsent) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := u.fail(src); err != nil {
		return mounts.Info{}, err
	}
	return u.Backend.Put(ctx, name, src, opt)
}

func (u *unsent) PutIf(ctx context.Context, name, tag string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	if err := u.fail(src); err != nil {
		return mounts.Info{}, err
	}
	c, _ := mounts.As[mounts.Conditional](u.Backend)
	return c.PutIf(ctx, name, tag, src, opt)
}

func (u *unsent) Mkdir(ctx context.Context, name string) error {
	if err := u.fail(strings.NewReader("")); err != nil {
		return err
	}
	return u.Backend.Mkdir(ctx, name)
}

func TestWrites(t *testing.T) {
	tests := []struct {
		name  string
		after int
		src   func() io.Reader
		want  bool
	}{
		{"untouched pipe", 0, func() io.Reader { return iotest.OneByteReader(strings.NewReader("hello")) }, true},
		{"read pipe", 1, func() io.Reader { return iotest.OneByteReader(strings.NewReader("hello")) }, false},
		{"read seeker", 3, func() io.Reader { return strings.NewReader("hello") }, true},
		{"seeker not at its start", 3, func() io.Reader {
			r := strings.NewReader("xxhello")
			r.Seek(2, io.SeekStart)
			return r
		}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				low := &unsent{Backend: mem.New(mem.Config{}), after: test.after}
				b := retry.New(low, retry.Config{})
				c, _ := mounts.As[mounts.Conditional](b)
				opt := mounts.PutOptions{Size: 5}
				low.times = 2
				info, err := b.Put(t.Context(), "f", test.src(), opt)
				if (err == nil) != test.want || test.want && info.Size != 5 {
					t.Errorf("Put: %v, %v; want success %v", info, err, test.want)
				}
				if !test.want {
					return
				}
				low.times = 2
				if _, err := c.PutIf(t.Context(), "f", info.Tag, test.src(), opt); err != nil {
					t.Errorf("PutIf: %v", err)
				}
				low.times = 3
				if err := b.Mkdir(t.Context(), "d"); err != nil {
					t.Errorf("Mkdir: %v", err)
				}
				mounttest.Script(t, b, `cat f -> "hello"`)
			})
		})
	}
}

// TestNeverTwice: a change that may have been done is not done again.
func TestNeverTwice(t *testing.T) {
	low := flaky.New(mem.New(mem.Config{}))
	b := retry.New(low, retry.Config{Base: time.Nanosecond})
	mounttest.Script(t, b, `
		put f 1 -> ok
		put g 1 -> ok
	`)
	low.Set(flaky.Rule{Fault: fault.Timeout, After: true})
	mounttest.Script(t, b, `
		put n 1 -> ! timed out
		mkdir d -> ! timed out
		mv f h  -> ! timed out
		rm g    -> ! timed out
	`)
	for _, op := range []string{"Put", "Mkdir", "Rename", "Remove"} {
		if n := low.Calls(op); n != 1 {
			t.Errorf("%s was called %d times", op, n)
		}
	}
	c, _ := mounts.As[mounts.Xattrer](b)
	if err := c.SetXattr(t.Context(), "h", "a", nil); err == nil || low.Calls("SetXattr") != 1 {
		t.Errorf("SetXattr: %v, called %d times", err, low.Calls("SetXattr"))
	}
	if _, err := c.Xattr(t.Context(), "h", "a"); err == nil || low.Calls("Xattr") != 4 {
		t.Errorf("Xattr: %v, called %d times; want 4", err, low.Calls("Xattr"))
	}
	f, _ := mounts.As[mounts.RandomAccess](b)
	for flag, want := range map[int]int{os.O_RDONLY: 4, os.O_RDWR: 1} {
		low.Set(flaky.Rule{Op: "OpenFile", Fault: fault.Unavailable})
		if _, err := f.OpenFile(t.Context(), "h", flag, 0); err == nil || low.Calls("OpenFile") != want {
			t.Errorf("OpenFile(%#x): %v, called %d times; want %d", flag, err, low.Calls("OpenFile"), want)
		}
	}
	low.Set(flaky.Rule{Op: "Stat", Fault: fault.NotExist}, flaky.Rule{Op: "List", Cut: 1, Fault: fault.Unavailable})
	mounttest.Script(t, b, `
		stat h -> ! does not exist
		ls .   -> ! unavailable
	`)
	if low.Calls("Stat") != 1 || low.Calls("List") != 1 {
		t.Errorf("Stat %d times, List %d times; want once each", low.Calls("Stat"), low.Calls("List"))
	}
}

// TestPauses: they grow to Max, end with the context, and are not begun when it would end meanwhile.
func TestPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := flaky.New(mem.New(mem.Config{}), flaky.Rule{Op: "Stat", Fault: fault.Busy})
		b := retry.New(low, retry.Config{Attempts: 50, Base: time.Second, Max: 4 * time.Second})
		began := time.Now()
		if _, err := b.Stat(t.Context(), "."); fault.KindOf(err) != fault.Busy || low.Calls("Stat") != 50 {
			t.Errorf("Stat: %v after %d calls", err, low.Calls("Stat"))
		}
		if d := time.Since(began); d < 48*time.Second || d > 150*time.Second { // 2 s on average
			t.Errorf("49 pauses took %v", d)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began = time.Now()
		if _, err := b.Stat(ctx, "."); fault.KindOf(err) != fault.Busy || time.Since(began) > 20*time.Second {
			t.Errorf("Stat with a deadline: %v after %v", err, time.Since(began))
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(5*time.Second, cancel)
		began = time.Now()
		if _, err := b.Stat(ctx, "."); fault.KindOf(err) != fault.Canceled || time.Since(began) != 5*time.Second {
			t.Errorf("cancelled Stat: %v after %v", err, time.Since(began))
		}
		time.AfterFunc(5*time.Second, func() { b.Close() })
		began = time.Now()
		if _, err := b.Stat(t.Context(), "."); fault.KindOf(err) != fault.Busy || time.Since(began) != 5*time.Second {
			t.Errorf("Stat while it closes: %v after %v", err, time.Since(began))
		}
	})
}

// cutting gives every reader of a backend an end after some bytes, and hears of it when one is opened.
type cutting struct {
	mounts.Backend
	cut    int64
	kind   fault.Kind
	opened int
	onOpen func(n int)
	bare   bool // readers are no Staters
}

func (c *cutting) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	if c.opened++; c.onOpen != nil {
		c.onOpen(c.opened)
	}
	r, err := c.Backend.Open(ctx, name, off, n)
	if err != nil {
		return nil, err
	}
	if c.cut == 0 && c.opened > 2 {
		return r, nil
	}
	broken := iotest.ErrReader(fault.New("link", name, c.kind, errors.New("cut")))
	if c.cut == 0 {
		broken = iotest.ErrReader(io.EOF)
	}
	head := struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(r, c.cut), broken), r}
	if c.bare {
		return head, nil
	}
	return struct {
		io.ReadCloser
		mounts.Stater
	}{head, r.(mounts.Stater)}, nil
}

func TestResume(t *testing.T) {
	content := make([]byte, 100_000)
	for i := range content {
		content[i] = byte(i * 7 >> 3)
	}
	put := func(b mounts.Backend) {
		if _, err := mounts.WriteFile(context.Background(), b, "f", content); err != nil {
			panic(err)
		}
	}
	tests := []struct {
		name   string
		low    cutting
		off, n int64
		change int // the file is replaced when it is opened for the n-th time
		want   fault.Kind
		got    int64
	}{
		{"many cuts", cutting{cut: 3000, kind: fault.Unavailable}, 0, -1, 0, 0, 100_000},
		{"stalls", cutting{cut: 30_000, kind: fault.Timeout}, 0, -1, 0, 0, 100_000},
		{"range", cutting{cut: 3000, kind: fault.Unavailable}, 10_000, 50_000, 0, 0, 50_000},
		{"cut at the end of a range", cutting{cut: 3000, kind: fault.Unavailable}, 10_000, 3000, 0, 0, 3000},
		{"for good", cutting{cut: 3000, kind: fault.Corrupt}, 0, -1, 0, fault.Corrupt, 3000},
		{"changed", cutting{cut: 3000, kind: fault.Unavailable}, 0, -1, 3, fault.Unavailable, 6000},
		{"nobody knows which file it is", cutting{cut: 3000, kind: fault.Unavailable, bare: true}, 0, -1, 0, fault.Unavailable, 3000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				low := test.low
				low.Backend = mem.New(mem.Config{})
				put(&low)
				low.onOpen = func(n int) {
					if n == test.change {
						put(&low)
					}
				}
				b := retry.New(&low, retry.Config{})
				r, err := b.Open(t.Context(), "f", test.off, test.n)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(r)
				if test.want == 0 && err != nil || test.want != 0 && (err == nil || fault.KindOf(err) != test.want) {
					t.Errorf("Read: %v, want %v", err, test.want)
				}
				if !bytes.Equal(got, content[test.off:test.off+test.got]) {
					t.Errorf("read %d bytes, want the right %d", len(got), test.got)
				}
				if s, ok := r.(mounts.Stater); ok {
					if info, err := s.Stat(); err != nil || info.Size != 100_000 {
						t.Errorf("Stat: %v, %v", info, err)
					}
				}
				if err := r.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			})
		})
	}
}

// TestResumeGivesUp: attempts without a byte between them are counted, and closing ends the pauses' use.
func TestResumeGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		low := &cutting{Backend: mem.New(mem.Config{}), cut: 3, kind: fault.Unavailable}
		mounttest.Script(t, low, "put f hello -> ok")
		b := retry.New(low, retry.Config{})
		r, err := b.Open(t.Context(), "f", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		low.Backend = flaky.New(low.Backend, flaky.Rule{Op: "Open", Fault: fault.Unavailable})
		got, err := io.ReadAll(r)
		if string(got) != "hel" || fault.KindOf(err) != fault.Unavailable || low.opened != 4 {
			t.Errorf("%q, %v after opening %d times; want 4", got, err, low.opened)
		}
		if _, again := r.Read(make([]byte, 1)); again == nil {
			t.Error("Read after the failure goes on")
		}
	})
}
