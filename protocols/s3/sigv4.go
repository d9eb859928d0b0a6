package s3

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Signature Version 4, as "Authenticating Requests (AWS Signature Version 4)" of the S3 API reference has it: unlike other services S3 does
// not normalise paths.

const (
	algorithm   = "AWS4-HMAC-SHA256"
	stampLayout = "20060102T150405Z"
	service     = "s3"
	terminator  = "aws4_request"

	maxSkew    = 15 * time.Minute
	maxExpires = 7 * 24 * time.Hour
)

// credential says whose key signed, for which day, region and service.
type credential struct{ id, date, region string }

// scope is what a signing key is good for.
func (c credential) scope() string {
	return c.date + "/" + c.region + "/" + service + "/" + terminator
}

// parseCredential reads "ID/20260102/us-east-1/s3/aws4_request". The id may hold slashes.
func parseCredential(s string) (c credential, ok bool) {
	parts := strings.Split(s, "/")
	n := len(parts)
	if n < 5 || parts[n-1] != terminator || parts[n-2] != service || len(parts[n-4]) != 8 || len(s) > 512 {
		return c, false
	}
	c = credential{id: strings.Join(parts[:n-4], "/"), date: parts[n-4], region: parts[n-3]}
	return c, c.id != "" && c.region != ""
}

// signature is what a request was signed with.
type signature struct {
	credential
	stamp     string // when, as it was signed
	when      time.Time
	headers   []string // signed ones, lower case and sorted
	value     []byte   // of the signature
	presigned bool
	expires   time.Duration // of a presigned one
	key       []byte        // that signed, once it is known
}

// pair is a part of the query, decoded.
type pair struct{ name, value string }

// query is that of a URL, in the order it came in: what is signed and what is obeyed is the same.
type query []pair

const maxQuery = 200 // pairs

// parseQuery decodes a query. A plus is a space, as all clients mean it.
func parseQuery(raw string) (query, error) {
	var all query
	for part := range strings.SplitSeq(raw, "&") {
		if part == "" {
			continue
		}
		name, value, _ := strings.Cut(part, "=")
		n, ok := unescape(name)
		v, ok2 := unescape(value)
		if !ok || !ok2 || len(all) >= maxQuery {
			return nil, refuseFor(errArgument, "The query of the URL is malformed.")
		}
		all = append(all, pair{n, v})
	}
	return all, nil
}

func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			b = append(b, hi<<4|lo)
			i += 2
		default:
			b = append(b, c)
		}
	}
	return string(b), true
}

// unhex returns the value of a hexadecimal digit, more than 15 for anything else.
func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}

// has reports whether a parameter is there.
func (all query) has(name string) bool {
	return slices.ContainsFunc(all, func(p pair) bool { return p.name == name })
}

// get returns the first value of a parameter, "" when it is not there.
func (all query) get(name string) string {
	for _, p := range all {
		if p.name == name {
			return p.value
		}
	}
	return ""
}

// canonical is the query as it is signed.
func (all query) canonical() []byte {
	type escaped struct{ name, value string }
	list := make([]escaped, 0, len(all))
	for _, p := range all {
		if p.name != "X-Amz-Signature" {
			list = append(list, escaped{string(appendEscaped(nil, p.name, false)), string(appendEscaped(nil, p.value, false))})
		}
	}
	slices.SortFunc(list, func(a, b escaped) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return strings.Compare(a.value, b.value)
	})
	var b []byte
	for i, p := range list {
		if i > 0 {
			b = append(b, '&')
		}
		b = append(append(append(b, p.name...), '='), p.value...)
	}
	return b
}

// canonicalRequest is what is hashed and signed.
func canonicalRequest(r *http.Request, all query, signed []string, payload string) []byte {
	b := make([]byte, 0, 1024)
	b = append(append(b, r.Method...), '\n')
	path := r.URL.Path
	if path == "" {
		path = "/"
	}
	b = append(appendEscaped(b, path, true), '\n')
	b = append(append(b, all.canonical()...), '\n')
	for _, name := range signed {
		b = append(append(b, name...), ':')
		switch name {
		case "host":
			b = append(b, r.Host...)
		case "content-length":
			b = append(b, itoa(r.ContentLength)...)
		default:
			for i, v := range r.Header[http.CanonicalHeaderKey(name)] {
				if i > 0 {
					b = append(b, ',')
				}
				b = appendSquashed(b, v)
			}
		}
		b = append(b, '\n')
	}
	b = append(b, '\n')
	for i, name := range signed {
		if i > 0 {
			b = append(b, ';')
		}
		b = append(b, name...)
	}
	b = append(b, '\n')
	return append(b, payload...)
}

// appendSquashed writes v without spaces around it, and runs of spaces as one.
func appendSquashed(b []byte, v string) []byte {
	v = strings.Trim(v, " \t")
	for i := range len(v) {
		if v[i] == ' ' && i > 0 && v[i-1] == ' ' {
			continue
		}
		b = append(b, v[i])
	}
	return b
}

// toSign is the string that the signing key signs.
func (s *signature) toSign(canonical []byte) []byte {
	sum := sha256.Sum256(canonical)
	b := make([]byte, 0, 160)
	b = append(append(append(append(b, algorithm...), '\n'), s.stamp...), '\n')
	b = append(append(b, s.scope()...), '\n')
	return hex.AppendEncode(b, sum[:])
}

func mac(key []byte, data []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(data)
	return h.Sum(nil)
}

// deriveKey makes the signing key of a secret for a day and region.
func deriveKey(secret string, c credential) []byte {
	key := mac([]byte("AWS4"+secret), []byte(c.date))
	for _, v := range []string{c.region, service, terminator} {
		key = mac(key, []byte(v))
	}
	return key
}

