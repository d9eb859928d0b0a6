package gateway

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"hash/adler32"
	"hash/crc32"
	"hash/crc64"
	"io"
	"slices"
	"strings"
	"sync/atomic"

	"cellgate/internal/fault"
)

// sums are the checksums that a client declared of a body, and those that its protocol needs, computed while it streams, and only those. A nil
// *sums has none.
type sums struct {
	algos  []string
	want   []string // hex, lower case; "" until it is computed
	hashes []hash.Hash
	mixed  atomic.Bool // bytes came out of order: compute anew at the end
}

var algorithms = map[string]func() hash.Hash{
	"MD5": md5.New, "SHA1": sha1.New, "SHA256": sha256.New,
	"ADLER32": func() hash.Hash { return adler32.New() },
	"CRC32":   func() hash.Hash { return crc32.NewIEEE() },
	"CRC32C":  func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) },
	// The reflected CRC-64 of NVMe, as S3 has it (polynomial 0xad93d23594c93659).
	"CRC64NVME": func() hash.Hash { return crc64.New(crc64.MakeTable(0x9a6c9329ac4bc9b5)) },
}

// newSums reads "SHA1:hex MD5:hex". Algorithms we do not know are ignored, as a client may send its own; a malformed digest is Invalid. Those
// of compute, of which nothing was declared, are computed as well.
func newSums(declared string, compute []string) (*sums, error) {
	var s *sums
	add := func(algo, want string, h hash.Hash) {
		if s == nil {
			s = new(sums)
		}
		s.algos, s.want, s.hashes = append(s.algos, algo), append(s.want, want), append(s.hashes, h)
	}
	for word := range strings.FieldsSeq(declared) {
		algo, digest, ok := strings.Cut(word, ":")
		algo = strings.ReplaceAll(strings.ToUpper(algo), "-", "")
		make, known := algorithms[algo]
		if !known {
			continue
		}
		raw, err := hex.DecodeString(digest)
		h := make()
		if !ok || err != nil || len(raw) != h.Size() {
			return nil, fault.New("gateway.checksum", "", fault.Invalid, fmt.Errorf("%s: not %d bytes in hexadecimal", algo, h.Size()))
		}
		add(algo, hex.EncodeToString(raw), h)
	}
	for _, algo := range compute {
		make, known := algorithms[algo]
		if !known {
			return nil, fault.New("gateway.checksum", "", fault.Unsupported, fmt.Errorf("%s is no algorithm of ours", algo))
		}
		if s == nil || !slices.Contains(s.algos, algo) {
			add(algo, "", make())
		}
	}
	return s, nil
}

func (s *sums) write(p []byte) {
	if s == nil || s.mixed.Load() {
		return
	}
	for _, h := range s.hashes {
		h.Write(p)
	}
}

func (s *sums) disorder() {
	if s != nil {
		s.mixed.Store(true)
	}
}

// verify compares the digests with those declared, and completes those that were not; content is the whole body, read only when it came out of order.
func (s *sums) verify(p Path, content io.Reader) error {
	if s == nil {
		return nil
	}
	if s.mixed.Load() {
		writers := make([]io.Writer, len(s.hashes))
		for i, h := range s.hashes {
			h.Reset()
			writers[i] = h
		}
		if _, err := io.Copy(io.MultiWriter(writers...), content); err != nil {
			return fault.Wrap("gateway.checksum", p.String(), err)
		}
	}
	for i, h := range s.hashes {
		switch got := hex.EncodeToString(h.Sum(nil)); {
		case s.want[i] == "":
			s.want[i] = got
		case got != s.want[i]:
			return fault.New("gateway.checksum", p.String(), fault.Invalid, fmt.Errorf("%s is %s, %s was declared", s.algos[i], got, s.want[i]))
		}
	}
	return nil
}

// String returns the verified digests as they are kept with the node: "SHA1:hex MD5:hex".
func (s *sums) String() string {
	if s == nil {
		return ""
	}
	words := slices.Clone(s.algos)
	for i := range words {
		words[i] += ":" + s.want[i]
	}
	return strings.Join(words, " ")
}
