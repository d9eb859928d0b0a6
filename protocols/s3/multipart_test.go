package s3

import (
	"bytes"
	"crypto/md5"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/minio/minio-go/v7"
)

// The CRC of a whole is that of its pieces put together.
func TestCombine(t *testing.T) {
	data := many(100_000)
	for name, c := range algorithms {
		if c.poly == 0 {
			continue
		}
		of := func(p []byte) (v uint64) {
			h := c.hash()
			h.Write(p)
			for _, x := range h.Sum(nil) {
				v = v<<8 | uint64(x)
			}
			return v
		}
		for _, at := range []int{0, 1, 7, 8, 4096, 65_537, len(data)} {
			if got, want := combine(c, of(data[:at]), of(data[at:]), int64(len(data)-at)), of(data); got != want {
				t.Errorf("%s at %d: %x, want %x", name, at, got, want)
			}
		}
	}
}

func TestMultipart(t *testing.T) {
	b := openBox(t, nil)
	c := b.client(alice)
	ctx := t.Context()
	data := many(2*minPart + 777)
	pieces := [][]byte{data[:minPart], data[minPart : 2*minPart], data[2*minPart:]}
	for _, algo := range append([]string{""}, inOrder...) {
		for _, kind := range []string{composite, fullObject} {
			hd := map[string]string{"X-Amz-Meta-Color": "blue", "Content-Type": "text/x-test", "X-Amz-Tagging": "a=b"}
			if algo != "" {
				hd["X-Amz-Checksum-Algorithm"], hd["X-Amz-Checksum-Type"] = algo, kind
			} else if kind == fullObject {
				continue
			}
			what := algo + " " + kind
			a := b.do(call{method: "POST", path: "/docs/dir/big", query: "uploads", header: hd})
			if impossible := algo != "" && (kind == fullObject) != (algorithms[algo].poly != 0) && (kind == fullObject || algo == "CRC64NVME"); impossible || algo == "CRC64NVME" && kind == composite {
				if a.String() != "400 InvalidRequest" {
					t.Errorf("%s: %v", what, a)
				}
				continue
			}
			_, rest, _ := strings.Cut(a.body, "<UploadId>")
			id, _, ok := strings.Cut(rest, "<")
			if !ok {
				t.Fatalf("%s: %v %s", what, a, a.body)
			}
			// In any order, one of them twice.
			for _, i := range []int{2, 0, 1, 0} {
				if a := b.do(call{method: "PUT", path: "/docs/dir/big", query: fmt.Sprintf("partNumber=%d&uploadId=%s", 2*i+1, id), body: string(pieces[i])}); a.status != 200 {
					t.Fatalf("%s part %d: %v", what, i, a)
				}
			}
			list, err := c.ListObjectParts(ctx, "docs", "dir/big", id, 1, 1)
			if err != nil || len(list.ObjectParts) != 1 || list.ObjectParts[0].PartNumber != 3 || !list.IsTruncated {
				t.Errorf("%s: parts %+v, %v", what, list, err)
			}
			body, tags := "", md5.New()
			for i, p := range pieces {
				sum := md5.Sum(p)
				tags.Write(sum[:])
				body += fmt.Sprintf("<Part><PartNumber>%d</PartNumber><ETag>\"%s\"</ETag></Part>", 2*i+1, hexOf(sum[:]))
			}
			for bad, want := range map[string]string{
				"":                    "400 MalformedXML",
				body + body:           "400 InvalidPartOrder",
				body[:40] + body[41:]: "400 ",
				"<Part><PartNumber>2</PartNumber><ETag>x</ETag></Part>": "400 InvalidPart",
			} {
				a := b.do(call{method: "POST", path: "/docs/dir/big", query: "uploadId=" + id, body: "<CompleteMultipartUpload>" + bad + "</CompleteMultipartUpload>"})
				if !strings.HasPrefix(a.String(), want) {
					t.Errorf("%s: a bad list: %v, want %s", what, a, want)
				}
			}
			for i := range 3 { // done again it says the same
				a = b.do(call{method: "POST", path: "/docs/dir/big", query: "uploadId=" + id, body: "<CompleteMultipartUpload>" + body + "</CompleteMultipartUpload>"})
				if want := hexOf(tags.Sum(nil)) + "-3"; a.status != 200 || !strings.Contains(a.body, want) {
					t.Errorf("%s: completed %d: %v %s, want %s", what, i, a, a.body, want)
				}
			}
			g := b.do(call{method: "GET", path: "/docs/dir/big", header: map[string]string{"X-Amz-Checksum-Mode": "ENABLED"}})
			if g.body != string(data) || g.header.Get("X-Amz-Meta-Color") != "blue" || g.header.Get("Content-Type") != "text/x-test" || g.header.Get("X-Amz-Tagging-Count") != "1" {
				t.Errorf("%s: %d bytes came back: %v", what, len(g.body), g.header)
			}
			if algo != "" {
				want := sumOf(algo, data)
				if kind == composite {
					var all []byte
					for _, p := range pieces {
						h := algorithms[algo].hash()
						h.Write(p)
						all = h.Sum(all)
					}
					want = sumOf(algo, all) + "-3"
				}
				if got := g.header.Get("X-Amz-Checksum-" + algo); got != want || g.header.Get("X-Amz-Checksum-Type") != kind {
					t.Errorf("%s: checksum %q %s, want %q", what, got, g.header.Get("X-Amz-Checksum-Type"), want)
				}
			}
			if p := b.do(call{method: "GET", path: "/docs/dir/big", query: "partNumber=2"}); p.status != 206 || p.body != string(pieces[1]) || p.header.Get("X-Amz-Mp-Parts-Count") != "3" {
				t.Errorf("%s: part 2: %v %d %v", what, p, len(p.body), p.header)
			}
			at := b.do(call{method: "GET", path: "/docs/dir/big", query: "attributes", header: map[string]string{"X-Amz-Object-Attributes": "ETag,Checksum,ObjectParts,ObjectSize,StorageClass"}})
			if !strings.Contains(at.body, "<PartsCount>3</PartsCount>") || !strings.Contains(at.body, fmt.Sprintf("<ObjectSize>%d<", len(data))) {
				t.Errorf("%s: attributes %s", what, at.body)
			}
		}
	}
}

