package s3

import (
	"errors"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// maxKey is the longest key in bytes.
const maxKey = 1024

// place returns where a key lies, and whether it is that of a folder. What can never be a key is InvalidObjectName, see the package comment.
func place(bucket gateway.Path, key string) (p gateway.Path, folder bool, err error) {
	if len(key) > maxKey {
		return p, false, refuse(errKeyTooLong)
	}
	name, folder := strings.CutSuffix(key, "/")
	if name == "" || name[0] == '/' || name[len(name)-1] == '/' || strings.Contains(name, "//") {
		return p, false, refuse(errObjectName)
	}
	if p, err = gateway.ParsePath(bucket.String() + "/" + name); err != nil {
		return p, false, refuse(errObjectName)
	}
	return p, folder, nil
}

// target returns where the key of the request lies, to write there.
func (q *request) target() (p gateway.Path, folder bool, err error) {
	bucket, err := q.bucketPath()
	if err != nil {
		return p, false, err
	}
	return place(bucket, q.key)
}

// source is target, to read from there: what can never be a key is not there.
func (q *request) source() (p gateway.Path, folder bool, err error) {
	p, folder, err = q.target()
	return p, folder, absent(err)
}

// absent makes NoSuchKey of a key that can never be.
func absent(err error) error {
	var r *refusal
	if errors.As(err, &r) && r.code == errObjectName.code {
		return refuse(errNoSuchKey)
	}
	return err
}

// missing returns err as S3 says it of a read: NotExist is of the bucket when that is not there, and what is below a file is not there.
func (q *request) missing(err error) error {
	switch fault.KindOf(err) {
	case fault.NotExist:
		if berr := q.bucketThere(); berr != nil {
			return berr
		}
		return refuse(errNoSuchKey)
	case fault.NotDir, fault.IsDir:
		return refuse(errNoSuchKey)
	}
	return err
}

// bucketThere returns NoSuchBucket when the bucket is not there, as far as the user may know.
func (q *request) bucketThere() error {
	p, err := q.bucketPath()
	if err != nil {
		return err
	}
	if _, err = q.s.Stat(q.ctx(), p); err != nil && fault.KindOf(err) == fault.NotExist {
		return refuse(errNoSuchBucket)
	}
	return err
}

// current is only for versions that there are: none but "null".
func (q *request) current() error {
	if v := q.query.get("versionId"); q.query.has("versionId") && v != "null" {
		return refuse(errNoSuchVersion)
	}
	return nil
}
