package s3

import (
	"bufio"
	"bytes"
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cellgate/internal/secret"
	"cellgate/mounts"
)

// fake is a server as S3 proper is where versitygw is not: a flat map of keys, in which "a" and "a/b" live side by side. It looks at no
// signatures.
type fake struct {
	*httptest.Server
	careless bool // honours no conditions
	odd      bool // tags that are no MD5
	before   hook // of requests

	mu      sync.Mutex
	objects map[string]object          // guarded by mu
	uploads map[string]map[int]object  // guarded by mu
	asked   []string                   // guarded by mu: what was asked for
	ids     int                        // guarded by mu
	times   func(key string) time.Time // of new objects
}

// hook stands before requests; it returns true when it has answered one.
type hook struct {
	atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
}

func (h *hook) set(do func(w http.ResponseWriter, r *http.Request) bool) { h.Store(&do) }

type object struct {
	data []byte
	tag  string
	at   time.Time
	meta http.Header
}

func newFake(t testing.TB, tls bool) *fake {
	f := &fake{objects: map[string]object{}, uploads: map[string]map[int]object{}}
	f.times = func(string) time.Time { return time.Now() }
	f.Server = httptest.NewUnstartedServer(f)
	if tls {
		f.StartTLS()
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	return f
}

func (f *fake) config() mounts.Config {
	cfg := mounts.Config{
		Name:        "fake",
		Options:     map[string]string{"endpoint": f.URL, "bucket": "bucket"},
		Credentials: map[string]secret.String{"accessKey": secret.New("AKIAFAKE"), "secretKey": secret.New("fakesecretfakesecret")},
	}
	if strings.HasPrefix(f.URL, "https") {
		cfg.Options["tlsInsecure"] = "true"
	}
	return cfg
}

func (f *fake) put(key, content string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[key] = f.object(key, []byte(content), nil)
}

func (f *fake) content(key string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return string(f.objects[key].data)
}

func (f *fake) keys() (keys []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range f.objects {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}

// requests returns what was asked for since the last call.
func (f *fake) requests() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked := f.asked
	f.asked = nil
	return asked
}

func (f *fake) object(key string, data []byte, meta http.Header) object {
	tag := fmt.Sprintf("%x", md5.Sum(data))
	if f.odd {
		tag = "odd" + tag[3:]
	}
	return object{data, tag, f.times(key), meta}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><Error><Code>%s</Code><Message>said %s</Message></Error>", code, code)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	what := r.Method
	if q.Has("list-type") {
		what = "LIST " + q.Get("prefix")
	} else if key != "" {
		what += " " + key
	} else {
		what += " ?" + r.URL.RawQuery
	}
	f.mu.Lock()
	f.asked = append(f.asked, what)
	f.mu.Unlock()
	if do := f.before.Load(); do != nil && (*do)(w, r) {
		return
	}
	if bucket != "bucket" {
		refuse(w, 404, "NoSuchBucket")
		return
	}
	body, err := readBody(r)
	if err != nil {
		return // it was cut off: nothing happens
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case key == "" && q.Has("list-type"):
		f.list(w, q)
	case key == "" && q.Has("versioning"):
		io.WriteString(w, "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
	case key == "" && q.Has("delete"):
		f.deleteMany(w, body)
	case q.Has("uploads") || q.Has("uploadId"):
		f.multipart(w, r, q, key, body)
	case r.Method == "PUT" && r.Header.Get("X-Amz-Copy-Source") != "":
		o, ok := f.source(w, r)
		if ok {
			o.at = f.times(key)
			f.objects[key] = o
			fmt.Fprintf(w, "<CopyObjectResult><ETag>\"%s\"</ETag><LastModified>%s</LastModified></CopyObjectResult>", o.tag, o.at.UTC().Format("2006-01-02T15:04:05.000Z"))
		}
	case r.Method == "PUT":
		if f.allowed(w, r, key) {
			o := f.object(key, body, r.Header)
			f.objects[key] = o
			w.Header().Set("ETag", `"`+o.tag+`"`)
		}
	case r.Method == "DELETE":
		delete(f.objects, key)
		w.WriteHeader(204)
	default:
		f.get(w, r, key)
	}
}

func (f *fake) allowed(w http.ResponseWriter, r *http.Request, key string) bool {
	o, ok := f.objects[key]
	if f.careless {
		return true
	}
	if r.Header.Get("If-None-Match") == "*" && ok {
		refuse(w, 412, "PreconditionFailed")
		return false
	}
	if m := r.Header.Get("If-Match"); m != "" && !ok {
		refuse(w, 404, "NoSuchKey")
		return false
	} else if m != "" && m != `"`+o.tag+`"` {
		refuse(w, 412, "PreconditionFailed")
		return false
	}
	return true
}

func (f *fake) source(w http.ResponseWriter, r *http.Request) (object, bool) {
	from, _ := url.PathUnescape(strings.TrimPrefix(r.Header.Get("X-Amz-Copy-Source"), "/"))
	o, ok := f.objects[strings.TrimPrefix(from, "bucket/")]
	if !ok {
		refuse(w, 404, "NoSuchKey")
		return o, false
	}
	if m := r.Header.Get("X-Amz-Copy-Source-If-Match"); m != "" && m != `"`+o.tag+`"` {
		refuse(w, 412, "PreconditionFailed")
		return o, false
	}
	var first, last int
	if n, _ := fmt.Sscanf(r.Header.Get("X-Amz-Copy-Source-Range"), "bytes=%d-%d", &first, &last); n == 2 {
		o.data = o.data[first : last+1]
		o.tag = fmt.Sprintf("%x", md5.Sum(o.data))
	}
	return o, true
}

func (f *fake) get(w http.ResponseWriter, r *http.Request, key string) {
	o, ok := f.objects[key]
	if !ok {
		refuse(w, 404, "NoSuchKey")
		return
	}
	f.mu.Unlock() // whoever reads may take long
	defer f.mu.Lock()
	w.Header().Set("ETag", `"`+o.tag+`"`)
	http.ServeContent(w, r, "", o.at, bytes.NewReader(o.data))
}

func (f *fake) list(w http.ResponseWriter, q url.Values) {
	prefix, delimiter, after := q.Get("prefix"), q.Get("delimiter"), q.Get("continuation-token")
	most, err := strconv.Atoi(q.Get("max-keys"))
	if err != nil || most > 1000 {
		most = 1000
	}
	keys := make([]string, 0, len(f.objects))
	for key := range f.objects {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	sort.Strings(keys)
	var contents, prefixes bytes.Buffer
	n, last, cut := 0, "", false
	for _, key := range keys {
		entry := key
		if i := strings.Index(key[len(prefix):], delimiter); delimiter != "" && i >= 0 {
			entry = key[:len(prefix)+i+1]
		}
		if entry == last || entry <= after && after != "" {
			continue
		}
		if n++; n > most {
			cut = true
			break
		}
		last = entry
		if entry != key || delimiter != "" && strings.HasSuffix(entry, "/") && entry != prefix {
			fmt.Fprintf(&prefixes, "<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>", url.QueryEscape(entry))
			continue
		}
		o := f.objects[key]
		fmt.Fprintf(&contents, "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;%s&quot;</ETag><Size>%d</Size></Contents>",
			url.QueryEscape(key), o.at.UTC().Format("2006-01-02T15:04:05.000Z"), o.tag, len(o.data))
	}
	fmt.Fprintf(w, "<?xml version=\"1.0\"?><ListBucketResult><EncodingType>url</EncodingType><IsTruncated>%t</IsTruncated>", cut)
	if cut {
		var token bytes.Buffer
		xml.EscapeText(&token, []byte(last))
		fmt.Fprintf(w, "<NextContinuationToken>%s</NextContinuationToken>", token.String())
	}
	fmt.Fprintf(w, "%s%s</ListBucketResult>", contents.String(), prefixes.String())
}

func (f *fake) deleteMany(w http.ResponseWriter, body []byte) {
	var req struct{ Object []struct{ Key string } }
	if err := xml.Unmarshal(body, &req); err != nil || len(req.Object) > 1000 {
		refuse(w, 400, "MalformedXML")
		return
	}
	io.WriteString(w, "<DeleteResult>")
	for _, o := range req.Object {
		delete(f.objects, o.Key)
		var key bytes.Buffer
		xml.EscapeText(&key, []byte(o.Key))
		fmt.Fprintf(w, "<Deleted><Key>%s</Key></Deleted>", key.String())
	}
	io.WriteString(w, "</DeleteResult>")
}

func (f *fake) multipart(w http.ResponseWriter, r *http.Request, q url.Values, key string, body []byte) {
	id := q.Get("uploadId")
	parts, ok := f.uploads[id]
	if !ok && !q.Has("uploads") {
		refuse(w, 404, "NoSuchUpload")
		return
	}
	number, _ := strconv.Atoi(q.Get("partNumber"))
	switch {
	case q.Has("uploads"):
		f.ids++
		id = fmt.Sprint("upload", f.ids)
		f.uploads[id] = map[int]object{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case r.Method == "PUT" && r.Header.Get("X-Amz-Copy-Source") != "":
		if o, ok := f.source(w, r); ok {
			parts[number] = o
			fmt.Fprintf(w, "<CopyPartResult><ETag>\"%s\"</ETag></CopyPartResult>", o.tag)
		}
	case r.Method == "PUT":
		parts[number] = f.object(key, body, nil)
		w.Header().Set("ETag", `"`+parts[number].tag+`"`)
	case r.Method == "GET":
		io.WriteString(w, "<ListPartsResult><IsTruncated>false</IsTruncated>")
		for number, o := range parts {
			fmt.Fprintf(w, "<Part><PartNumber>%d</PartNumber><ETag>\"%s\"</ETag><Size>%d</Size></Part>", number, o.tag, len(o.data))
		}
		io.WriteString(w, "</ListPartsResult>")
	case r.Method == "DELETE":
		delete(f.uploads, id)
		w.WriteHeader(204)
	case r.Method == "POST":
		var req struct {
			Part []struct {
				PartNumber int
				ETag       string
			}
		}
		if err := xml.Unmarshal(body, &req); err != nil || !f.allowed(w, r, key) {
			return
		}
		var data, sums []byte
		for i, p := range req.Part {
			o, ok := parts[p.PartNumber]
			if !ok || strings.Trim(p.ETag, `"`) != o.tag || i < len(req.Part)-1 && len(o.data) < 5<<20 {
				refuse(w, 400, "InvalidPart")
				return
			}
			sum := md5.Sum(o.data)
			data, sums = append(data, o.data...), append(sums, sum[:]...)
		}
		o := f.object(key, data, nil)
		o.tag = fmt.Sprintf("%x-%d", md5.Sum(sums), len(req.Part))
		f.objects[key] = o
		delete(f.uploads, id)
		fmt.Fprintf(w, "<CompleteMultipartUploadResult><Bucket>bucket</Bucket><Key>k</Key><ETag>\"%s\"</ETag></CompleteMultipartUploadResult>", o.tag)
	}
}

// readBody reads a body, in signed chunks or not.
func readBody(r *http.Request) ([]byte, error) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return io.ReadAll(r.Body)
	}
	in := bufio.NewReader(r.Body)
	var data []byte
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(strings.TrimSpace(line), ";")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, n+2)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return nil, err
		}
		if n == 0 {
			return data, nil
		}
		data = append(data, chunk[:n]...)
	}
}