func sumOf(algo string, p []byte) string {
	h := algorithms[algo].hash()
	h.Write(p)
	return base64Of(hexOf(h.Sum(nil)))
}

func TestMultipartOtherwise(t *testing.T) {
	b := openBox(t, nil)
	c := b.client(alice)
	ctx := t.Context()
	// A copy of parts of another object, and an upload that ends.
	data := many(minPart + 100)
	b.put("src", string(data))
	dst := minio.CopyDestOptions{Bucket: "docs", Object: "x/dst"}
	src := minio.CopySrcOptions{Bucket: "docs", Object: "src"}
	if _, err := c.ComposeObject(ctx, dst, src, src); err != nil {
		t.Fatal(err)
	}
	if g := b.get("x/dst"); g.body != string(data)+string(data) {
		t.Errorf("composed: %d bytes", len(g.body))
	}
	var ids []string
	for _, key := range []string{"u/1", "u/1", "u/2", "v"} {
		id, err := c.NewMultipartUpload(ctx, "docs", key, minio.PutObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	for _, most := range []int{1, 1000} {
		var got []string
		key, id := "", ""
		for range 10 {
			l, err := c.ListMultipartUploads(ctx, "docs", "", key, id, "", most)
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range l.Uploads {
				got = append(got, u.Key)
			}
			if key, id = l.NextKeyMarker, l.NextUploadIDMarker; !l.IsTruncated {
				break
			}
		}
		if fmt.Sprint(got) != "[u/1 u/1 u/2 v]" {
			t.Errorf("uploads by %d: %q", most, got)
		}
	}
	l, err := c.ListMultipartUploads(ctx, "docs", "", "", "", "/", 1000)
	if err != nil || len(l.Uploads) != 1 || len(l.CommonPrefixes) != 1 || l.CommonPrefixes[0].Prefix != "u/" {
		t.Errorf("uploads with a delimiter: %+v, %v", l, err)
	}
	for i, key := range []string{"u/1", "u/1", "u/2", "v"} {
		if err := c.AbortMultipartUpload(ctx, "docs", key, ids[i]); err != nil {
			t.Fatal(err)
		}
	}
	if a := b.do(call{method: "GET", path: "/docs", query: "delimiter=/"}); strings.Contains(a.body, "<Prefix>u/") {
		t.Errorf("a folder is left of uploads that were aborted: %s", a.body)
	}
	for _, c := range []call{
		{method: "PUT", query: "partNumber=1&uploadId=" + ids[3], body: "x"}, {method: "GET", query: "uploadId=" + ids[3]}, {method: "DELETE", query: "uploadId=" + ids[3]},
		{method: "POST", query: "uploadId=nosuch", body: "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"},
	} {
		c.path = "/docs/v"
		if a := b.do(c); a.String() != "404 NoSuchUpload" {
			t.Errorf("%s ?%s: %v", c.method, c.query, a)
		}
	}
	// Another user's upload is nobody's.
	id, err := c.NewMultipartUpload(ctx, "docs", "mine", minio.PutObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if a := b.do(call{method: "GET", path: "/docs/mine", query: "uploadId=" + id, key: bob}); a.String() != "404 NoSuchUpload" {
		t.Errorf("another user's upload: %v", a)
	}
	for number, want := range map[string]string{"0": "400 InvalidArgument", "10001": "400 InvalidArgument", "x": "400 InvalidArgument", "10000": "200 "} {
		if a := b.do(call{method: "PUT", path: "/docs/mine", query: "partNumber=" + number + "&uploadId=" + id, body: "x"}); a.String() != want {
			t.Errorf("part %s: %v, want %s", number, a, want)
		}
	}
	// The first of two parts is too small.
	for i := range 2 {
		if a := b.do(call{method: "PUT", path: "/docs/mine", query: fmt.Sprintf("partNumber=%d&uploadId=%s", i+1, id), body: "x"}); a.status != 200 {
			t.Fatal(a)
		}
	}
	sum := md5.Sum([]byte("x"))
	part := "<Part><PartNumber>%d</PartNumber><ETag>" + hexOf(sum[:]) + "</ETag></Part>"
	if a := b.do(call{method: "POST", path: "/docs/mine", query: "uploadId=" + id, body: "<CompleteMultipartUpload>" + fmt.Sprintf(part+part, 1, 2) + "</CompleteMultipartUpload>"}); a.String() != "400 EntityTooSmall" {
		t.Errorf("small parts: %v", a)
	}
}

// A large upload by minio-go, which makes parts by itself, with checksums behind them.
func TestMinioUpload(t *testing.T) {
	b := openBox(t, nil)
	size := int64(17<<20 + 5)
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	info, err := b.client(alice).Client.PutObject(t.Context(), "docs", "large", bytes.NewReader(data), size, minio.PutObjectOptions{PartSize: minPart, NumThreads: 3, SendContentMd5: true})
	if err != nil || !strings.HasSuffix(info.ETag, "-4") {
		t.Fatal(info, err)
	}
	o, err := b.client(bob).Client.GetObject(t.Context(), "docs", "large", minio.GetObjectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	back, err := io.ReadAll(o)
	if err != nil || !bytes.Equal(back, data) {
		t.Errorf("%d bytes came back, %v", len(back), err)
	}
	if a := b.do(call{method: "GET", path: "/docs/large", header: map[string]string{"Range": "bytes=-3"}}); a.status != http.StatusPartialContent || a.body != string(data[size-3:]) {
		t.Errorf("the last bytes: %v", a)
	}
}
