package s3

import (
	"net/http"
	"net/url"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// original is what is copied.
type original struct {
	path   gateway.Path
	folder bool
	info   gateway.Info
	kept   kept
	tag    string
}

// original looks x-amz-copy-source up, and asks its conditions.
func (q *request) original() (o original, err error) {
	v := strings.TrimPrefix(q.r.Header.Get("X-Amz-Copy-Source"), "/")
	v, version, versioned := strings.Cut(v, "?versionId=")
	if versioned && version != "null" {
		return o, refuse(errNoSuchVersion)
	}
	v, err = url.PathUnescape(v)
	if err != nil || len(v) > maxKey+64 {
		return o, refuseFor(errArgument, "The copy source is malformed.")
	}
	bucket, key, ok := strings.Cut(strings.TrimPrefix(v, "/"), "/")
	if !ok || key == "" || bucket == "" {
		return o, refuseFor(errArgument, "Copy Source must mention the source bucket and key: sourcebucket/sourcekey")
	}
	// What is asked of the source is asked as of a request of its own.
	src := &request{h: q.h, r: q.r, w: response{}, s: q.s, sub: q.sub, bucket: bucket, key: key}
	if o.path, o.folder, err = src.source(); err != nil {
		return o, err
	}
	if o.info, o.kept, err = src.node(); err != nil {
		return o, err
	}
	if o.tag = etag(o.info); o.folder {
		o.tag = emptyMD5
	}
	if evaluate(q.r.Header, "X-Amz-Copy-Source-", o.tag, stamp(o.info)) != 0 {
		return o, refuse(errPrecondition)
	}
	return o, nil
}

// directive reads one that is COPY or REPLACE.
func (q *request) directive(name string) (replace bool, err error) {
	switch v := q.r.Header.Get(name); v {
	case "", "COPY":
		return false, nil
	case "REPLACE":
		return true, nil
	}
	return false, refuseFor(errArgument, "Unknown "+strings.ToLower(name)+".")
}

// copyObject copies an object on the storage where that can, and without passing through here.
func (q *request) copyObject() error {
	to, folder, err := q.target()
	if err == nil {
		err = q.plain()
	}
	if err != nil {
		return err
	}
	if _, err := q.document(q.h.cfg.Limits.XML); err != nil {
		return err
	}
	newMeta, err := q.directive("X-Amz-Metadata-Directive")
	if err != nil {
		return err
	}
	newTags, err := q.directive("X-Amz-Tagging-Directive")
	if err != nil {
		return err
	}
	d, err := q.describe(to)
	if err != nil {
		return err
	}
	src, err := q.original()
	if err != nil {
		return err
	}
	if !newMeta {
		d.Meta = src.kept.meta
	}
	if !newTags {
		d.Tags = src.kept.tags
	}
	algo := strings.ToUpper(q.r.Header.Get("X-Amz-Checksum-Algorithm"))
	if _, known := algorithms[algo]; algo != "" && !known {
		return refuseFor(errArgument, "The checksum algorithm is not known.")
	}
	var info gateway.Info
	switch {
	case src.folder != folder && !src.folder:
		return refuse(errObjectName)
	case folder:
		q.pay = payload{}
		if err := q.putFolderMeta(to, d); err != nil {
			return err
		}
		info, err = q.s.Stat(q.ctx(), to)
	case src.folder:
		info, err = q.write(to, d, nil, 0, algo)
	case src.path == to:
		if !newMeta && !newTags && algo == "" {
			return refuseFor(errRequest, "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, storage class, website redirect location or encryption attributes.")
		}
		info, err = q.describeAnew(src, d, algo)
	default:
		info, err = q.copyTo(src, to, d, newMeta || newTags, algo)
	}
	if err != nil {
		return err
	}
	return q.copied(info, "CopyObjectResult")
}

// copied answers for a copy.
func (q *request) copied(info gateway.Info, root string) error {
	tag := etag(info)
	if info.Dir {
		tag = emptyMD5
	}
	b := document(root)
	b = elemTime(b, "LastModified", stamp(info))
	b = elem(b, "ETag", `"`+tag+`"`)
	if c, ok := told(info.Sums); ok {
		b = elem(elem(b, "Checksum"+c.algo, c.value), "ChecksumType", c.kind)
	}
	return q.reply(http.StatusOK, closed(b, root))
}

// describeAnew gives an object other metadata or tags. Only for a checksum that is not known yet is its content written anew.
func (q *request) describeAnew(src original, d described, algo string) (gateway.Info, error) {
	if algo != "" && word(src.info.Sums, algo) == "" {
		return q.rewrite(src, src.path, d, algo)
	}
	cond, err := q.writeCond(src.path)
	if err != nil {
		return gateway.Info{}, err
	}
	if cond.Check == nil {
		cond.Check = same(src.info, true)
	}
	if err := q.s.PatchProps(q.ctx(), src.path, d.changes(bound(src.info)), cond); err != nil {
		return gateway.Info{}, err
	}
	return q.s.Stat(q.ctx(), src.path)
}

// changes make the properties of a node those of d.
func (d described) changes(id string) []gateway.PropChange {
	all := []gateway.PropChange{change(propMeta, nil), change(propTags, nil)}
	for _, c := range d.props(id) {
		if c.Name == propMeta {
			all[0] = c
		} else {
			all[1] = c
		}
	}
	return all
}

// copyTo copies a file to another name.
func (q *request) copyTo(src original, to gateway.Path, d described, anew bool, algo string) (info gateway.Info, err error) {
	if algo != "" && word(src.info.Sums, algo) == "" {
		return q.rewrite(src, to, d, algo)
	}
	dest, err := q.writeCond(to)
	if err != nil {
		return info, err
	}
	also := dest.Check
	dest.Check = func(cur gateway.Info, exists bool) error {
		if err := noFolder(cur, exists); err != nil || also == nil {
			return err
		}
		return also(cur, exists)
	}
	defer q.h.folders.pin(to)()
	o := gateway.MoveOptions{Overwrite: true, Cond: gateway.Cond{Check: same(src.info, true)}, DestCond: dest}
	err = q.making(to, func() error { _, err := q.s.Copy(q.ctx(), src.path, to, o); return err })
	if err == nil {
		info, err = q.s.Stat(q.ctx(), to)
	}
	if err != nil {
		return info, err
	}
	// Properties went along. They are of the content when its id did, too.
	if anew || bound(info) != bound(src.info) && (!d.Meta.empty() || len(d.Tags) > 0) {
		err = q.s.PatchProps(q.ctx(), to, d.changes(bound(info)), gateway.Cond{Check: same(info, true)})
	}
	return info, err
}

// rewrite copies through here, to compute a checksum on the way.
func (q *request) rewrite(src original, to gateway.Path, d described, algo string) (info gateway.Info, err error) {
	f, err := q.s.Open(q.ctx(), src.path, gateway.ReadOptions{})
	if err != nil {
		return info, q.missing(err)
	}
	defer f.Close()
	return q.write(to, d, f, f.Info().Size, algo)
}

// write publishes what of f there is, or nothing.
func (q *request) write(to gateway.Path, d described, f *gateway.File, size int64, algo string) (info gateway.Info, err error) {
	id := newID()
	o := gateway.CreateOptions{Size: size, Compute: []string{"MD5"}, Note: wordID + ":" + id, Props: d.props(id), Expect: true}
	if algo != "" {
		o.Compute = append(o.Compute, algo)
	}
	if o.Cond, err = q.writeCond(to); err != nil {
		return info, err
	}
	defer q.h.folders.pin(to)()
	var up *gateway.Upload
	err = q.making(to, func() error {
		up, err = q.s.Create(q.ctx(), to, o)
		return err
	})
	if err != nil {
		return info, err
	}
	defer up.Abort()
	if f != nil {
		if _, err := f.CopyTo(q.ctx(), up, 0, size); err != nil {
			return info, err
		}
	}
	info, _, err = up.Commit(q.ctx())
	if errKind(err, fault.NotExist) {
		return info, refuse(errTryAgain)
	}
	return info, err
}
