package smb

import (
	"context"
	"errors"
	"hash/maphash"
	"math"
	"strings"
	"time"
	"unicode"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// File attributes and reparse tags, MS-FSCC §2.6 and §2.1.2.1.
const (
	attrDir      = 0x10
	attrReparse  = 0x400
	tagSymlink   = 0xA000000C
	tagSurrogate = 0x20000000 // stands for another name
)

// noTime is what the library makes of a time of 0, "none", by way of an overflow.
const noTime = 6802270473709551616

// infoOf describes what the server says of a file. Reparse points it leaves as they seem: see reparse. Samba tells the modification time as
// the time of change too; clients can set that, so what is the same is no Change.
func infoOf(stat *smb2.FileStat, name string) mounts.Info {
	info := mounts.Info{Name: name, ModTime: instant(stat.LastWriteTime)}
	if change := instant(stat.ChangeTime); !change.IsZero() && !change.Equal(info.ModTime) {
		info.Change = change.UnixNano()
	}
	if stat.FileAttributes&attrDir != 0 {
		info.Type = mounts.Dir
	} else {
		info.Size = max(stat.EndOfFile, 0)
	}
	return info
}

func instant(t time.Time) time.Time {
	if t.UnixNano() == noTime {
		return time.Time{}
	}
	return t.UTC()
}

// reparse corrects info of a reparse point with tag, 0 where it is not known. Symbolic links are told as such; tags that stand for another
// name otherwise (junctions) are Other; the rest are files and folders whose content the server fetches from somewhere (deduplication, tiers).
func (b *Backend) reparse(ctx context.Context, path string, tag uint32, info *mounts.Info) error {
	if tag != 0 && tag != tagSymlink {
		if tag&tagSurrogate != 0 {
			info.Type, info.Size = mounts.Other, 0
		}
		return nil
	}
	target, err := with(ctx, b.data, true, func(s *session) (string, error) {
		return on(ctx, s, large, func() (string, error) { return s.share.Readlink(path) }, nil)
	})
	switch {
	case err == nil:
		info.Type, info.Size, info.Target = mounts.Symlink, 0, linkTarget(target)
	case ctx.Err() != nil || tag == tagSymlink && kindOf(err) != fault.NotExist:
		return err
	case info.Type == mounts.Dir: // as good as certainly a junction
		info.Type = mounts.Other
	}
	return nil
}

// linkTarget returns where a link points in our spelling.
func linkTarget(stored string) string {
	parts := strings.Split(stored, `\`)
	for i, part := range parts {
		parts[i] = decode(part)
	}
	return strings.Join(parts, "/")
}

// lstat describes a path of the server. Its errors are the library's.
func (b *Backend) lstat(ctx context.Context, path string) (mounts.Info, error) {
	stat, err := patient(ctx, func() (*smb2.FileStat, error) { return b.lstatRaw(ctx, path) })
	if err != nil {
		return mounts.Info{}, err
	}
	name := "."
	if path != b.cfg.root {
		name = decode(path[strings.LastIndexByte(path, '\\')+1:])
	}
	info := infoOf(stat, name)
	if stat.FileAttributes&attrReparse != 0 {
		err = b.reparse(ctx, path, 0, &info)
	}
	return info, err
}

func (b *Backend) lstatRaw(ctx context.Context, path string) (*smb2.FileStat, error) {
	return with(ctx, b.data, true, func(s *session) (*smb2.FileStat, error) {
		return on(ctx, s, small, func() (*smb2.FileStat, error) { return s.lstat(path) }, nil)
	})
}

// lstat is to be run.
func (s *session) lstat(path string) (*smb2.FileStat, error) {
	info, err := s.share.Lstat(path)
	if err != nil {
		return nil, err
	}
	stat, ok := info.Sys().(*smb2.FileStat)
	if !ok {
		return nil, errFrame
	}
	return stat, nil
}

// path returns where name is on the server. A name that the server would take for another file is NotExist, or Invalid where it is to be made.
func (b *Backend) path(ctx context.Context, op, name string, create bool) (string, error) {
	path, err := encodePath(b.cfg.root, name)
	if err != nil {
		return "", fault.Wrap("mounts/smb."+op, name, err)
	}
	if strings.IndexByte(name, '~') < 0 {
		return path, nil
	}
	dir := "."
	for segment := range strings.SplitSeq(name, "/") {
		if short(segment) {
			alias, err := b.alias(ctx, dir, segment)
			switch {
			case err != nil:
				return "", b.fail(op, name, err)
			case alias && create:
				return "", b.fail(op, name, errAlias)
			case alias:
				return "", fault.New("mounts/smb."+op, name, fault.NotExist, nil)
			}
		}
		dir = mounts.Join(dir, segment)
	}
	return path, nil
}

// alias reports whether the server finds a file by segment in dir that has another name.
func (b *Backend) alias(ctx context.Context, dir, segment string) (bool, error) {
	path, err := encodePath(b.cfg.root, mounts.Join(dir, segment))
	if err != nil {
		return false, err
	}
	if _, err := b.lstatRaw(ctx, path); err != nil {
		if kind := kindOf(err); kind == fault.NotExist || kind == fault.NotDir || kind == fault.Invalid || kind == fault.Denied {
			return false, nil
		}
		return false, err
	}
	parent, _ := encodePath(b.cfg.root, dir)
	for page, err := range b.pages(ctx, parent) {
		if err != nil {
			return false, err
		}
		for _, stat := range page {
			if strings.EqualFold(decode(stat.FileName), segment) {
				return false, nil
			}
		}
	}
	return true, nil
}

// probeCase finds out whether the server tells a from A, by a name that is there. Without any it does not matter yet: the answer is no.
func (b *Backend) probeCase(ctx context.Context) (bool, error) {
	sample := ""
	area, _ := encodePath(b.cfg.root, mounts.Area)
	if _, err := b.lstatRaw(ctx, area); err == nil {
		sample = mounts.Area
	} else {
		for page, err := range b.pages(ctx, b.cfg.root) {
			if err != nil {
				if kindOf(err) == fault.Denied {
					return false, nil
				}
				return false, err
			}
			for _, stat := range page {
				if swapCase(stat.FileName) != stat.FileName && mounts.ValidName(stat.FileName) == nil {
					sample = stat.FileName
				}
			}
			break
		}
	}
	if sample == "" {
		return false, nil
	}
	path := swapCase(sample)
	if b.cfg.root != "" {
		path = b.cfg.root + `\` + path
	}
	_, err := b.lstatRaw(ctx, path)
	if err != nil && kindOf(err) != fault.NotExist {
		return false, err
	}
	return err != nil, nil
}

// swapCase exchanges the case of ASCII letters.
func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && unicode.IsLetter(r) {
			return r ^ 0x20
		}
		return r
	}, s)
}

// Stat implements mounts.Backend.
func (b *Backend) Stat(ctx context.Context, name string) (mounts.Info, error) {
	if err := b.begin(ctx, "Stat", name, false); err != nil {
		return mounts.Info{}, err
	}
	path, err := b.path(ctx, "Stat", name, false)
	if err != nil {
		return mounts.Info{}, err
	}
	info, err := b.lstat(ctx, path)
	if err != nil {
		return mounts.Info{}, b.fail("Stat", name, err)
	}
	return info, nil
}

// none is the result of calls that have none.
type none = struct{}

// Mkdir implements mounts.Backend.
func (b *Backend) Mkdir(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Mkdir", name, true); err != nil {
		return err
	}
	if name == "." {
		return fault.New("mounts/smb.Mkdir", name, fault.Exist, nil)
	}
	path, err := b.path(ctx, "Mkdir", name, true)
	if err != nil {
		return err
	}
	return b.fail("Mkdir", name, b.mkdir(ctx, path))
}

func (b *Backend) mkdir(ctx context.Context, path string) error {
	_, err := patient(ctx, func() (none, error) {
		return with(ctx, b.data, false, func(s *session) (none, error) {
			return on(ctx, s, small, func() (none, error) { return none{}, s.share.Mkdir(path, 0o777) }, nil)
		})
	})
	return err
}

// Remove implements mounts.Backend.
func (b *Backend) Remove(ctx context.Context, name string) error {
	if err := b.begin(ctx, "Remove", name, true); err != nil {
		return err
	}
	if name == "." {
		return b.fail("Remove", name, errRoot)
	}
	path, err := b.path(ctx, "Remove", name, false)
	if err != nil {
		return err
	}
	return b.fail("Remove", name, b.remove(ctx, path))
}

func (b *Backend) remove(ctx context.Context, path string) error {
	_, err := patient(ctx, func() (none, error) {
		return with(ctx, b.data, false, func(s *session) (none, error) {
			return on(ctx, s, small, func() (none, error) { return none{}, s.share.Remove(path) }, nil)
		})
	})
	return err
}

// Rename implements mounts.Backend.
func (b *Backend) Rename(ctx context.Context, from, to string) error {
	if err := b.begin(ctx, "Rename", from, true); err != nil {
		return err
	}
	if err := mounts.ValidPath(to); err != nil {
		return fault.Wrap("mounts/smb.Rename", to, err)
	}
	if from == "." || to == "." {
		return b.fail("Rename", from, errRoot)
	}
	source, err := b.path(ctx, "Rename", from, false)
	if err != nil {
		return err
	}
	target, err := b.path(ctx, "Rename", to, true)
	if err != nil {
		return err
	}
	// Servers on POSIX file systems replace an empty folder by a folder, so look first, at both at once.
	var old mounts.Info
	var oldErr error
	looked := make(chan none)
	if !b.spawn(func() { old, oldErr = b.lstat(ctx, target); close(looked) }) {
		return b.fail("Rename", from, errClosed)
	}
	info, err := b.lstat(ctx, source)
	<-looked
	same := !b.sensitive && fold(source) == fold(target) // but for case: what is at the target is the source itself
	switch {
	case err != nil:
		return b.fail("Rename", from, err)
	case from == to:
		return nil
	case info.IsDir() && (mounts.Below(to, from) || !b.sensitive && !same && mounts.Below(fold(to), fold(from))):
		return b.fail("Rename", to, errBelow)
	case oldErr != nil && kindOf(oldErr) != fault.NotExist:
		return b.fail("Rename", to, oldErr)
	case oldErr != nil || same:
	case old.IsDir() && info.IsDir():
		return fault.New("mounts/smb.Rename", to, fault.Exist, nil)
	case old.IsDir():
		return fault.New("mounts/smb.Rename", to, fault.IsDir, nil)
	case info.IsDir():
		return fault.New("mounts/smb.Rename", to, fault.NotDir, nil)
	}
	return b.fail("Rename", from, b.rename(ctx, source, target, nil))
}

// rename gives a file or folder another path, replacing a file. With own, nobody else knows source, which makes the call safe to repeat, and the
// session it was written on is tried first: its close may still be under way there.
func (b *Backend) rename(ctx context.Context, source, target string, own *session) error {
	do := func(s *session) (none, error) {
		return on(ctx, s, small, func() (none, error) { return none{}, s.share.Rename(source, target) }, nil)
	}
	here := own != nil
	try := func() (none, error) {
		if here = here && own.reason() == nil && !b.holds(target); here {
			if v, err := do(own); !expired(err) && kindOf(err) != fault.Denied { // so Samba says that the target is open on this session, too
				return v, err
			}
			here = false
		}
		v, err := with(ctx, b.changes, false, do)
		if kindOf(err) == fault.Denied && (b.holds(target) || b.holds(source)) { // so servers say that the target is open, or a file in the folder
			err = errInUse
		}
		return v, err
	}
	_, err := patient(ctx, try)
	if own != nil && lost(err) && ctx.Err() == nil {
		switch _, gone := b.lstatRaw(ctx, source); {
		case gone == nil:
			_, err = patient(ctx, try)
		case kindOf(gone) == fault.NotExist: // it had been done
			err = nil
		}
	}
	return err
}

// name locks a path for an exclusive Put.
func (b *Backend) name(ctx context.Context, path string) (unlock func(), err error) {
	lock := b.naming[maphash.String(seed, fold(path))%uint64(len(b.naming))]
	select {
	case lock <- none{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var seed = maphash.MakeSeed()

// SetModTime implements mounts.TimeSetter.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	if err := b.begin(ctx, "SetModTime", name, true); err != nil {
		return err
	}
	path, err := b.path(ctx, "SetModTime", name, false)
	if err != nil {
		return err
	}
	stat, err := b.lstatRaw(ctx, path)
	if err == nil && stat.FileAttributes&attrReparse != 0 { // the library would follow it
		info := infoOf(stat, "")
		if err = b.reparse(ctx, path, 0, &info); err == nil && info.Type != mounts.File && info.Type != mounts.Dir {
			err = errLink
		}
	}
	if err == nil {
		err = b.setTime(ctx, path, stat.LastAccessTime, t)
	}
	return b.fail("SetModTime", name, err)
}

var errTime = failure{fault.Invalid, "a time before 1678 or after 2261 cannot be kept"}

func (b *Backend) setTime(ctx context.Context, path string, access, modified time.Time) error {
	if y := modified.UTC().Year(); y < 1678 || y > 2261 { // what fits into nanoseconds, as the library counts
		return errTime
	}
	_, err := patient(ctx, func() (none, error) {
		return with(ctx, b.data, true, func(s *session) (none, error) {
			return on(ctx, s, small, func() (none, error) { return none{}, s.share.Chtimes(path, access, modified) }, nil)
		})
	})
	return err
}

// Space implements mounts.Spacer. Free is what the user may use; with a quota, Total is as well.
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return mounts.Space{}, err
	}
	fs, err := with(ctx, b.data, true, func(s *session) (smb2.FileFsInfo, error) {
		return on(ctx, s, small, func() (smb2.FileFsInfo, error) { return s.share.Statfs(b.cfg.root) }, nil)
	})
	if err != nil {
		return mounts.Space{}, b.fail("Space", ".", err)
	}
	return space(fs.BlockSize(), fs.TotalBlockCount(), fs.FreeBlockCount(), fs.AvailableBlockCount())
}

func space(block, total, free, available uint64) (mounts.Space, error) {
	most := max(total, free, available)
	if block == 0 || most > math.MaxInt64/block {
		return mounts.Space{}, fault.New("mounts/smb.Space", ".", fault.Unavailable, errors.New("the server tells an impossible size"))
	}
	n := func(blocks uint64) int64 { return int64(blocks * block) }
	return mounts.Space{Total: n(total), Used: n(total - min(free, total)), Free: n(min(available, total))}, nil
}
