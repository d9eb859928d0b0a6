package s3

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/http"
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// deleteObject succeeds when there is nothing to delete.
func (q *request) deleteObject() error {
	bucket, err := q.bucketPath()
	if err == nil {
		err = q.current()
	}
	if err != nil {
		return err
	}
	hd := q.r.Header
	cond, err := unlessOf(etags(hd, "If-Match"), hd.Get("X-Amz-If-Match-Last-Modified-Time"), hd.Get("X-Amz-If-Match-Size"))
	if err != nil {
		return err
	}
	parent, err := q.remove(bucket, q.key, cond)
	if err != nil {
		return err
	}
	if parent.IsRoot() {
		if err := q.bucketThere(); err != nil { // nothing was deleted: perhaps since there is no such bucket
			return err
		}
	} else {
		q.prune(parent)
	}
	return q.done(http.StatusNoContent)
}

// remove deletes a key and returns the folder that held it, the root when there was nothing to delete.
func (q *request) remove(bucket gateway.Path, key string, when unless) (parent gateway.Path, err error) {
	p, folder, err := place(bucket, key)
	if err != nil {
		if len(key) > maxKey {
			return parent, err
		}
		return parent, nil
	}
	if folder {
		return q.removeFolder(p)
	}
	cond := gateway.Cond{Check: noFolder}
	if when.any() {
		info, err := q.s.Stat(q.ctx(), p)
		switch {
		case err != nil && !errKind(err, fault.NotExist) && !errKind(err, fault.NotDir):
			return parent, err
		case err != nil || info.Dir:
			return parent, nil
		case !when.hold(info):
			return parent, refuse(errPrecondition)
		}
		cond.Check = same(info, true)
	}
	switch err := q.s.Remove(q.ctx(), p, gateway.RemoveOptions{Cond: cond}); {
	case err == nil:
		return p.Parent(), nil
	case errKind(err, fault.NotExist), errKind(err, fault.NotDir), isFolder(err):
		return parent, nil
	default:
		return parent, err
	}
}

// isFolder reports whether noFolder has refused, or the core, which finds that a folder is not empty first.
func isFolder(err error) bool {
	return errKind(err, fault.NotEmpty) || answerTo(err).code == errIsFolder.code
}

// removeFolder deletes the key of a folder: the folder when it is empty, else only what made it a key.
func (q *request) removeFolder(p gateway.Path) (parent gateway.Path, err error) {
	info, err := q.s.Stat(q.ctx(), p)
	if err != nil || !info.Dir {
		if err == nil || errKind(err, fault.NotExist) || errKind(err, fault.NotDir) {
			return parent, nil
		}
		return parent, err
	}
	k, err := q.kept(info)
	if err != nil {
		return parent, err
	}
	if q.hollow(q.ctx(), p) {
		err := q.s.Remove(q.ctx(), p, gateway.RemoveOptions{Cond: gateway.Cond{Check: stillFolder}})
		if !errKind(err, fault.NotEmpty) {
			if errKind(err, fault.NotExist) {
				err = nil
			}
			return p.Parent(), err
		}
	}
	if !k.put {
		return parent, nil
	}
	return p, q.s.PatchProps(q.ctx(), p, []gateway.PropChange{change(propMeta, nil), change(propTags, nil), change(propFolder, implied)}, gateway.Cond{Check: stillFolder})
}

func stillFolder(cur gateway.Info, exists bool) error {
	if exists && !cur.Dir {
		return refuse(errPrecondition)
	}
	return nil
}

// maxDelete is how many keys one request deletes.
const maxDelete = 1000

// deleters is how many of them at a time: the store commits what comes together in one go.
const deleters = 8

type deletion struct {
	Key       string `xml:"Key"`
	VersionID string `xml:"VersionId"`
	ETag      string `xml:"ETag"`
	Modified  string `xml:"LastModifiedTime"`
	Size      string `xml:"Size"`
}

// deleteObjects deletes up to 1,000 keys and says of each what came of it.
func (q *request) deleteObjects() error {
	body, err := q.document(4 * q.h.cfg.Limits.XML)
	if err != nil {
		return err
	}
	var list struct {
		Quiet   bool       `xml:"Quiet"`
		Objects []deletion `xml:"Object"`
	}
	if err := decodeXML(body, "Delete", &list); err != nil {
		return err
	}
	if n := len(list.Objects); n == 0 || n > maxDelete {
		return refuse(errMalformedXML)
	}
	bucket, err := q.bucketPath()
	if err == nil {
		err = q.bucketThere()
	}
	if err != nil {
		return err
	}
	failed, parents := q.removeAll(bucket, list.Objects)
	for p := range parents {
		q.prune(p)
	}
	b := document("DeleteResult")
	for i, d := range list.Objects {
		switch {
		case failed[i] != nil:
			a := answerTo(failed[i])
			b = elem(open(b, "Error"), "Key", d.Key)
			if d.VersionID != "" {
				b = elem(b, "VersionId", d.VersionID)
			}
			b = closed(elem(elem(b, "Code", a.code), "Message", a.words), "Error")
		case !list.Quiet:
			b = elem(open(b, "Deleted"), "Key", d.Key)
			if d.VersionID != "" {
				b = elem(b, "VersionId", d.VersionID)
			}
			b = closed(b, "Deleted")
		}
	}
	return q.reply(http.StatusOK, closed(b, "DeleteResult"))
}

// removeAll deletes the objects of a list and returns what failed, and the folders that may be empty now.
func (q *request) removeAll(bucket gateway.Path, list []deletion) (failed []error, parents map[gateway.Path]bool) {
	failed, parents = make([]error, len(list)), make(map[gateway.Path]bool)
	var mu sync.Mutex
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(deleters, len(list)) {
		wg.Go(func() {
			for i := range next {
				d := list[i]
				if d.Key == "" || d.VersionID != "" && d.VersionID != "null" {
					failed[i] = refuse(errNoSuchVersion)
					continue
				}
				var tags []string
				if d.ETag != "" {
					tags = []string{unquoted(d.ETag)}
				}
				cond, err := unlessOf(tags, d.Modified, d.Size)
				var parent gateway.Path
				if err == nil {
					parent, err = q.remove(bucket, d.Key, cond)
				}
				mu.Lock()
				if failed[i] = err; err == nil && !parent.IsRoot() {
					parents[parent] = true
				}
				mu.Unlock()
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	wg.Wait()
	return failed, parents
}

// decodeXML reads a document with the given root and nothing behind it.
func decodeXML(body []byte, root string, v any) error {
	d := xml.NewDecoder(bytes.NewReader(body))
	for {
		t, err := d.Token()
		if err != nil {
			return refuse(errMalformedXML)
		}
		start, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		if start.Name.Local != root || d.DecodeElement(v, &start) != nil {
			return refuse(errMalformedXML)
		}
		break
	}
	for {
		switch t, err := d.Token(); {
		case err == io.EOF:
			return nil
		case err != nil:
			return refuse(errMalformedXML)
		default:
			if _, ok := t.(xml.StartElement); ok {
				return refuse(errMalformedXML)
			}
		}
	}
}
