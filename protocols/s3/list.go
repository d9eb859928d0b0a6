package s3

import (
	"net/http"
	"time"
)

// page is what a listing asks for, and what came of it.
type page struct {
	prefix, delimiter string
	after, resumed    string
	most              int
	items             []item
	more              bool
}

// encoder returns how names are written in a listing: as they are, or escaped for clients whose XML cannot hold every name.
func (q *request) encoder() (func(string) string, error) {
	switch q.query.get("encoding-type") {
	case "":
		return func(s string) string { return s }, nil
	case "url":
		return func(s string) string { return string(appendEscaped(nil, s, true)) }, nil
	}
	return nil, refuseFor(errArgument, "Invalid Encoding Method specified in Request")
}

// fill reads the page.
func (q *request) fill(pg *page) (err error) {
	if pg.prefix, pg.delimiter = q.query.get("prefix"), q.query.get("delimiter"); len(pg.prefix) > maxKey {
		return refuse(errKeyTooLong)
	}
	if pg.most, err = q.maxOf("max-keys"); err != nil {
		return err
	}
	if pg.most == 0 {
		return q.bucketThere()
	}
	w := walk{q: q, prefix: pg.prefix, delimiter: pg.delimiter, after: pg.after, resumed: pg.resumed}
	if err := w.begin(); err != nil {
		return err
	}
	it, ok, err := w.own()
	if !ok && err == nil {
		it, ok, err = w.next()
	}
	for ; ok && err == nil; it, ok, err = w.next() {
		if len(pg.items) == pg.most {
			pg.more = true
			break
		}
		pg.items = append(pg.items, it)
	}
	return err
}

// last is the position behind the page.
func (pg *page) last() string {
	if n := len(pg.items); n > 0 {
		return pg.items[n-1].key
	}
	return ""
}

// listObjects answers ListObjects, the old and the new one.
func (q *request) listObjects() error {
	switch v := q.query.get("list-type"); v {
	case "2":
		return q.listV2()
	case "", "1":
		return q.listV1()
	}
	return refuseFor(errArgument, "list-type is 1 or 2.")
}

func (q *request) listV1() error {
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	marker := q.query.get("marker")
	pg := page{after: marker}
	if q.h.listings.ended(q.sub.Login, q.bucket, marker) {
		pg.resumed = marker
	}
	if err := q.fill(&pg); err != nil {
		return err
	}
	const root = "ListBucketResult"
	b := document(root)
	b = elem(elem(b, "Name", q.bucket), "Prefix", encode(pg.prefix))
	b = elemInt(elem(b, "Marker", encode(marker)), "MaxKeys", int64(pg.most))
	if pg.delimiter != "" {
		b = elem(b, "Delimiter", encode(pg.delimiter))
	}
	if pg.more {
		q.h.listings.end(q.sub.Login, q.bucket, pg.last())
		if pg.delimiter != "" {
			b = elem(b, "NextMarker", encode(pg.last()))
		}
	}
	b = q.appendItems(b, &pg, encode, true)
	return q.reply(http.StatusOK, closed(b, root))
}

func (q *request) listV2() error {
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	position, err := readToken(q.query.get("continuation-token"))
	if err != nil {
		return err
	}
	start := q.query.get("start-after")
	pg := page{after: start, resumed: position}
	if position != "" {
		pg.after = position
	}
	if err := q.fill(&pg); err != nil {
		return err
	}
	const root = "ListBucketResult"
	b := document(root)
	b = elem(elem(b, "Name", q.bucket), "Prefix", encode(pg.prefix))
	if start != "" {
		b = elem(b, "StartAfter", encode(start))
	}
	if q.query.has("continuation-token") {
		b = elem(b, "ContinuationToken", q.query.get("continuation-token"))
	}
	if pg.more {
		b = elem(b, "NextContinuationToken", token(pg.last()))
	}
	b = elemInt(elemInt(b, "KeyCount", int64(len(pg.items))), "MaxKeys", int64(pg.most))
	if pg.delimiter != "" {
		b = elem(b, "Delimiter", encode(pg.delimiter))
	}
	b = q.appendItems(b, &pg, encode, q.query.get("fetch-owner") == "true")
	return q.reply(http.StatusOK, closed(b, root))
}

