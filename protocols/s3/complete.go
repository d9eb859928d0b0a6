package s3

import (
	"encoding/json"
	"net/http"
	"strings"

	"cellgate/gateway"
	"cellgate/internal/fault"
)

// listedPart is a part as CompleteMultipartUpload names it.
type listedPart struct {
	PartNumber        int
	ETag              string
	ChecksumCRC32     string
	ChecksumCRC32C    string
	ChecksumCRC64NVME string
	ChecksumSHA1      string
	ChecksumSHA256    string
}

func (p listedPart) sums() map[string]string {
	return map[string]string{"CRC32": p.ChecksumCRC32, "CRC32C": p.ChecksumCRC32C, "CRC64NVME": p.ChecksumCRC64NVME, "SHA1": p.ChecksumSHA1, "SHA256": p.ChecksumSHA256}
}

// completeUpload makes an object of its parts. Done again it says the same, for a day.
func (q *request) completeUpload() error {
	body, err := q.text(4 * q.h.cfg.Limits.XML) // a checksum in the headers is that of the object
	if err != nil {
		return err
	}
	var list struct {
		Parts []listedPart `xml:"Part"`
	}
	if err := decodeXML(body, "CompleteMultipartUpload", &list); err != nil {
		return err
	}
	if len(list.Parts) == 0 || len(list.Parts) > gateway.MaxPart {
		return refuse(errMalformedXML)
	}
	up, u, err := q.upload()
	if err != nil {
		return err
	}
	if up.Done {
		return q.completed(up, u.ETag, u.Sums)
	}
	parts, err := q.chosen(up, list.Parts)
	if err != nil {
		return err
	}
	j, err := join(parts, u)
	if err != nil {
		return err
	}
	if err := q.expected(u, j); err != nil {
		return err
	}
	id := newID()
	o := gateway.CreateOptions{Size: -1, Note: strings.TrimSpace(wordTag + ":" + j.etag + " " + wordID + ":" + id + " " + j.word), Props: u.props(id)}
	o.Props = append(o.Props, change(propParts, sizesOf(id, parts, u)))
	if o.Cond, err = q.writeCond(up.Path); err != nil {
		return err
	}
	defer q.h.folders.pin(up.Path)()
	u.ETag, u.Sums = j.etag, j.word
	err = q.making(up.Path, func() error {
		_, _, err := q.s.CompleteParts(q.ctx(), up.Path, up.ID, parts, o, u.String())
		if errKind(err, fault.NotExist) { // the folder, or the upload, which somebody else has ended?
			if now, nerr := q.s.Multipart(q.ctx(), up.Path, up.ID); nerr != nil {
				return q.noUpload(nerr)
			} else if now.Done {
				return nil
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	return q.completed(up, u.ETag, u.Sums)
}

// completed answers for a complete upload.
func (q *request) completed(up gateway.Multipart, tag, sums string) error {
	b := document("CompleteMultipartUploadResult")
	b = elem(b, "Location", q.location(q.key))
	b = elem(elem(elem(b, "Bucket", q.bucket), "Key", q.key), "ETag", `"`+tag+`"`)
	if k, ok := told(sums); ok {
		b = elem(elem(b, "Checksum"+k.algo, k.value), "ChecksumType", k.kind)
	}
	return q.reply(http.StatusOK, closed(b, "CompleteMultipartUploadResult"))
}

// location is the address of an object.
func (q *request) location(key string) string {
	scheme := "http"
	if q.r.TLS != nil {
		scheme = "https"
	}
	path := "/" + q.bucket + "/" + key
	if _, ok := q.h.virtual(q.r.Host); ok {
		path = "/" + key
	}
	return scheme + "://" + q.r.Host + string(appendEscaped(nil, path, true))
}

// chosen returns the parts that the client names, as they have come.
func (q *request) chosen(up gateway.Multipart, list []listedPart) ([]gateway.Part, error) {
	here := make(map[int]gateway.Part)
	for after := 0; ; {
		page, err := q.s.Parts(q.ctx(), up.Path, up.ID, after, 1000)
		if err != nil {
			return nil, q.noUpload(err)
		}
		for _, p := range page {
			here[p.Number], after = p, p.Number
		}
		if len(page) < 1000 {
			break
		}
	}
	for i := 1; i < len(list); i++ {
		if list[i].PartNumber <= list[i-1].PartNumber {
			return nil, refuse(errPartOrder)
		}
	}
	parts := make([]gateway.Part, len(list))
	for i, l := range list {
		p, ok := here[l.PartNumber]
		if !ok || !strings.EqualFold(unquoted(l.ETag), word(p.Sums, "MD5")) {
			return nil, &refusal{errPart, []string{"UploadId", up.ID, "PartNumber", itoa(int64(l.PartNumber)), "ETag", unquoted(l.ETag)}}
		}
		for algo, value := range l.sums() {
			if value != "" && value != base64Of(word(p.Sums, algo)) {
				return nil, refuse(errPart)
			}
		}
		if i < len(list)-1 && p.Size < minPart {
			return nil, &refusal{errTooSmall, []string{"ProposedSize", itoa(p.Size), "MinSizeAllowed", itoa(minPart), "PartNumber", itoa(int64(l.PartNumber)), "ETag", word(p.Sums, "MD5")}}
		}
		parts[i] = p
	}
	return parts, nil
}

// expected compares what came of the parts with what the client says.
func (q *request) expected(u upload, j joined) error {
	hd := q.r.Header
	if v := hd.Get("X-Amz-Mp-Object-Size"); v != "" {
		if n, ok := parseDigits(v); !ok || n != j.size {
			return refuseFor(errRequest, "The provided 'x-amz-mp-object-size' header does not match what was computed.")
		}
	}
	if v := strings.ToUpper(hd.Get("X-Amz-Checksum-Type")); v != "" && u.Kind != "" && v != u.Kind {
		return refuseFor(errRequest, "The upload was created using the "+u.Kind+" checksum mode. The complete request must use the same checksum mode.")
	}
	for name := range hd {
		algo, ok := checksumHeader(name)
		if !ok {
			continue
		}
		got := hd.Get(name)
		if k, ok := told(j.word); !ok || k.algo != algo || strings.TrimSuffix(got, suffixOf(k.value)) != strings.TrimSuffix(k.value, suffixOf(k.value)) {
			if u.Algo == "" {
				continue // nothing to compare it with
			}
			return refuse(errBadDigest)
		}
	}
	return nil
}

// suffixOf returns the number of parts behind a composite checksum, which clients leave out sometimes.
func suffixOf(v string) string {
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		return v[i:]
	}
	return ""
}

// partSizes are the sizes of the parts of an object, and their checksums where those are few enough.
type partSizes struct {
	Of   string     `json:"of"`
	Runs [][2]int64 `json:"runs"` // how many parts of which size follow each other
	Algo string     `json:"algo,omitempty"`
	Kind string     `json:"kind,omitempty"`
	Sums string     `json:"sums,omitempty"` // hexadecimal, one after the other
}

// maxPartSums is how long the checksums may be together to be kept.
const maxPartSums = 40 << 10

func sizesOf(id string, parts []gateway.Part, u upload) *partSizes {
	s := &partSizes{Of: id, Algo: u.Algo, Kind: u.Kind}
	var sums strings.Builder
	for _, p := range parts {
		if n := len(s.Runs); n > 0 && s.Runs[n-1][1] == p.Size {
			s.Runs[n-1][0]++
		} else {
			s.Runs = append(s.Runs, [2]int64{1, p.Size})
		}
		sums.WriteString(word(p.Sums, u.Algo))
	}
	if b, _ := json.Marshal(s.Runs); len(b) > maxPartSums/2 {
		s.Runs = nil // too many sizes: then it is like an object that came in one
	}
	if s.Sums = sums.String(); u.Algo == "" || len(s.Sums) > maxPartSums/2 {
		s.Sums = ""
	}
	return s
}

func (s *partSizes) count() (n int) {
	for _, r := range s.Runs {
		n += int(r[0])
	}
	return n
}

// at returns where part number lies, from 1 on.
func (s *partSizes) at(number int) (off, n int64, ok bool) {
	left := int64(number - 1)
	for _, r := range s.Runs {
		if left < r[0] {
			return off + left*r[1], r[1], true
		}
		left -= r[0]
		off += r[0] * r[1]
	}
	return 0, 0, false
}

// sum returns the checksum of a part, from 1 on, "" when it is not kept.
func (s *partSizes) sum(number int) string {
	size := 2 * algorithms[s.Algo].size
	if s.Algo == "" || len(s.Sums) < number*size {
		return ""
	}
	return base64Of(s.Sums[(number-1)*size : number*size])
}

// appendParts writes the parts of an object for GetObjectAttributes.
func (q *request) appendParts(b []byte, info gateway.Info, s *partSizes) ([]byte, error) {
	most := int64(1000)
	if v := q.r.Header.Get("X-Amz-Max-Parts"); v != "" {
		n, ok := parseDigits(v)
		if !ok {
			return nil, refuseFor(errArgument, "x-amz-max-parts is no number.")
		}
		most = min(n, most)
	}
	after, ok := parseDigits(q.r.Header.Get("X-Amz-Part-Number-Marker"))
	if q.r.Header.Get("X-Amz-Part-Number-Marker") != "" && (!ok || after > gateway.MaxPart) {
		return nil, refuseFor(errArgument, "x-amz-part-number-marker is no number.")
	}
	total := int64(s.count())
	last := max(min(after+most, total), after)
	b = elemInt(open(b, "ObjectParts"), "PartsCount", total)
	b = elemInt(elemInt(b, "PartNumberMarker", after), "NextPartNumberMarker", last)
	b = elemBool(elemInt(b, "MaxParts", most), "IsTruncated", last < total)
	for i := after + 1; i <= last; i++ {
		_, n, _ := s.at(int(i))
		b = elemInt(elemInt(open(b, "Part"), "PartNumber", i), "Size", n)
		if sum := s.sum(int(i)); sum != "" {
			b = elem(b, "Checksum"+s.Algo, sum)
		}
		b = closed(b, "Part")
	}
	return closed(b, "ObjectParts"), nil
}