// signingKeys remembers derived keys: deriving one costs more than all the rest of verifying a small request.
type signingKeys struct {
	mu    sync.RWMutex
	known map[credential]derived // guarded by mu
}

type derived struct {
	secret [sha256.Size]byte // what it was derived from, hashed
	key    []byte
}

// maxSigningKeys bounds what is remembered. It is emptied when full.
const maxSigningKeys = 8192

func (k *signingKeys) of(secret string, c credential) []byte {
	sum := sha256.Sum256([]byte(secret))
	k.mu.RLock()
	d, ok := k.known[c]
	k.mu.RUnlock()
	if ok && subtle.ConstantTimeCompare(d.secret[:], sum[:]) == 1 {
		return d.key
	}
	key := deriveKey(secret, c)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.known == nil || len(k.known) >= maxSigningKeys {
		k.known = make(map[credential]derived)
	}
	k.known[c] = derived{sum, key}
	return key
}

// parseAuthorization reads the header of that name.
func parseAuthorization(v string) (*signature, error) {
	rest, ok := strings.CutPrefix(v, algorithm)
	if !ok || len(v) > 8192 {
		return nil, refuse(errOldSignature)
	}
	s := new(signature)
	for part := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		switch name {
		case "Credential":
			if s.credential, ok = parseCredential(value); !ok {
				return nil, refuse(errAuthMalformed)
			}
		case "SignedHeaders":
			if s.headers, ok = parseSigned(value); !ok {
				return nil, refuse(errAuthMalformed)
			}
		case "Signature":
			if s.value, ok = parseSignature(value); !ok {
				return nil, refuse(errAuthMalformed)
			}
		}
	}
	if s.id == "" || s.value == nil || s.headers == nil {
		return nil, refuse(errAuthMalformed)
	}
	return s, nil
}

// parseSignature reads 32 bytes in hexadecimal.
func parseSignature(v string) ([]byte, bool) {
	sig, err := hex.DecodeString(v)
	return sig, err == nil && len(sig) == sha256.Size
}

// parseSigned reads the list of signed headers.
func parseSigned(v string) ([]string, bool) {
	list := strings.Split(strings.ToLower(v), ";")
	slices.Sort(list)
	return list, len(list) <= 200 && slices.Contains(list, "host") && !slices.Contains(list, "")
}

// parsePresigned reads a signature from the query.
func parsePresigned(all query) (*signature, error) {
	if all.get("X-Amz-Algorithm") != algorithm {
		return nil, refuse(errOldSignature)
	}
	s := &signature{presigned: true}
	var ok, ok2, ok3 bool
	s.credential, ok = parseCredential(all.get("X-Amz-Credential"))
	s.headers, ok2 = parseSigned(all.get("X-Amz-SignedHeaders"))
	s.value, ok3 = parseSignature(all.get("X-Amz-Signature"))
	seconds, ok4 := parseDigits(all.get("X-Amz-Expires"))
	if !ok || !ok2 || !ok3 || !ok4 {
		return nil, refuse(errQueryMalformed)
	}
	if seconds < 1 || seconds > int64(maxExpires/time.Second) {
		return nil, refuseFor(errQueryMalformed, "X-Amz-Expires must be from 1 to 604800 seconds.")
	}
	s.expires = time.Duration(seconds) * time.Second
	return s, s.dated(all.get("X-Amz-Date"))
}

// dated notes when the request says that it was signed.
func (s *signature) dated(stamp string) error {
	when, err := time.Parse(stampLayout, stamp)
	if err != nil {
		return refuse(errNoDate)
	}
	s.stamp, s.when = stamp, when
	return nil
}

// timely refuses what was signed too long ago, or is signed for another day than its key.
func (s *signature) timely(now time.Time) error {
	switch {
	case s.date != s.when.Format("20060102"):
		return refuseFor(errSignature, "The day of the credential is not that of the request.")
	case s.presigned && s.when.After(now.Add(maxSkew)):
		return refuse(errNotYet)
	case s.presigned && now.After(s.when.Add(s.expires)):
		return refuse(errExpired)
	case !s.presigned && (now.Sub(s.when) > maxSkew || s.when.Sub(now) > maxSkew):
		return refuse(errSkewed)
	}
	return nil
}

// verify reports whether secret made the signature of what was signed, and keeps the signing key.
func (s *signature) verify(keys *signingKeys, secret string, signed []byte) bool {
	key := keys.of(secret, s.credential)
	if !hmac.Equal(mac(key, signed), s.value) {
		return false
	}
	s.key = key
	return true
}

// allSigned refuses headers that mean something to S3 and are not signed: somebody on the way might have put them there.
func (s *signature) allSigned(hd http.Header) error {
	for name := range hd {
		lower := strings.ToLower(name)
		if strings.HasPrefix(lower, "x-amz-") && !slices.Contains(s.headers, lower) && !(s.presigned && lower == "x-amz-content-sha256") {
			return &refusal{errUnsignedHeaders, []string{"HeadersNotSigned", lower}}
		}
	}
	return nil
}

// headerStamp is when the request says that it was signed: x-amz-date, else Date.
func headerStamp(hd http.Header) string {
	if v := hd.Get("X-Amz-Date"); v != "" {
		return v
	}
	t, err := http.ParseTime(hd.Get("Date"))
	if err != nil {
		return ""
	}
	return t.UTC().Format(stampLayout)
}

// parseDigits reads digits only: no sign, no blank. What overflows is as good as the largest number.
func parseDigits(s string) (int64, bool) {
	if s == "" || bytes.ContainsFunc([]byte(s), func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if n > (1<<63-1-9)/10 {
			return 1<<63 - 1, true
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
