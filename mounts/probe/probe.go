// Package probe finds out what a backend really does, by trying: what a driver claims depends on servers it has never seen.
package probe

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Report is what was found.
type Report struct {
	Time     time.Time       `json:"time"`
	Features mounts.Features `json:"features"` // as the driver claims them, less what turned out otherwise
	Checks   []Check         `json:"checks"`
	Skew     time.Duration   `json:"skew"`    // how far the backend's clock is ahead of ours
	Latency  Latency         `json:"latency"` // of single requests
}

// Check is one guarantee.
type Check struct {
	Name    string         `json:"name"`    // such as "atomic replace"
	Support mounts.Support `json:"support"` // what can be relied on
	Tested  bool           `json:"tested"`  // false: as the driver says
	Failed  bool           `json:"failed"`  // it was claimed and does not hold
	Detail  string         `json:"detail,omitempty"`
}

// Latency are the times of requests, 0 where none was made.
type Latency struct {
	Stat   time.Duration `json:"stat"`
	List   time.Duration `json:"list"`
	Put    time.Duration `json:"put"` // 4 KiB
	Get    time.Duration `json:"get"` // likewise
	Remove time.Duration `json:"remove"`
}

// OK reports whether everything that was claimed holds.
func (r Report) OK() bool {
	for _, c := range r.Checks {
		if c.Failed {
			return false
		}
	}
	return true
}

// Run tries what b can do in a folder of its own in dir, which must exist, and removes it again. With readOnly nothing is written and what
// needs writing is as claimed. It fails only when nothing can be tried at all; what does not work is in the report.
func Run(ctx context.Context, b mounts.Backend, dir string, readOnly bool) (Report, error) {
	p := &run{b: b, r: Report{Time: time.Now().UTC(), Features: b.Features()}}
	var err error
	p.r.Latency.Stat, err = timed(func() error { _, err := b.Stat(ctx, "."); return err })
	if err != nil {
		return p.r, err
	}
	p.r.Latency.List, err = timed(func() error {
		for _, err := range b.List(ctx, ".") {
			return err // the first entry will do
		}
		return nil
	})
	if err != nil {
		return p.r, err
	}
	if !readOnly {
		p.dir = mounts.Join(dir, "probe-"+rand.Text()[:12])
		if err := b.Mkdir(ctx, p.dir); err != nil {
			return p.r, err
		}
		defer func() {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			_ = mounts.Purge(clean, b, p.dir) // what stays is swept with the area
		}()
		if err := p.basics(ctx); err != nil {
			return p.r, err
		}
		p.writes(ctx)
		p.names(ctx)
	}
	p.claims(ctx, readOnly)
	return p.r, nil
}

type run struct {
	b   mounts.Backend
	dir string
	r   Report
}

func timed(do func() error) (time.Duration, error) {
	start := time.Now()
	err := do()
	return time.Since(start), err
}

func (p *run) at(name string) string { return mounts.Join(p.dir, name) }

func (p *run) put(ctx context.Context, name, content string) error {
	_, err := mounts.WriteFile(ctx, p.b, p.at(name), []byte(content))
	return err
}

func (p *run) holds(ctx context.Context, name, content string) error {
	got, err := mounts.ReadFile(ctx, p.b, p.at(name), 64<<10)
	if err == nil && string(got) != content {
		err = fault.New("probe", name, fault.Corrupt, fmt.Errorf("%d bytes read, %d written, and they differ", len(got), len(content)))
	}
	return err
}

// basics writes, reads and removes a file: a backend that cannot is none.
func (p *run) basics(ctx context.Context) (err error) {
	content := strings.Repeat("cellgate", 512)
	before := time.Now()
	if p.r.Latency.Put, err = timed(func() error { return p.put(ctx, "a", content) }); err != nil {
		return err
	}
	if info, err := p.b.Stat(ctx, p.at("a")); err == nil && !info.ModTime.IsZero() {
		p.r.Skew = info.ModTime.Sub(before.Add(time.Since(before) / 2)).Round(time.Millisecond)
	}
	if p.r.Latency.Get, err = timed(func() error { return p.holds(ctx, "a", content) }); err != nil {
		return err
	}
	p.r.Latency.Remove, err = timed(func() error { return p.b.Remove(ctx, p.at("a")) })
	return err
}

