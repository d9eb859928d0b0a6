package s3

import (
	"bytes"
	"crypto/sha256"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The examples of "Signature Calculations for the Authorization Header" and "Authenticating Requests: Using Query Parameters" of the S3 API
// reference.
func TestPublishedSignatures(t *testing.T) {
	const secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	const day = "Fri, 24 May 2013 00:00:00 GMT"
	for _, c := range []struct {
		name, method, url, payload, want string
		header                           map[string]string
		signed                           string
	}{
		{"GET a range", "GET", "/test.txt", emptySum, "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
			map[string]string{"Range": "bytes=0-9"}, "host;range;x-amz-content-sha256;x-amz-date"},
		{"PUT", "PUT", "/test%24file.text", "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
			"98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
			map[string]string{"Date": day, "X-Amz-Storage-Class": "REDUCED_REDUNDANCY"}, "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class"},
		{"a subresource", "GET", "/?lifecycle", emptySum, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
			nil, "host;x-amz-content-sha256;x-amz-date"},
		{"a listing", "GET", "/?max-keys=2&prefix=J", emptySum, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
			nil, "host;x-amz-content-sha256;x-amz-date"},
		{"presigned", "GET", "/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&X-Amz-Signature=x",
			unsignedPayload, "aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404", nil, "host"},
	} {
		r, err := http.NewRequest(c.method, "http://examplebucket.s3.amazonaws.com"+c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range c.header {
			r.Header.Set(k, v)
		}
		if c.name != "presigned" {
			r.Header.Set("X-Amz-Date", "20130524T000000Z")
			r.Header.Set("X-Amz-Content-Sha256", c.payload)
		}
		s := signature{credential: credential{"AKIAIOSFODNN7EXAMPLE", "20130524", "us-east-1"}, stamp: "20130524T000000Z"}
		s.headers, _ = parseSigned(c.signed)
		all, err := parseQuery(r.URL.RawQuery)
		if err != nil {
			t.Fatal(err)
		}
		got := hexOf(mac(deriveKey(secret, s.credential), s.toSign(canonicalRequest(r, all, s.headers, c.payload))))
		if got != c.want {
			t.Errorf("%s: got %s, want %s", c.name, got, c.want)
		}
	}
}

// The example of "Transferring Payload in Multiple Chunks (Chunked Upload)": 66,560 bytes of the letter a.
func TestPublishedChunks(t *testing.T) {
	sig := &signature{credential: credential{"AKIAIOSFODNN7EXAMPLE", "20130524", "us-east-1"}, stamp: "20130524T000000Z"}
	sig.value, _ = parseSignature("4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9")
	sig.key = deriveKey("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", sig.credential)
	body := "10000;chunk-signature=ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648\r\n" + strings.Repeat("a", 65536) + "\r\n" +
		"400;chunk-signature=0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497\r\n" + strings.Repeat("a", 1024) + "\r\n" +
		"0;chunk-signature=b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9\r\n\r\n"
	r := newChunkReader(strings.NewReader(body), &payload{signed: streamingSigned, chunked: true, chunkSigs: true, size: 66560, signature: sig})
	got, err := io.ReadAll(r)
	if err == nil {
		err = r.finish()
	}
	if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("a"), 66560)) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
}

func TestParseCredential(t *testing.T) {
	for in, want := range map[string]bool{
		"ID/20260102/us-east-1/s3/aws4_request": true, "a/b/20260102/us-east-1/s3/aws4_request": true, "/20260102/us-east-1/s3/aws4_request": false,
		"ID/20260102/us-east-1/iam/aws4_request": false, "ID/2026/us-east-1/s3/aws4_request": false, "ID/20260102//s3/aws4_request": false, "": false, "////": false,
	} {
		if _, ok := parseCredential(in); ok != want {
			t.Errorf("%q: got %v", in, ok)
		}
	}
}

// A key that was cached for a secret is of no use for another.
func TestSigningKeys(t *testing.T) {
	var k signingKeys
	c := credential{"ID", "20260102", "us-east-1"}
	one, two := k.of("one", c), k.of("two", c)
	if bytes.Equal(one, two) || !bytes.Equal(k.of("one", c), one) || !bytes.Equal(one, deriveKey("one", c)) {
		t.Error("keys are mixed up")
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("a=b&c=%20+&uploads")
	f.Add("X-Amz-Signature=%zz")
	f.Fuzz(func(t *testing.T, raw string) {
		all, err := parseQuery(raw)
		if err != nil {
			return
		}
		// What is canonical says the same.
		again, err := parseQuery(string(all.canonical()))
		if err != nil || len(again) > len(all) {
			t.Errorf("%q became %q: %v", raw, all.canonical(), err)
		}
	})
}

func FuzzChunks(f *testing.F) {
	sum := sha256.Sum256(nil)
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\n"), int64(5), false)
	f.Add([]byte("5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"), int64(5), false)
	f.Add([]byte("5;chunk-signature="+hexOf(sum[:])+"\r\nhello\r\n"), int64(5), true)
	f.Add([]byte("-1\r\n"), int64(5), false)
	f.Add([]byte("ffffffffffffffff\r\n"), int64(1)<<62, false)
	f.Fuzz(func(t *testing.T, body []byte, size int64, signed bool) {
		if size < 0 {
			return
		}
		p := payload{signed: streamingUnsigned, chunked: true, chunkSigs: signed, size: size, trailers: []string{"x-amz-checksum-crc32"},
			signature: &signature{stamp: "20130524T000000Z", value: sum[:], key: sum[:], when: time.Now()}}
		q := &request{pay: p}
		q.body.start(bytes.NewReader(body), &response{stall: -1})
		c, err := q.content(1 << 40)
		if err != nil {
			t.Skip()
		}
		got, err := io.ReadAll(c)
		switch {
		case int64(len(got)) > size || len(got) > len(body):
			t.Errorf("%d bytes of %d came out of %d", len(got), size, len(body))
		case err == nil && int64(len(got)) != size:
			t.Errorf("%d bytes of %d are taken for whole", len(got), size)
		case err == nil && signed:
			t.Error("a forged signature was taken")
		}
	})
}
