package s3

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// listBuckets answers ListBuckets: the workspaces that the user may see.
func (q *request) listBuckets() error {
	prefix, most := q.query.get("prefix"), int64(10_000)
	if v := q.query.get("max-buckets"); v != "" {
		n, ok := parseDigits(v)
		if !ok || n < 1 || n > most {
			return refuseFor(errArgument, "max-buckets is a number from 1 to 10000.")
		}
		most = n
	}
	after, err := readToken(q.query.get("continuation-token"))
	if err != nil {
		return err
	}
	var names []string
	for info, err := range q.s.List(q.ctx(), gateway.Path{}) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(info.Name, prefix) && info.Name > after {
			names = append(names, info.Name)
		}
	}
	slices.Sort(names)
	b := document("ListAllMyBucketsResult")
	b = q.appendOwner(b, "Owner")
	b = open(b, "Buckets")
	more := int64(len(names)) > most
	names = names[:min(int64(len(names)), most)]
	dates := q.dates(names)
	for i, name := range names {
		b = elem(open(b, "Bucket"), "Name", name)
		b = elemTime(b, "CreationDate", dates[i])
		b = closed(elem(b, "BucketRegion", q.h.cfg.Region), "Bucket")
	}
	b = closed(b, "Buckets")
	if prefix != "" {
		b = elem(b, "Prefix", prefix)
	}
	if more {
		b = elem(b, "ContinuationToken", token(names[most-1]))
	}
	return q.reply(http.StatusOK, closed(b, "ListAllMyBucketsResult"))
}

// patience is how long ListBuckets waits for the dates of buckets, most of which nobody reads.
const patience = time.Second

// dates returns when buckets have last changed, which stands for when they were made: nobody knows that. Of a datasource that does not answer
// at once it is the epoch.
func (q *request) dates(names []string) []time.Time {
	type dated struct {
		i    int
		when time.Time
	}
	ctx, cancel := context.WithTimeout(q.ctx(), patience)
	defer cancel()
	found, slots := make(chan dated, len(names)), make(chan struct{}, deleters)
	for i, name := range names {
		go func() {
			d := dated{i, time.Unix(0, 0)}
			defer func() { found <- d }()
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-ctx.Done():
				return
			}
			if p, err := gateway.ParsePath(name); err == nil {
				if info, err := q.s.Stat(ctx, p); err == nil {
					d.when = stamp(info)
				}
			}
		}()
	}
	all := make([]time.Time, len(names))
	for range names {
		d := <-found
		all[d.i] = d.when
	}
	return all
}

// token makes a position opaque.
func token(position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte("1" + position))
}

func readToken(v string) (string, error) {
	if v == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(v)
	if err != nil || len(b) < 1 || b[0] != '1' || len(b) > maxKey+2 {
		return "", refuseFor(errArgument, "The continuation token provided is incorrect")
	}
	return string(b[1:]), nil
}

// appendOwner writes the user as owner: rights are a matter of grants, and whoever asks about ownership asks whether the bucket is theirs.
func (q *request) appendOwner(b []byte, root string) []byte {
	return closed(q.appendUser(open(b, root)), root)
}

func (q *request) appendUser(b []byte) []byte {
	return elem(elem(b, "ID", q.ownID()), "DisplayName", q.sub.Login)
}

// ownID is what stands for the user where Amazon has the number of an account.
func (q *request) ownID() string {
	h := sha256.Sum256([]byte("cellgate user " + q.sub.Login))
	return hexOf(h[:])
}

func (q *request) headBucket() error {
	if err := q.bucketThere(); err != nil {
		return err
	}
	hd := q.w.Header()
	hd["X-Amz-Bucket-Region"] = []string{q.h.cfg.Region}
	hd["X-Amz-Access-Point-Alias"] = []string{"false"}
	return q.done(http.StatusOK)
}

