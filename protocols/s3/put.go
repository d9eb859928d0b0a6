package s3

import (
	"errors"
	"net/http"
	"slices"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// putObject replaces or creates an object. Nothing is published unless the body came to its end and all that the client says of it is true.
func (q *request) putObject() error {
	p, folder, err := q.target()
	if err != nil {
		return err
	}
	if err := q.plain(); err != nil {
		return err
	}
	d, err := q.describe(p)
	if err != nil {
		return err
	}
	if folder {
		return q.putFolder(p, d)
	}
	info, err := q.store(p, d)
	if err != nil {
		return err
	}
	hd := q.w.Header()
	hd["Etag"] = []string{`"` + etag(info) + `"`}
	setChecksum(hd, info.Sums)
	return q.done(http.StatusOK)
}

// store publishes the body at p.
func (q *request) store(p gateway.Path, d described) (gateway.Info, error) {
	c, err := q.content(q.h.cfg.Limits.Object)
	if err != nil {
		return gateway.Info{}, err
	}
	declared, err := declaredSums(q.r.Header)
	if err != nil {
		return gateway.Info{}, err
	}
	o := gateway.CreateOptions{Size: c.size, Checksum: asChecksum(declared), Compute: q.tagged(declared, c.trail)}
	if o.Cond, err = q.writeCond(p); err != nil {
		return gateway.Info{}, err
	}
	id := newID()
	o.Note, o.Props = wordID+":"+id, d.props(id)
	if c.size >= 0 && c.size <= smallBody {
		return q.storeSmall(p, o, c)
	}
	return q.storeLarge(p, o, c)
}

// tagged returns what is to be computed beside what was declared: the MD5 that is the entity tag, unless another checksum may stand for it.
func (q *request) tagged(declared []sum, trail string) []string {
	if q.h.cfg.QuickTags && (trail != "" || slices.ContainsFunc(declared, func(s sum) bool { return s.algo != "MD5" })) {
		return nil
	}
	return []string{"MD5"}
}

// storeSmall takes the body in before anything is done with it: then it can be repeated when a folder on the way turns out to be missing, and
// a checksum that comes behind it is known before it.
func (q *request) storeSmall(p gateway.Path, o gateway.CreateOptions, c *content) (info gateway.Info, err error) {
	buf := small64.Get().(*[]byte)
	defer small64.Put(buf)
	body := (*buf)[:c.size]
	if err := c.all(body); err != nil {
		return info, q.blame(err)
	}
	if c.said != "" {
		o.Checksum = strings.TrimSpace(o.Checksum + " " + c.trail + ":" + c.said)
	}
	err = q.making(p, func() error {
		up, err := q.s.Create(q.ctx(), p, o)
		if err != nil {
			return err
		}
		defer up.Abort()
		if _, err := up.Write(body); err != nil {
			return err
		}
		info, _, err = up.Commit(q.ctx())
		return err
	})
	return info, q.unlike(err, o)
}

// storeLarge streams the body to where it will be published.
func (q *request) storeLarge(p gateway.Path, o gateway.CreateOptions, c *content) (info gateway.Info, err error) {
	if c.trail != "" {
		o.Compute = append(o.Compute, c.trail)
	}
	defer q.h.folders.pin(p)()
	var up *gateway.Upload
	err = q.making(p, func() error {
		up, err = q.s.Create(q.ctx(), p, o)
		return err
	})
	if err != nil {
		return info, q.unlike(err, o)
	}
	defer up.Abort()
	if err := q.pour(up, c); err != nil {
		return info, q.blame(err)
	}
	if info, _, err = up.Commit(q.ctx()); err != nil && fault.KindOf(err) == fault.NotExist {
		return info, refuse(errTryAgain) // another process has removed the folder
	}
	return info, q.unlike(err, o)
}

// unlike is err, as BadDigest where the core found that the content, whose length was checked here, is not what was declared.
func (q *request) unlike(err error, o gateway.CreateOptions) error {
	var asked *refusal
	if err != nil && fault.KindOf(err) == fault.Invalid && o.Checksum != "" && !errors.As(err, &asked) {
		return refuse(errBadDigest)
	}
	return err
}

// putFolder makes a folder on purpose, or gives one that is there the metadata of the request.
func (q *request) putFolder(p gateway.Path, d described) error {
	if q.pay.size != 0 {
		return refuse(errObjectName)
	}
	c, err := q.content(0)
	if err != nil {
		return err
	}
	if err := c.all(nil); err != nil {
		return q.blame(err)
	}
	declared, err := declaredSums(q.r.Header)
	if err != nil {
		return err
	}
	for _, s := range declared {
		if s.value != hexOf(algorithms[s.algo].hash().Sum(nil)) {
			return refuse(errBadDigest)
		}
	}
	if err := q.putFolderMeta(p, d); err != nil {
		return err
	}
	q.w.Header()["Etag"] = []string{`"` + emptyMD5 + `"`}
	return q.done(http.StatusOK)
}

// putFolderMeta makes the folder p on purpose, with metadata.
func (q *request) putFolderMeta(p gateway.Path, d described) error {
	only := q.r.Header.Get("If-None-Match") != ""
	err := q.making(p, func() error { return q.s.Mkdir(q.ctx(), p) })
	if err != nil && fault.KindOf(err) == fault.Exist {
		var info gateway.Info
		if info, err = q.s.Stat(q.ctx(), p); err == nil {
			switch {
			case !info.Dir:
				err = refuseFor(answers[fault.NotDir], "There is an object of that name, so there cannot be a folder.")
			case only:
				err = refuse(errPrecondition)
			}
		}
	}
	if err != nil {
		return err
	}
	d.Meta.Of = folderID
	changes := []gateway.PropChange{change(propMeta, d.Meta), change(propFolder, nil), change(propTags, nil)}
	if len(d.Tags) > 0 {
		changes[2] = change(propTags, tagging{folderID, d.Tags})
	}
	return q.s.PatchProps(q.ctx(), p, changes, gateway.Cond{Check: stillFolder})
}

// emptyMD5 is that of nothing.
const emptyMD5 = "d41d8cd98f00b204e9800998ecf8427e"

// plain refuses what a writer asks for and would not get.
func (q *request) plain() error {
	hd := q.r.Header
	for name, values := range hd {
		v := strings.Join(values, ",")
		switch {
		case name == "X-Amz-Acl":
			if err := cannedACL(v); err != nil {
				return err
			}
		case strings.HasPrefix(name, "X-Amz-Grant-"):
			return refuse(errACL)
		case name == "X-Amz-Storage-Class":
			if v != "STANDARD" {
				return refuse(errStorageClass)
			}
		case strings.HasPrefix(name, "X-Amz-Object-Lock-"), strings.HasPrefix(name, "X-Amz-Server-Side-Encryption"), name == "X-Amz-Website-Redirect-Location",
			name == "X-Amz-Write-Offset-Bytes", strings.HasPrefix(name, "X-Amz-Copy-Source-Server-Side-Encryption"):
			return refuseFor(errNotImplemented, "The header "+name+" implies functionality that is not implemented")
		}
	}
	return nil
}

// cannedACL accepts those that say what holds anyway.
func cannedACL(v string) error {
	switch v {
	case "", "private", "bucket-owner-full-control", "bucket-owner-read":
		return nil
	}
	return refuse(errACL)
}