// check notes the outcome of trying what is claimed with claimed.
func (p *run) check(name string, claimed *mounts.Support, try func() error) {
	c := Check{Name: name, Support: *claimed}
	if *claimed != mounts.Refused {
		c.Tested = true
		if err := try(); err != nil {
			c.Support, c.Failed, c.Detail = mounts.Refused, true, err.Error()
			*claimed = mounts.Refused
		}
	}
	p.r.Checks = append(p.r.Checks, c)
}

func (p *run) writes(ctx context.Context) {
	f := &p.r.Features
	p.check("atomic replace", &f.AtomicReplace, func() error {
		if err := p.put(ctx, "r", "old"); err != nil {
			return err
		}
		if err := p.put(ctx, "r", "new one"); err != nil {
			return err
		}
		if err := p.holds(ctx, "r", "new one"); err != nil {
			return err
		}
		if err := p.put(ctx, "s", "from"); err != nil {
			return err
		}
		if err := p.b.Rename(ctx, p.at("s"), p.at("r")); err != nil {
			return err
		}
		return p.holds(ctx, "r", "from")
	})
	p.check("conditional write", &f.ConditionalWrite, func() error { return p.conditional(ctx) })
	p.check("rename of folders", &f.Rename, func() error {
		if err := p.b.Mkdir(ctx, p.at("d")); err != nil {
			return err
		}
		if err := p.put(ctx, "d/x", "inside"); err != nil {
			return err
		}
		if err := p.b.Rename(ctx, p.at("d"), p.at("e")); err != nil {
			return err
		}
		return p.holds(ctx, "e/x", "inside")
	})
	p.check("modification time", &f.ModTime, func() error { return p.times(ctx) })
	if n := len(p.r.Checks) - 1; p.r.Checks[n].Support != mounts.Refused {
		p.r.Checks[n].Detail = "to " + f.ModTimeGrain.String()
	}
	p.check("hash", &f.Hash, func() error { return p.hash(ctx) })
}

func (p *run) conditional(ctx context.Context) error {
	c, ok := mounts.As[mounts.Conditional](p.b)
	if !ok {
		return fault.New("probe", "", fault.Unsupported, nil)
	}
	info, err := mounts.WriteFile(ctx, p.b, p.at("c"), []byte("one"))
	if err != nil {
		return err
	}
	if info, err = p.b.Stat(ctx, p.at("c")); err != nil {
		return err
	}
	src := func(s string) (*bytes.Reader, mounts.PutOptions) {
		return bytes.NewReader([]byte(s)), mounts.PutOptions{Size: int64(len(s))}
	}
	r, opt := src("three")
	if _, err := c.PutIf(ctx, p.at("c"), "0123456789abcdef0123456789abcdef", r, opt); fault.KindOf(err) != fault.Precondition || err == nil {
		return fmt.Errorf("a write on the condition of another entity tag came through (%v)", err)
	}
	r, opt = src("two")
	if _, err := c.PutIf(ctx, p.at("c"), info.Tag, r, opt); err != nil {
		return err
	}
	return p.holds(ctx, "c", "two")
}

func (p *run) times(ctx context.Context) error {
	s, ok := mounts.As[mounts.TimeSetter](p.b)
	if !ok {
		return fault.New("probe", "", fault.Unsupported, nil)
	}
	if err := p.put(ctx, "t", "time"); err != nil {
		return err
	}
	want := time.Date(2001, 2, 3, 4, 5, 7, 123_456_789, time.UTC)
	if err := s.SetModTime(ctx, p.at("t"), want); err != nil {
		return err
	}
	info, err := p.b.Stat(ctx, p.at("t"))
	if err != nil {
		return err
	}
	for _, grain := range []time.Duration{time.Nanosecond, 100 * time.Nanosecond, time.Microsecond, time.Millisecond, time.Second, 2 * time.Second, time.Minute} {
		if d := want.Sub(info.ModTime); d.Abs() < grain || d == 0 {
			p.r.Features.ModTimeGrain = grain
			return nil
		}
	}
	return fmt.Errorf("a time that was set to %s is %s", want.Format(time.RFC3339Nano), info.ModTime.Format(time.RFC3339Nano))
}