func (q *request) createBucket() error {
	if err := q.plain(); err != nil {
		return err
	}
	if q.r.Header.Get("X-Amz-Bucket-Object-Lock-Enabled") == "true" {
		return refuse(errNotImplemented)
	}
	if !validBucket(q.bucket) {
		return refuse(errBucketName)
	}
	body, err := q.document(q.h.cfg.Limits.XML)
	if err != nil {
		return err
	}
	if len(body) > 0 {
		var c struct {
			LocationConstraint string
		}
		if err := decodeXML(body, "CreateBucketConfiguration", &c); err != nil {
			return err
		}
		if v := c.LocationConstraint; v != "" && v != q.h.cfg.Region {
			return refuse(answer{http.StatusBadRequest, "InvalidLocationConstraint", "The specified location-constraint is not valid"})
		}
	}
	p, err := q.bucketPath()
	if err != nil {
		return err
	}
	if _, err := q.s.Stat(q.ctx(), p); err == nil {
		q.w.Header()["Location"] = []string{"/" + q.bucket}
		return q.done(http.StatusOK) // as in the region us-east-1: it is there already, and stays as it is
	}
	if q.h.cfg.Buckets == nil {
		return refuseFor(errDenied, "Buckets are workspaces, which an administrator makes.")
	}
	switch err := q.h.cfg.Buckets.Create(q.ctx(), q.sub, q.bucket); {
	case errKind(err, fault.Exist):
		return refuse(errBucketExists)
	case err != nil:
		return err
	}
	q.w.Header()["Location"] = []string{"/" + q.bucket}
	return q.done(http.StatusOK)
}

func (q *request) deleteBucket() error {
	if err := q.bucketThere(); err != nil {
		return err
	}
	if q.h.cfg.Buckets == nil {
		return refuseFor(errDenied, "Buckets are workspaces, which an administrator deletes.")
	}
	p, err := q.bucketPath()
	if err != nil {
		return err
	}
	if !q.hollow(q.ctx(), p) {
		return refuse(errBucketNotEmpty)
	}
	if err := q.h.cfg.Buckets.Delete(q.ctx(), q.sub, q.bucket); err != nil {
		return err
	}
	return q.done(http.StatusNoContent)
}

func (q *request) getLocation() error {
	if err := q.bucketThere(); err != nil {
		return err
	}
	b := document("LocationConstraint")
	if q.h.cfg.Region != "us-east-1" { // which is told by saying nothing
		b = appendText(b, q.h.cfg.Region)
	}
	return q.reply(http.StatusOK, closed(b, "LocationConstraint"))
}

// getVersioning says that there never was any.
func (q *request) getVersioning() error { return constant("VersioningConfiguration", "")(q) }

// getACL says what holds of everything: whom it belongs to, and no more.
func (q *request) getACL() error {
	if err := q.there(); err != nil {
		return err
	}
	b := document("AccessControlPolicy")
	b = q.appendOwner(b, "Owner")
	b = append(b, `<AccessControlList><Grant><Grantee xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser">`...)
	b = q.appendUser(b)
	b = append(b, `</Grantee><Permission>FULL_CONTROL</Permission></Grant></AccessControlList>`...)
	return q.reply(http.StatusOK, closed(b, "AccessControlPolicy"))
}

// there returns nil when the bucket or object of the request is there.
func (q *request) there() error {
	if q.key == "" {
		return q.bucketThere()
	}
	_, _, err := q.node()
	return err
}

// node looks the object or folder of the request up.
func (q *request) node() (info gateway.Info, k kept, err error) {
	if err := q.current(); err != nil {
		return info, k, err
	}
	p, folder, err := q.source()
	if err != nil {
		return info, k, err
	}
	if folder {
		return q.folder(p)
	}
	if info, err = q.s.Stat(q.ctx(), p); err == nil && info.Dir {
		err = refuse(errNoSuchKey)
	}
	if err != nil {
		return info, k, q.missing(err)
	}
	k, err = q.kept(info)
	return info, k, err
}

// putACL accepts what changes nothing.
func (q *request) putACL() error {
	if err := q.there(); err != nil {
		return err
	}
	if err := q.plain(); err != nil {
		return err
	}
	body, err := q.document(q.h.cfg.Limits.XML)
	if err != nil {
		return err
	}
	if q.r.Header.Get("X-Amz-Acl") != "" {
		return q.done(http.StatusOK)
	}
	// What getACL tells may be said back, as programs do that copy an object with its rights.
	var list struct {
		Grants []struct {
			ID         string `xml:"Grantee>ID"`
			Permission string
		} `xml:"AccessControlList>Grant"`
	}
	if err := decodeXML(body, "AccessControlPolicy", &list); err != nil {
		return err
	}
	for _, g := range list.Grants {
		if g.ID != q.ownID() || g.Permission != "FULL_CONTROL" {
			return refuse(errACL)
		}
	}
	return q.done(http.StatusOK)
}
