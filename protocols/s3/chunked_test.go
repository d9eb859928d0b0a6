package s3

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"net/http"
	"strings"
	"testing"
	"time"
)

// streamed is a body in chunks, and what may be wrong with it.
type streamed struct {
	mode     string // of x-amz-content-sha256
	data     string
	chunk    int
	trailer  string // name, "" none
	value    string // of the trailer
	decoded  string // "": the truth
	announce string // "": the trailer
	mangle   func(body string) string
}

// stream sends it.
func (b *box) stream(key string, s streamed) answered {
	b.t.Helper()
	if s.chunk == 0 {
		s.chunk = 8 << 10
	}
	if s.decoded == "" {
		s.decoded = fmt.Sprint(len(s.data))
	}
	if s.announce == "" {
		s.announce = s.trailer
	}
	c := call{method: "PUT", path: "/docs/" + key, payload: s.mode, key: alice, when: time.Now().UTC(), region: "us-east-1",
		header: map[string]string{"X-Amz-Decoded-Content-Length": s.decoded, "Content-Encoding": "aws-chunked"}}
	if s.announce != "" {
		c.header["X-Amz-Trailer"] = s.announce
	}
	r := b.request(c)
	sig := sign(b.t, r, c)
	body := encodeChunks(sig, s)
	if s.mangle != nil {
		body = s.mangle(body)
	}
	// The length is not signed, so the body can come now.
	with, err := http.NewRequestWithContext(r.Context(), r.Method, r.URL.String(), strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	with.Header = r.Header
	with.URL = r.URL
	return b.send(with)
}

func encodeChunks(sig *signature, s streamed) string {
	last := sig.value
	signed := s.mode == streamingSigned || s.mode == streamingTrailer
	var out strings.Builder
	for rest := s.data; ; {
		n := min(s.chunk, len(rest))
		ext := ""
		if signed {
			sum := "AWS4-HMAC-SHA256-PAYLOAD\n" + sig.stamp + "\n" + sig.scope() + "\n" + hexOf(last) + "\n" + emptySum + "\n" + shaOf(rest[:n])
			last = mac(sig.key, []byte(sum))
			ext = ";chunk-signature=" + hexOf(last)
		}
		fmt.Fprintf(&out, "%x%s\r\n%s", n, ext, rest[:n])
		if n == 0 {
			break
		}
		out.WriteString("\r\n")
		rest = rest[n:]
	}
	if s.trailer != "" {
		fmt.Fprintf(&out, "%s:%s\r\n", s.trailer, s.value)
	}
	if s.mode == streamingTrailer {
		line := ""
		if s.trailer != "" {
			line = s.trailer + ":" + s.value + "\n"
		}
		sum := "AWS4-HMAC-SHA256-TRAILER\n" + sig.stamp + "\n" + sig.scope() + "\n" + hexOf(last) + "\n" + shaOf(line)
		fmt.Fprintf(&out, "x-amz-trailer-signature:%s\r\n", hexOf(mac(sig.key, []byte(sum))))
	}
	return out.String() + "\r\n"
}

func shaOf(s string) string {
	h := algorithms["SHA256"].hash()
	h.Write([]byte(s))
	return hexOf(h.Sum(nil))
}

// Every way to send a body, small and large, with every checksum behind it.
func TestPayloadModes(t *testing.T) {
	b := openBox(t, nil)
	for _, size := range []int{0, 1, 8 << 10, smallBody + 1, aheadFrom + 5} {
		data := string(many(size))
		for _, mode := range []string{streamingSigned, streamingTrailer, streamingUnsigned} {
			algos := append([]string{""}, inOrder...)
			if mode == streamingSigned {
				algos = algos[:1]
			}
			for i, algo := range algos {
				s := streamed{mode: mode, data: data}
				if i%2 == 1 && mode == streamingUnsigned { // as in Amazon's examples
					s.mangle = func(body string) string { return strings.TrimSuffix(body, "\r\n\r\n") + "\n\r\n\r\n" }
				}
				if algo != "" {
					h := algorithms[algo].hash()
					h.Write([]byte(data))
					s.trailer, s.value = "x-amz-checksum-"+strings.ToLower(algo), base64Of(hexOf(h.Sum(nil)))
				}
				what := fmt.Sprintf("%s of %d with %q", mode, size, algo)
				a := b.stream("f", s)
				if a.status != 200 {
					t.Errorf("%s: %v %s", what, a, a.body)
					continue
				}
				g := b.do(call{method: "GET", path: "/docs/f", header: map[string]string{"X-Amz-Checksum-Mode": "ENABLED"}})
				if g.body != data || g.header.Get("Content-Encoding") != "" {
					t.Errorf("%s: %d bytes came back: %v", what, len(g.body), g.header)
				}
				if algo != "" && (g.header.Get("X-Amz-Checksum-"+algo) != s.value || a.header.Get("X-Amz-Checksum-"+algo) != s.value) {
					t.Errorf("%s: %v, want %s", what, g.header, s.value)
				}
			}
		}
		for _, mode := range []string{"", unsignedPayload} {
			if a := b.do(call{method: "PUT", path: "/docs/f", body: data, payload: mode}); a.status != 200 {
				t.Errorf("%q of %d: %v", mode, size, a)
			}
			if g := b.get("f"); g.body != data {
				t.Errorf("%q of %d: %d bytes came back", mode, size, len(g.body))
			}
		}
	}
}

// RELIABILITY S04: what is malformed, forged or a lie is refused, and nothing of it is published.
func TestBadChunks(t *testing.T) {
	b := openBox(t, nil)
	b.put("f", "before")
	data := string(many(smallBody + 9000))
	crc := make([]byte, 4)
	for i, v := 0, crc32.ChecksumIEEE([]byte(data)); i < 4; i++ {
		crc[i] = byte(v >> (24 - 8*i))
	}
	sum := base64Of(hex.EncodeToString(crc))
	with := func(mode string, mangle func(string) string) streamed {
		return streamed{mode: mode, data: data, mangle: mangle}
	}
	trailing := func(mode string, edit func(*streamed)) streamed {
		s := streamed{mode: mode, data: data, trailer: "x-amz-checksum-crc32", value: sum}
		edit(&s)
		return s
	}
	swap := func(old, new string) func(string) string {
		return func(body string) string {
			if !strings.Contains(body, old) {
				t.Fatalf("the body has no %q", old)
			}
			return strings.Replace(body, old, new, 1)
		}
	}
	flip := func(at int) func(string) string {
		return func(body string) string { return body[:at] + string(body[at]^1) + body[at+1:] }
	}
	for name, s := range map[string]streamed{
		"a negative size":            with(streamingUnsigned, swap("2000\r\n", "-2000\r\n")),
		"a size that is no number":   with(streamingUnsigned, swap("2000\r\n", "0x2000\r\n")),
		"an empty size":              with(streamingUnsigned, swap("2000\r\n", "\r\n")),
		"a huge size":                with(streamingUnsigned, swap("2000\r\n", "fffffffffffffff\r\n")),
		"a size that overflows":      with(streamingUnsigned, swap("2000\r\n", "ffffffffffffffffffff\r\n")),
		"a bare line feed":           with(streamingUnsigned, swap("2000\r\n", "2000\n")),
		"a long header":              with(streamingUnsigned, swap("2000\r\n", "2000;"+strings.Repeat("x", 1<<20)+"\r\n")),
		"a chunk that is longer":     with(streamingUnsigned, swap("2000\r\n", "1fff\r\n")),
		"a chunk that is shorter":    with(streamingUnsigned, swap("2000\r\n", "2001\r\n")),
		"an end within a chunk":      with(streamingUnsigned, func(s string) string { return s[:9000] }),
		"an end between chunks":      with(streamingUnsigned, func(s string) string { return s[:0x2000+8] }),
		"no empty chunk":             with(streamingUnsigned, func(s string) string { return strings.TrimSuffix(s, "0\r\n\r\n") }),
		"an early empty chunk":       with(streamingUnsigned, func(s string) string { return "0\r\n\r\n" }),
		"something behind":           with(streamingUnsigned, func(s string) string { return s + "x" }),
		"a length too small":         {mode: streamingUnsigned, data: data, decoded: "100"},
		"a length too large":         {mode: streamingUnsigned, data: data, decoded: fmt.Sprint(len(data) + 1)},
		"a length that is negative":  {mode: streamingUnsigned, data: data, decoded: "-1"},
		"a length that is no number": {mode: streamingSigned, data: data, decoded: "many"},
		"a flipped byte":             with(streamingSigned, flip(500)),
		"a flipped byte at the end":  with(streamingSigned, func(s string) string { at := strings.LastIndex(s, "\r\n0;") - 1; return flip(at)(s) }),
		"a flipped signature":        with(streamingSigned, flip(30)),
		"no signature":               with(streamingSigned, func(s string) string { i := strings.IndexByte(s, ';'); return s[:i] + s[strings.Index(s, "\r\n"):] }),
		"chunks swapped": with(streamingSigned, func(s string) string {
			n := strings.Index(s, "\r\n") + 2 + 0x2000 + 2
			return s[n:2*n] + s[:n] + s[2*n:]
		}),
		"a chunk left out":           with(streamingSigned, func(s string) string { n := strings.Index(s, "\r\n") + 2 + 0x2000 + 2; return s[n:] }),
		"a wrong checksum":           trailing(streamingUnsigned, func(s *streamed) { s.value = "AAAAAA==" }),
		"a wrong, signed checksum":   trailing(streamingTrailer, func(s *streamed) { s.value = "AAAAAA==" }),
		"a malformed checksum":       trailing(streamingUnsigned, func(s *streamed) { s.value = "?" }),
		"a checksum that is missing": trailing(streamingUnsigned, func(s *streamed) { s.trailer = ""; s.announce = "x-amz-checksum-crc32" }),
		"one that was not announced": trailing(streamingUnsigned, func(s *streamed) { s.announce = "x-amz-checksum-sha1" }),
		"a trailer that was changed": trailing(streamingTrailer, func(s *streamed) { s.mangle = swap(sum, "AAAAAA==") }),
		"a trailer without signature": trailing(streamingTrailer, func(s *streamed) {
			s.mangle = func(b string) string { return b[:strings.Index(b, "x-amz-trailer-")] + "\r\n" }
		}),
		"a forged trailer signature": trailing(streamingTrailer, func(s *streamed) {
			s.mangle = func(b string) string { i := strings.Index(b, "signature:") + 12; return flip(i)(b) }
		}),
		"endless trailers": trailing(streamingUnsigned, func(s *streamed) {
			s.mangle = func(b string) string { return strings.TrimSuffix(b, "\r\n") + strings.Repeat("x:y\r\n", 100_000) }
		}),
		"a trailer on unsigned chunks": {mode: unsignedPayload, data: data, trailer: "x-amz-checksum-crc32", value: sum},
	} {
		t.Run(name, func(t *testing.T) {
			a := b.stream("f", s)
			if a.status != 400 && !(a.status == 403 && a.code() == "SignatureDoesNotMatch") {
				t.Errorf("got %v %s", a, a.body)
			}
			if g := b.get("f"); g.body != "before" {
				t.Errorf("something was published: %d bytes", len(g.body))
			}
		})
	}
}
