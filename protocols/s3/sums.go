package s3

import (
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"hash"
	"hash/crc32"
	"hash/crc64"
	"net/http"
	"strings"

	"cellgate/gateway"
)

// checksum is an algorithm that S3 knows ("Checking object integrity" of its user guide).
type checksum struct {
	hash func() hash.Hash
	size int
	poly uint64 // reflected, of a CRC: those of parts can be combined
}

// algorithms are called here as in the core's Info.Sums.
var algorithms = map[string]checksum{
	"CRC32":  {func() hash.Hash { return crc32.NewIEEE() }, 4, crc32.IEEE},
	"CRC32C": {func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }, 4, crc32.Castagnoli},
	// That of NVMe. The package keeps a table for a polynomial that it does not know, so this costs 2 KiB a call and no more.
	"CRC64NVME": {func() hash.Hash { return crc64.New(nvme) }, 8, nvmePoly},
	"SHA1":      {sha1.New, sha1.Size, 0},
	"SHA256":    {sha256.New, sha256.Size, 0},
	"MD5":       {md5.New, md5.Size, 0},
}

const nvmePoly = 0x9a6c9329ac4bc9b5

var nvme = crc64.MakeTable(nvmePoly)

// inOrder is which of several known checksums is told.
var inOrder = []string{"CRC64NVME", "CRC32C", "CRC32", "SHA256", "SHA1"}

// checksumHeader returns the algorithm of a header "x-amz-checksum-…".
func checksumHeader(name string) (algo string, ok bool) {
	rest, ok := strings.CutPrefix(strings.ToLower(name), "x-amz-checksum-")
	algo = strings.ToUpper(rest)
	if _, known := algorithms[algo]; !ok || !known || algo == "MD5" {
		return "", false
	}
	return algo, true
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// base64Of writes a digest given in hexadecimal as S3 does.
func base64Of(digest string) string {
	b, _ := hex.DecodeString(digest)
	return base64.StdEncoding.EncodeToString(b)
}

// decodeSum reads a digest as S3 writes it.
func decodeSum(algo, v string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(v))
	if err != nil || len(b) != algorithms[algo].size {
		return nil, refuseFor(errBadDigest, "Value for x-amz-checksum-"+strings.ToLower(algo)+" header is invalid.")
	}
	return b, nil
}

// sum is a digest of a body in hexadecimal.
type sum struct{ algo, value string }

// declaredSums returns what the headers say of the body.
func declaredSums(hd http.Header) ([]sum, error) {
	var all []sum
	if v := hd.Get("Content-Md5"); v != "" {
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil || len(b) != md5.Size {
			return nil, refuse(errInvalidDigest)
		}
		all = append(all, sum{"MD5", hexOf(b)})
	} else if _, empty := hd["Content-Md5"]; empty {
		return nil, refuse(errInvalidDigest)
	}
	var found string
	for name, values := range hd {
		algo, ok := checksumHeader(name)
		if !ok {
			if rest, ok := strings.CutPrefix(name, "X-Amz-Checksum-"); ok && rest != "Algorithm" && rest != "Mode" && rest != "Type" {
				return nil, refuseFor(errRequest, "The checksum algorithm is not known.")
			}
			continue
		}
		if found != "" || len(values) != 1 {
			return nil, refuseFor(errRequest, "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		b, err := decodeSum(algo, values[0])
		if err != nil {
			return nil, err
		}
		found = algo
		all = append(all, sum{algo, hexOf(b)})
	}
	if want := strings.ToUpper(hd.Get("X-Amz-Sdk-Checksum-Algorithm")); want != "" {
		if _, known := algorithms[want]; !known || want == "MD5" {
			return nil, refuseFor(errRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid.")
		}
		if found != "" && want != found {
			return nil, refuseFor(errRequest, "Value for x-amz-sdk-checksum-algorithm header is invalid.")
		}
	}
	return all, nil
}

// asChecksum writes sums as the core takes them.
func asChecksum(all []sum) string {
	words := make([]string, len(all))
	for i, s := range all {
		words[i] = s.algo + ":" + s.value
	}
	return strings.Join(words, " ")
}

// Words that this package keeps with the content, beside its checksums.
const (
	wordTag       = "S3ETAG" // the entity tag of what came in parts: hex-N
	wordID        = "S3ID"   // what the properties of this content say that they are of
	wordComposite = "S3SUM"  // a checksum of checksums of parts: ALGORITHM=hex-N
)

// newID returns what tells this content from any other.
func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hexOf(b[:])
}

// word returns what follows "NAME:" in sums.
func word(sums, name string) string {
	for w := range strings.FieldsSeq(sums) {
		if len(w) > len(name) && w[len(name)] == ':' && strings.EqualFold(w[:len(name)], name) {
			return w[len(name)+1:]
		}
	}
	return ""
}

// etag returns the entity tag of a file, without quotes.
func etag(i gateway.Info) string {
	if v := word(i.Sums, wordTag); v != "" {
		return v
	}
	if v := word(i.Sums, "MD5"); v != "" {
		return strings.ToLower(v)
	}
	s := i.ETag
	if s == "" {
		s = i.Path.String() + "\x00" + itoa(i.Size) + "\x00" + itoa(i.ModTime.UnixNano())
	}
	h := sha256.Sum256([]byte(s))
	return hexOf(h[:16]) + "-0"
}

// bound returns what the properties of this content say that they are of.
func bound(i gateway.Info) string {
	if v := word(i.Sums, wordID); v != "" {
		return v
	}
	return "e:" + etag(i)
}

// known is a checksum of an object as it is told.
type known struct{ algo, value, kind string }

// told returns the checksum that is known of a file.
func told(sums string) (k known, ok bool) {
	if v := word(sums, wordComposite); v != "" {
		algo, rest, _ := strings.Cut(v, "=")
		digest, n, _ := strings.Cut(rest, "-")
		return known{algo, base64Of(digest) + "-" + n, "COMPOSITE"}, true
	}
	for _, algo := range inOrder {
		if v := word(sums, algo); v != "" {
			return known{algo, base64Of(v), "FULL_OBJECT"}, true
		}
	}
	return k, false
}

// setChecksum tells a checksum in headers.
func setChecksum(hd http.Header, sums string) {
	if k, ok := told(sums); ok {
		hd.Set("X-Amz-Checksum-"+k.algo, k.value)
		hd["X-Amz-Checksum-Type"] = []string{k.kind}
	}
}

// combine returns the CRC of two pieces behind each other from theirs and the length of the second. All CRCs that S3 knows begin with all
// bits set and end inverted, for which this holds (as in zlib's crc32_combine): the first is moved on by as many zero bits.
func combine(c checksum, first, second uint64, length int64) uint64 {
	width := uint(c.size * 8)
	var odd, even [64]uint64
	odd[0] = c.poly // one zero bit
	for i := uint(1); i < width; i++ {
		odd[i] = 1 << (i - 1)
	}
	square(even[:width], odd[:width]) // two
	square(odd[:width], even[:width]) // four
	for n := length; n > 0; {
		square(even[:width], odd[:width])
		if n&1 != 0 {
			first = times(even[:width], first)
		}
		if n >>= 1; n == 0 {
			break
		}
		square(odd[:width], even[:width])
		if n&1 != 0 {
			first = times(odd[:width], first)
		}
		n >>= 1
	}
	return first ^ second
}

// times multiplies a matrix over GF(2) with a vector.
func times(m []uint64, v uint64) (sum uint64) {
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			sum ^= m[i]
		}
	}
	return sum
}

func square(to, m []uint64) {
	for i := range m {
		to[i] = times(m, m[i])
	}
}
