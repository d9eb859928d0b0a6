package ftp

import (
	"context"
	"encoding/hex"
	"errors"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// slowFactor is how many timeouts a command may take that makes the server read a whole file.
const slowFactor = 20

// SetModTime implements mounts.TimeSetter by MFMT.
func (b *Backend) SetModTime(ctx context.Context, name string, t time.Time) error {
	if err := b.begin(ctx, "SetModTime", name, true); err != nil {
		return err
	}
	if b.Features().ModTime != mounts.Native {
		return bad("SetModTime", name, fault.Unsupported, errors.New("the server does not offer MFMT"))
	}
	err := b.with(ctx, meta, true, func(c *conn) error {
		_, err := c.run("MFMT " + stamp(t) + " " + b.at(name))
		if err == nil || !isRefusal(err) {
			return err
		}
		if _, missing := b.look(c, name); missing != nil {
			return missing
		}
		return err
	})
	return b.fail(ctx, "SetModTime", name, err)
}

// Space implements mounts.Spacer by AVBL (draft-peterson-streamlined-ftp-command-extensions), which few servers have.
func (b *Backend) Space(ctx context.Context) (mounts.Space, error) {
	none := mounts.Space{Total: -1, Used: -1, Free: -1}
	if err := b.begin(ctx, "Space", ".", false); err != nil {
		return none, err
	}
	if !b.server.Load().has("AVBL") {
		return none, bad("Space", ".", fault.Unsupported, errors.New("the server does not offer AVBL"))
	}
	space := none
	err := b.with(ctx, meta, true, func(c *conn) error {
		r, err := c.run("AVBL " + b.at("."))
		if err != nil {
			return err
		}
		space.Free, err = number(r)
		if err != nil {
			return &lostError{err}
		}
		return nil
	})
	return space, b.fail(ctx, "Space", ".", err)
}

// digests are the algorithms of HASH (draft-bryan-ftpext-hash), by our name for them.
func (s *server) digests() map[string]string {
	found := map[string]string{}
	list, ok := s.features["HASH"]
	if !ok {
		return found
	}
	for name := range strings.SplitSeq(list, ";") {
		switch name = strings.TrimSuffix(strings.TrimSpace(name), "*"); strings.ToUpper(name) {
		case "MD5":
			found["md5"] = name
		case "SHA-1":
			found["sha1"] = name
		case "SHA-256":
			found["sha256"] = name
		}
	}
	return found
}

// Hash implements mounts.Hasher by HASH.
func (b *Backend) Hash(ctx context.Context, name, algo string) (sum []byte, err error) {
	if err := b.begin(ctx, "Hash", name, false); err != nil {
		return nil, err
	}
	theirs, ok := b.server.Load().digests()[algo]
	if !ok {
		return nil, bad("Hash", name, fault.Unsupported, errors.New("the server has no digest "+strconv.Quote(algo)))
	}
	err = b.with(ctx, meta, true, func(c *conn) error {
		info, err := b.look(c, name)
		switch {
		case err != nil:
			return err
		case info.IsDir():
			return fault.New("", name, fault.IsDir, nil)
		case info.Type != mounts.File:
			return fault.New("", name, fault.Denied, errLink)
		}
		option, command := "OPTS HASH "+theirs, "HASH "+b.at(name)
		if err := c.send(option, command); err != nil {
			return err
		}
		set, err := c.read(b.timeout)
		if err != nil {
			return err
		}
		r, err := c.read(slowFactor * b.timeout)
		if err != nil {
			return err
		}
		if err := errors.Join(refused(option, set), refused(command, r)); err != nil {
			return err
		}
		// "213 SHA-256 0-49 169cd2…  filename"
		f := strings.Fields(r.text())
		if len(f) < 3 || !strings.EqualFold(f[0], theirs) {
			return &lostError{errGarbled}
		}
		if sum, err = hex.DecodeString(f[2]); err != nil {
			return &lostError{errGarbled}
		}
		return nil
	})
	return sum, b.fail(ctx, "Hash", name, err)
}

// CopyFile implements mounts.Copier by SITE CPFR and CPTO of ProFTPD: to a temporary name, which is then published.
func (b *Backend) CopyFile(ctx context.Context, from, to string) (info mounts.Info, err error) {
	if err := b.begin(ctx, "CopyFile", from, true); err != nil {
		return info, err
	}
	if err := b.begin(ctx, "CopyFile", to, true); err != nil {
		return info, err
	}
	// The server takes the words of these commands apart and puts one space between them.
	if at := b.at(from); !strings.Contains(b.server.Load().features["SITE"], "COPY") || strings.Contains(at, "  ") || strings.HasSuffix(at, " ") {
		return info, bad("CopyFile", from, fault.Unsupported, errors.New("the server copies no such files by itself"))
	}
	if from == "." || to == "." {
		return info, bad("CopyFile", from, fault.IsDir, nil)
	}
	if err := b.keepsSpaces(ctx, to); err != nil {
		return info, b.fail(ctx, "CopyFile", to, err)
	}
	c, err := b.pool.get(ctx, writing, false)
	if err != nil {
		return info, b.fail(ctx, "CopyFile", from, err)
	}
	u := &upload{b: b, name: to, src: &source{}}
	if err = u.copy(c, from); err == nil {
		info, err = u.publish(ctx, c)
	}
	if err == nil || u.temp == "" {
		c.release()
	} else {
		b.clean(ctx, c, u.temp)
	}
	return info, b.fail(ctx, "CopyFile", from, err)
}

// copy lets the server copy from to a temporary name.
func (u *upload) copy(c *conn, from string) error {
	b := u.b
	info, err := b.look(c, from)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return fault.New("", from, fault.IsDir, nil)
	case info.Type != mounts.File:
		return fault.New("", from, fault.Denied, errLink)
	}
	temp := tempFolder + "/put-" + temporary()
	for try := 0; ; try++ {
		source, target := "SITE CPFR "+b.at(from), "SITE CPTO "+b.at(temp)
		rs, err := c.do(source)
		if err != nil {
			return err
		}
		if rs[0].code != 350 {
			return refused(source, rs[0])
		}
		if err := c.send(target); err != nil {
			return err
		}
		u.temp = temp
		r, err := c.read(slowFactor * b.timeout)
		if err != nil {
			return err
		}
		err = refused(target, r)
		if err == nil {
			u.src.n = info.Size
			return nil
		}
		if try > 0 || kindOf(err) != fault.NotExist {
			return err
		}
		if _, err := c.do("MKD "+b.at(mounts.Area), "MKD "+b.at(tempFolder)); err != nil {
			return err
		}
	}
}
