package s3

import (
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strconv"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// Sizes of parts.
const (
	minPart = 5 << 20 // of all but the last
	maxPart = 5 << 30
)

// composite and fullObject are the two kinds of checksums of what came in parts.
const (
	composite  = "COMPOSITE"
	fullObject = "FULL_OBJECT"
)

// upload is the note that the core keeps with an upload in parts.
type upload struct {
	described
	Algo string `json:"algo,omitempty"`
	Kind string `json:"kind,omitempty"`
	ETag string `json:"etag,omitempty"` // once it is complete
	Sums string `json:"sums,omitempty"` // likewise
}

func (u upload) String() string {
	b, _ := json.Marshal(u) // of strings: it cannot fail
	return string(b)
}

// createUpload begins an object that will come in parts.
func (q *request) createUpload() error {
	p, folder, err := q.target()
	if err == nil && folder {
		err = refuse(errObjectName)
	}
	if err == nil {
		err = q.plain()
	}
	if err != nil {
		return err
	}
	if _, err := q.document(q.h.cfg.Limits.XML); err != nil {
		return err
	}
	var u upload
	if u.described, err = q.describe(p); err != nil {
		return err
	}
	if u.Algo, u.Kind, err = checksumWanted(q.r.Header); err != nil {
		return err
	}
	defer q.h.folders.pin(p)()
	var up gateway.Multipart
	err = q.making(p, func() error {
		up, err = q.s.BeginParts(q.ctx(), p, u.String())
		return err
	})
	if err != nil {
		return err
	}
	if u.Algo != "" {
		q.w.Header()["X-Amz-Checksum-Algorithm"] = []string{u.Algo}
		q.w.Header()["X-Amz-Checksum-Type"] = []string{u.Kind}
	}
	b := document("InitiateMultipartUploadResult")
	b = elem(elem(elem(b, "Bucket", q.bucket), "Key", q.key), "UploadId", up.ID)
	return q.reply(http.StatusOK, closed(b, "InitiateMultipartUploadResult"))
}

// checksumWanted reads which checksum an object in parts shall have.
func checksumWanted(hd http.Header) (algo, kind string, err error) {
	algo, kind = strings.ToUpper(hd.Get("X-Amz-Checksum-Algorithm")), strings.ToUpper(hd.Get("X-Amz-Checksum-Type"))
	c, known := algorithms[algo]
	switch {
	case algo == "" && kind != "":
		return "", "", refuseFor(errRequest, "The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
	case algo == "":
		return "", "", nil
	case !known || algo == "MD5":
		return "", "", refuseFor(errRequest, "Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
	case kind == "":
		if kind = composite; algo == "CRC64NVME" {
			kind = fullObject
		}
	case kind != composite && kind != fullObject:
		return "", "", refuseFor(errRequest, "Value for x-amz-checksum-type header is invalid.")
	case kind == fullObject && c.poly == 0, kind == composite && algo == "CRC64NVME":
		return "", "", refuseFor(errRequest, "The "+kind+" checksum type cannot be used with the "+strings.ToLower(algo)+" checksum algorithm.")
	}
	return algo, kind, nil
}

// upload returns the upload of the request.
func (q *request) upload() (up gateway.Multipart, u upload, err error) {
	p, folder, err := q.source()
	if err == nil && folder {
		err = refuse(errNoSuchUpload)
	}
	if err != nil {
		return up, u, err
	}
	if up, err = q.s.Multipart(q.ctx(), p, q.query.get("uploadId")); err != nil {
		return up, u, q.noUpload(err)
	}
	if json.Unmarshal([]byte(up.Note), &u) != nil {
		return up, u, refuse(errNoSuchUpload) // of another protocol
	}
	return up, u, nil
}

// noUpload is err as S3 says it of an upload that is not there.
func (q *request) noUpload(err error) error {
	if !errKind(err, fault.NotExist) {
		return err
	}
	if err := q.bucketThere(); err != nil {
		return err
	}
	return refuse(errNoSuchUpload)
}

// uploadPart takes a part, from the body or from another object.
func (q *request) uploadPart() error {
	number, ok := parseDigits(q.query.get("partNumber"))
	if !ok || number < 1 || number > gateway.MaxPart {
		return refuseFor(errArgument, "Part number must be an integer between 1 and 10000, inclusive")
	}
	if err := q.plain(); err != nil {
		return err
	}
	up, u, err := q.upload()
	if err == nil && up.Done {
		err = refuse(errNoSuchUpload)
	}
	if err != nil {
		return err
	}
	if q.r.Header.Get("X-Amz-Copy-Source") != "" {
		return q.copyPart(up, u, int(number))
	}
	c, err := q.content(min(maxPart, q.h.cfg.Limits.Object))
	if err != nil {
		return err
	}
	declared, err := declaredSums(q.r.Header)
	if err != nil {
		return err
	}
	came := c.trail
	for _, s := range declared {
		if s.algo != "MD5" {
			came = s.algo
		}
	}
	o := gateway.CreateOptions{Size: c.size, Checksum: asChecksum(declared), Compute: u.compute()}
	if c.trail != "" && c.trail != u.Algo {
		o.Compute = append(o.Compute, c.trail)
	}
	if came != "" && u.Algo != "" && came != u.Algo {
		return refuseFor(errRequest, "Checksum Type mismatch occurred, expected checksum Type: "+strings.ToLower(u.Algo)+", actual checksum Type: "+strings.ToLower(came))
	}
	var body io.Reader = c
	if c.size >= aheadFrom {
		a := q.ahead(c)
		defer a.close()
		body = &aheadReader{ahead: a}
	}
	part, err := q.s.PutPart(q.ctx(), up.Path, up.ID, int(number), body, o)
	if err != nil {
		return q.noUpload(q.unlike(q.blame(err), o))
	}
	hd := q.w.Header()
	hd["Etag"] = []string{`"` + word(part.Sums, "MD5") + `"`}
	if k, ok := told(part.Sums); ok {
		hd.Set("X-Amz-Checksum-"+k.algo, k.value)
	}
	return q.done(http.StatusOK)
}

// compute returns what is computed of each part.
func (u upload) compute() []string {
	if u.Algo != "" {
		return []string{"MD5", u.Algo}
	}
	return []string{"MD5"}
}

// copyPart takes a part from another object, or a range of it.
func (q *request) copyPart(up gateway.Multipart, u upload, number int) error {
	if _, err := q.document(q.h.cfg.Limits.XML); err != nil {
		return err
	}
	src, err := q.original()
	if err != nil {
		return err
	}
	off, n := int64(0), src.info.Size
	if v := q.r.Header.Get("X-Amz-Copy-Source-Range"); v != "" {
		spec, ok := strings.CutPrefix(v, "bytes=")
		first, last, ok2 := strings.Cut(spec, "-")
		from, ok3 := parseDigits(first)
		to, ok4 := parseDigits(last)
		if !ok || !ok2 || !ok3 || !ok4 || from > to {
			return refuseFor(errArgument, "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets of the first and last bytes to copy")
		}
		if to >= src.info.Size {
			return refuseFor(errRange, "Range specified is not valid for source object of size: "+itoa(src.info.Size))
		}
		off, n = from, to-from+1
	}
	if n > maxPart {
		return refuse(errTooLarge)
	}
	var body io.Reader = strings.NewReader("")
	if !src.folder {
		f, err := q.s.Open(q.ctx(), src.path, gateway.ReadOptions{Off: off, N: n})
		if err != nil {
			return q.missing(err)
		}
		defer f.Close()
		if f.Info().Size < off+n {
			return refuse(errPrecondition)
		}
		body = io.NewSectionReader(f, off, n)
	}
	part, err := q.s.PutPart(q.ctx(), up.Path, up.ID, number, body, gateway.CreateOptions{Size: n, Compute: u.compute()})
	if err != nil {
		return q.noUpload(err)
	}
	b := document("CopyPartResult")
	b = elem(elemTime(b, "LastModified", part.Modified), "ETag", `"`+word(part.Sums, "MD5")+`"`)
	if k, ok := told(part.Sums); ok {
		b = elem(b, "Checksum"+k.algo, k.value)
	}
	return q.reply(http.StatusOK, closed(b, "CopyPartResult"))
}

func (q *request) abortUpload() error {
	up, _, err := q.upload()
	if err == nil {
		err = q.s.AbortParts(q.ctx(), up.Path, up.ID)
	}
	if err != nil {
		return q.noUpload(err)
	}
	q.prune(up.Path.Parent())
	return q.done(http.StatusNoContent)
}

// listParts tells which parts have come.
func (q *request) listParts() error {
	up, u, err := q.upload()
	if err == nil && up.Done {
		err = refuse(errNoSuchUpload)
	}
	if err != nil {
		return err
	}
	most, err := q.maxOf("max-parts")
	if err != nil {
		return err
	}
	after, ok := parseDigits(q.query.get("part-number-marker"))
	if q.query.get("part-number-marker") != "" && (!ok || after > 1<<31-1) {
		return refuseFor(errArgument, "part-number-marker is no number.")
	}
	parts, err := q.s.Parts(q.ctx(), up.Path, up.ID, int(after), most+1)
	if err != nil {
		return q.noUpload(err)
	}
	more := len(parts) > most
	parts = parts[:min(len(parts), most)]
	b := document("ListPartsResult")
	b = elem(elem(elem(b, "Bucket", q.bucket), "Key", q.key), "UploadId", up.ID)
	b = q.appendOwner(q.appendOwner(b, "Initiator"), "Owner")
	b = elemInt(elem(b, "StorageClass", "STANDARD"), "PartNumberMarker", after)
	if n := len(parts); n > 0 {
		after = int64(parts[n-1].Number)
	}
	b = elemInt(b, "NextPartNumberMarker", after)
	b = elemBool(elemInt(b, "MaxParts", int64(most)), "IsTruncated", more)
	if u.Algo != "" {
		b = elem(elem(b, "ChecksumAlgorithm", u.Algo), "ChecksumType", u.Kind)
	}
	for _, p := range parts {
		b = elemInt(open(b, "Part"), "PartNumber", int64(p.Number))
		b = elemTime(b, "LastModified", p.Modified)
		b = elemInt(elem(b, "ETag", `"`+word(p.Sums, "MD5")+`"`), "Size", p.Size)
		if k, ok := told(p.Sums); ok {
			b = elem(b, "Checksum"+k.algo, k.value)
		}
		b = closed(b, "Part")
	}
	return q.reply(http.StatusOK, closed(b, "ListPartsResult"))
}

// maxOf reads how many entries a page may have: 1,000 at most.
func (q *request) maxOf(name string) (int, error) {
	v := q.query.get(name)
	if v == "" {
		return 1000, nil
	}
	n, ok := parseDigits(v)
	if !ok || n > 1<<31-1 {
		return 0, refuseFor(errArgument, "Argument "+name+" must be an integer between 0 and 2147483647")
	}
	return int(min(n, 1000)), nil
}

// listUploads tells which uploads have begun and not ended.
func (q *request) listUploads() error {
	bucket, err := q.bucketPath()
	if err == nil {
		err = q.bucketThere()
	}
	if err != nil {
		return err
	}
	most, err := q.maxOf("max-uploads")
	if err != nil {
		return err
	}
	encode, err := q.encoder()
	if err != nil {
		return err
	}
	prefix, delimiter, key, id := q.query.get("prefix"), q.query.get("delimiter"), q.query.get("key-marker"), q.query.get("upload-id-marker")
	base := bucket.String() + "/"
	afterPath, afterID := base+max(prefix, key), ""
	if key >= prefix && key != "" {
		if afterID = id; id == "" {
			afterID = "\U0010FFFF" // behind all of that key
		}
	}
	var items []gateway.Multipart
	var groups []string
	lastKey, lastID, more := "", "", false
scan:
	for most > 0 {
		page, err := q.s.Multiparts(q.ctx(), bucket, afterPath, afterID, 1000)
		if err != nil {
			return err
		}
		for _, up := range page {
			afterPath, afterID = up.Path.String(), up.ID
			name := strings.TrimPrefix(afterPath, base)
			rest, ok := strings.CutPrefix(name, prefix)
			if !ok {
				break scan // they come in order
			}
			group := ""
			if i := strings.Index(rest, delimiter); i >= 0 && delimiter != "" {
				if group = prefix + rest[:i+len(delimiter)]; group <= key || len(groups) > 0 && groups[len(groups)-1] == group {
					continue
				}
			}
			if len(items)+len(groups) == most {
				more = true
				break scan
			}
			if lastKey, lastID = name, up.ID; group != "" {
				groups, lastKey, lastID = append(groups, group), group, ""
			} else {
				items = append(items, up)
			}
		}
		if len(page) < 1000 {
			break
		}
	}
	b := document("ListMultipartUploadsResult")
	b = elem(elem(b, "Bucket", q.bucket), "KeyMarker", encode(key))
	b = elem(elem(b, "UploadIdMarker", id), "Prefix", encode(prefix))
	if delimiter != "" {
		b = elem(b, "Delimiter", encode(delimiter))
	}
	if more {
		b = elem(elem(b, "NextKeyMarker", encode(lastKey)), "NextUploadIdMarker", lastID)
	}
	b = elemBool(elemInt(b, "MaxUploads", int64(most)), "IsTruncated", more)
	if q.query.get("encoding-type") != "" {
		b = elem(b, "EncodingType", "url")
	}
	for _, up := range items {
		var u upload
		_ = json.Unmarshal([]byte(up.Note), &u) // of another protocol: then there is nothing to tell
		b = elem(open(b, "Upload"), "Key", encode(strings.TrimPrefix(up.Path.String(), base)))
		b = elem(b, "UploadId", up.ID)
		b = q.appendOwner(q.appendOwner(b, "Initiator"), "Owner")
		b = elemTime(elem(b, "StorageClass", "STANDARD"), "Initiated", up.Begun)
		if u.Algo != "" {
			b = elem(elem(b, "ChecksumAlgorithm", u.Algo), "ChecksumType", u.Kind)
		}
		b = closed(b, "Upload")
	}
	for _, g := range groups {
		b = closed(elem(open(b, "CommonPrefixes"), "Prefix", encode(g)), "CommonPrefixes")
	}
	return q.reply(http.StatusOK, closed(b, "ListMultipartUploadsResult"))
}

// joined is what is known of an object that came in parts.
type joined struct {
	etag string
	word string // for the note of the content: its checksum
	size int64
}

// join makes entity tag and checksum of those of parts.
func join(parts []gateway.Part, u upload) (j joined, err error) {
	tags := md5.New()
	c := algorithms[u.Algo]
	var sums io.Writer
	var crc uint64
	h := c.hash
	if u.Kind == composite {
		digest := h()
		sums = digest
		defer func() {
			j.word = wordComposite + ":" + u.Algo + "=" + hexOf(digest.Sum(nil)) + "-" + strconv.Itoa(len(parts))
		}()
	}
	for _, p := range parts {
		b, err := hex.DecodeString(word(p.Sums, "MD5"))
		if err != nil || len(b) != md5.Size {
			return j, refuse(errPart)
		}
		tags.Write(b)
		j.size += p.Size
		if u.Algo == "" {
			continue
		}
		b, err = hex.DecodeString(word(p.Sums, u.Algo))
		if err != nil || len(b) != c.size {
			return j, refuse(errPart)
		}
		if sums != nil {
			sums.Write(b)
			continue
		}
		var v uint64
		for _, x := range b {
			v = v<<8 | uint64(x)
		}
		crc = combine(c, crc, v, p.Size)
	}
	j.etag = hexOf(tags.Sum(nil)) + "-" + strconv.Itoa(len(parts))
	if u.Kind == fullObject {
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(crc >> (56 - 8*i))
		}
		j.word = u.Algo + ":" + hexOf(b[8-c.size:])
	}
	return j, nil
}