func (p *run) hash(ctx context.Context) error {
	h, ok := mounts.As[mounts.Hasher](p.b)
	if !ok {
		return fault.New("probe", "", fault.Unsupported, nil)
	}
	content := "what the digest is of"
	if err := p.put(ctx, "h", content); err != nil {
		return err
	}
	md, sh, s2 := md5.Sum([]byte(content)), sha1.Sum([]byte(content)), sha256.Sum256([]byte(content))
	crc := crc32.Checksum([]byte(content), crc32.MakeTable(crc32.Castagnoli))
	known := map[string][]byte{"md5": md[:], "sha1": sh[:], "sha256": s2[:], "crc32c": {byte(crc >> 24), byte(crc >> 16), byte(crc >> 8), byte(crc)}}
	for algo, want := range known {
		switch got, err := h.Hash(ctx, p.at("h"), algo); {
		case err != nil && fault.KindOf(err) == fault.Unsupported:
		case err != nil:
			return err
		case !bytes.Equal(got, want):
			return fmt.Errorf("its %s of a file is not that of what was written", algo)
		}
	}
	return nil
}

func (p *run) names(ctx context.Context) {
	f := &p.r.Features
	c := Check{Name: "case", Support: mounts.Native, Tested: true, Detail: "upper and lower case are told apart"}
	if err := p.put(ctx, "Case", "x"); err == nil {
		if _, err := p.b.Stat(ctx, p.at("cASE")); err == nil {
			f.CaseSensitive = false
		}
	}
	if !f.CaseSensitive {
		c.Support, c.Detail = mounts.Refused, "upper and lower case are the same"
	}
	p.r.Checks = append(p.r.Checks, c)
	longest := 0
	for n := 255; n >= 8; {
		if err := p.put(ctx, strings.Repeat("n", n), ""); err == nil {
			longest = n
			_ = p.b.Remove(ctx, p.at(strings.Repeat("n", n))) // goes with the folder at the latest
			break
		}
		switch {
		case n == 255 && f.MaxName > 0 && f.MaxName < 255:
			n = f.MaxName
		case n > 143:
			n = 143
		default:
			n -= 45
		}
	}
	if longest > 0 && (f.MaxName == 0 || longest < f.MaxName) {
		f.MaxName = longest
	}
	p.r.Checks = append(p.r.Checks, Check{Name: "longest name", Support: mounts.Native, Tested: true, Detail: fmt.Sprintf("%d bytes", max(longest, 0)), Failed: longest == 0})
}

// claims notes what is not tried, or not here.
func (p *run) claims(ctx context.Context, readOnly bool) {
	f := &p.r.Features
	if readOnly {
		p.r.Checks = append(p.r.Checks,
			Check{Name: "atomic replace", Support: f.AtomicReplace}, Check{Name: "conditional write", Support: f.ConditionalWrite},
			Check{Name: "rename of folders", Support: f.Rename}, Check{Name: "modification time", Support: f.ModTime}, Check{Name: "hash", Support: f.Hash})
	}
	p.check("free space", &f.Space, func() error {
		s, ok := mounts.As[mounts.Spacer](p.b)
		if !ok {
			return fault.New("probe", "", fault.Unsupported, nil)
		}
		_, err := s.Space(ctx)
		return err
	})
	p.r.Checks = append(p.r.Checks,
		Check{Name: "random access", Support: f.RandomAccess}, Check{Name: "hard links", Support: f.HardLink}, Check{Name: "symbolic links", Support: f.Symlink},
		Check{Name: "extended attributes", Support: f.Xattr}, Check{Name: "watch", Support: f.Watch}, Check{Name: "durable when acknowledged", Support: f.Durable})
	skew := Check{Name: "clock", Support: mounts.Native, Tested: !readOnly, Detail: "within a second of ours"}
	if p.r.Skew.Abs() > 2*time.Second {
		skew.Detail, skew.Failed = fmt.Sprintf("%v ahead of ours", p.r.Skew), p.r.Skew.Abs() > time.Minute
	}
	p.r.Checks = append(p.r.Checks, skew)
}