// appendItems writes what both listings have in common.
func (q *request) appendItems(b []byte, pg *page, encode func(string) string, owner bool) []byte {
	b = elemBool(b, "IsTruncated", pg.more)
	if q.query.get("encoding-type") != "" {
		b = elem(b, "EncodingType", "url")
	}
	var whose []byte
	if owner {
		whose = q.appendOwner(nil, "Owner")
	}
	for i := range pg.items {
		if it := &pg.items[i]; !it.common {
			b = elem(append(b, "<Contents>"...), "Key", encode(it.key))
			b = append(it.entry.append(b), whose...)
			b = append(b, "<StorageClass>STANDARD</StorageClass></Contents>"...)
		}
	}
	return appendGroups(b, pg, encode)
}

// append writes what is told of an object.
func (e *entry) append(b []byte) []byte {
	b = appendTime(append(b, "<LastModified>"...), time.Unix(0, e.mtime))
	b = append(append(b, "</LastModified><ETag>&#34;"...), e.etag()...)
	b = append(b, "&#34;</ETag>"...)
	if e.algo > 0 {
		b = elem(b, "ChecksumAlgorithm", inOrder[e.algo-1])
		kind := fullObject
		if e.comp {
			kind = composite
		}
		b = elem(b, "ChecksumType", kind)
	}
	size := e.size
	if e.dir {
		size = 0
	}
	return elemInt(b, "Size", size)
}

func appendGroups(b []byte, pg *page, encode func(string) string) []byte {
	for _, it := range pg.items {
		if it.common {
			b = append(elem(append(b, "<CommonPrefixes>"...), "Prefix", encode(it.key)), "</CommonPrefixes>"...)
		}
	}
	return b
}

// listVersions answers ListObjectVersions: of every object there is the one version "null".
func (q *request) listVersions() error {
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	marker := q.query.get("key-marker")
	if q.query.get("version-id-marker") != "" && marker == "" {
		return refuseFor(errArgument, "A version-id marker cannot be specified without a key marker.")
	}
	pg := page{after: marker}
	if q.h.listings.ended(q.sub.Login, q.bucket, marker) {
		pg.resumed = marker
	}
	if err := q.fill(&pg); err != nil {
		return err
	}
	const root = "ListVersionsResult"
	b := document(root)
	b = elem(elem(b, "Name", q.bucket), "Prefix", encode(pg.prefix))
	b = elem(elem(b, "KeyMarker", encode(marker)), "VersionIdMarker", q.query.get("version-id-marker"))
	if pg.more {
		q.h.listings.end(q.sub.Login, q.bucket, pg.last())
		b = elem(b, "NextKeyMarker", encode(pg.last()))
		b = elem(b, "NextVersionIdMarker", "null")
	}
	b = elemInt(b, "MaxKeys", int64(pg.most))
	if pg.delimiter != "" {
		b = elem(b, "Delimiter", encode(pg.delimiter))
	}
	b = elemBool(b, "IsTruncated", pg.more)
	if q.query.get("encoding-type") != "" {
		b = elem(b, "EncodingType", "url")
	}
	whose := q.appendOwner(nil, "Owner")
	for i := range pg.items {
		if it := &pg.items[i]; !it.common {
			b = elem(append(b, "<Version>"...), "Key", encode(it.key))
			b = append(b, "<VersionId>null</VersionId><IsLatest>true</IsLatest>"...)
			b = append(it.entry.append(b), whose...)
			b = append(b, "<StorageClass>STANDARD</StorageClass></Version>"...)
		}
	}
	return q.reply(http.StatusOK, closed(appendGroups(b, &pg, encode), root))
}
