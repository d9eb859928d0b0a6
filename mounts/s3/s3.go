// Package s3 is a bucket of an S3 server, or a folder in one, as a backend.
//
// Folders. A bucket knows keys only. A folder is a prefix with a key below it, or an empty object whose key ends with a slash (its marker).
// Mkdir puts the marker, and before the last child of a folder may go the marker of that folder is put when it is missing, so that a folder
// does not vanish with what was in it. Folders have no modification time.
//
// One name for two things. Other programs can keep an object "a" beside keys "a/b". The file has the name then: Stat, listings of the parent,
// Open, Put, Remove, Rename and Purge of "a" mean the object and leave the keys below it alone. They stay within reach by their own names and
// by List("a"), which does not spend a request on looking whether there is an object, too. A marker with content is never removed by Remove.
//
// Keys that cannot be names ("a//b", "../a", with control characters, longer than 255 bytes between two slashes) are left out of listings;
// Rename of a folder takes them along and Purge removes them. Names the server cannot hold are Invalid: a key has at most 1,024 bytes.
//
// Times. ModTime is the server's LastModified, to the second, everywhere: other times would cost a request for each entry of a listing, so
// SetModTime is refused. The answer to a single PUT does not tell it, and asking would double the round trips of a small file: the Info of
// such a Put has no ModTime. That of a file in parts has.
//
// Requests. What is known about folders is believed for a few seconds (see facts), so that putting a small file into a folder that was just
// listed, made or put into takes one request. A range read takes one, a listing of n entries n/1000.
//
// Versions. When versioning is on in the bucket the server keeps what Put replaces and Remove deletes; nothing here depends on it.
package s3

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// Backend is a bucket or a folder in one. A reader lives as long as the context of its Open.
type Backend struct {
	core      *minio.Core
	transport *transport
	bucket    string
	prefix    string // of all keys: "" or a path with a slash at its end
	sse       encrypt.ServerSide
	secure    bool // over TLS, which guards the content, so that no digests need to be sent
	partSize  int64
	copyLimit int64 // the largest object that is copied in one request
	readOnly  bool
	versioned bool
	able      abilities
	secrets   *strings.Replacer // takes credentials out of what servers say
	logger    *slog.Logger
	facts     *facts
	names     locks
	blocks    sync.Pool // of *[]byte, blockSize long
}

var (
	_ mounts.Backend     = (*Backend)(nil)
	_ mounts.Copier      = (*Backend)(nil)
	_ mounts.Hasher      = (*Backend)(nil)
	_ mounts.Conditional = (*Backend)(nil)
	_ mounts.PartPutter  = (*Backend)(nil)
	_ mounts.Purger      = (*Backend)(nil)
	_ mounts.Resumer     = (*Backend)(nil)
)

// Driver returns the driver "s3".
func Driver() mounts.Driver {
	return mounts.Driver{
		Name: "s3",
		Options: []mounts.Option{
			{Name: "endpoint", Help: "address of the server, such as https://s3.example.com or http://10.0.0.5:9000", Required: true},
			{Name: "bucket", Help: "name of the bucket, which must exist", Required: true},
			{Name: "region", Help: "region the requests are signed for; found out, else us-east-1, when absent"},
			{Name: "path", Help: "folder in the bucket that becomes the root; the whole bucket when absent"},
			{Name: "style", Help: "where the bucket's name goes: path (endpoint/bucket), virtual (bucket.endpoint) or auto: virtual for Amazon and Google, else path"},
			{Name: "ca", Help: "PEM of the authorities that sign the server's certificate, instead of the system's"},
			{Name: "tlsPin", Help: `"sha256:" and the hex digest of the one certificate to trust`},
			{Name: "tlsInsecure", Help: `"true" trusts any certificate: for tests only`},
			{Name: "timeout", Help: "how long nothing may move before a request is given up, such as 30s, which is the default"},
			{Name: "connections", Help: "most requests at a time that read, that write, and of other kinds; 16 when absent"},
			{Name: "partSize", Help: "bytes or MiB (8MiB, the default) of a part of a large upload, two of which are kept in memory; from 5MiB to 64MiB"},
			{Name: "sse", Help: "encryption at the server: AES256, aws:kms, or aws:kms: and a key's id; the bucket's default when absent"},
		},
		Secrets: []mounts.Option{
			{Name: "accessKey", Help: "id of the access key", Required: true},
			{Name: "secretKey", Help: "secret of the access key", Required: true},
			{Name: "sessionToken", Help: "token that comes with temporary keys"},
		},
		Open: func(ctx context.Context, cfg mounts.Config) (mounts.Backend, error) {
			b, err := Open(ctx, cfg)
			if err != nil {
				return nil, err
			}
			return b, nil
		},
		Check: func(cfg mounts.Config) []error { _, errs := parse(cfg); return errs },
	}
}

// Open connects to the bucket that cfg names and looks what the server can do. That is tried out with an object of a name of its own, unless
// cfg is read-only or the server's ways are known from before.
func Open(ctx context.Context, cfg mounts.Config) (*Backend, error) {
	const op = "mounts/s3.Open"
	s, errs := parse(cfg)
	if len(errs) > 0 {
		return nil, fault.New(op, cfg.Name, fault.Invalid, errors.Join(errs...))
	}
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(op, cfg.Name, err)
	}
	b := connect(cfg, s, s.region)
	region, err := b.enter(ctx, op, cfg)
	if err != nil && region != "" && s.region == "" {
		b.Close()
		b = connect(cfg, s, region)
		_, err = b.enter(ctx, op, cfg)
	}
	if err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

func connect(cfg mounts.Config, s settings, region string) *Backend {
	logger := cfg.Logger
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	reveal := func(key string) string { return cfg.Credentials[key].Reveal() }
	var hide []string
	for _, key := range []string{"accessKey", "secretKey", "sessionToken"} {
		if v := reveal(key); v != "" {
			hide = append(hide, v, "…")
		}
	}
	dial := cfg.Dialer(s.dialHost()).DialContext
	t := newTransport(&http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return wide{c}, nil
		},
		TLSClientConfig:        s.tls,
		TLSHandshakeTimeout:    s.timeout,
		MaxIdleConnsPerHost:    3 * s.connections,
		IdleConnTimeout:        20 * time.Second, // servers keep them little longer
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true,     // what is stored with Content-Encoding: gzip is to come as it is stored
		WriteBufferSize:        16 << 10, // what is long goes past it
		ReadBufferSize:         32 << 10, // likewise
	}, s.timeout, s.connections)
	if region == "" {
		region = defaultRegion(s.endpoint)
	}
	// One attempt: whoever stands above retries, and what only we can repeat is repeated in retry.
	client, err := minio.New(s.endpoint.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(reveal("accessKey"), reveal("secretKey"), reveal("sessionToken")),
		Secure: s.secure(), Transport: t, Region: region, BucketLookup: s.style, MaxRetries: 1,
	})
	if err != nil {
		client = nil // parse has tried the same
	}
	b := &Backend{
		core: &minio.Core{Client: client}, transport: t, bucket: s.bucket, prefix: s.prefix, sse: s.sse, secure: s.secure(), partSize: s.partSize,
		copyLimit: 5 << 30, readOnly: cfg.ReadOnly, secrets: strings.NewReplacer(hide...), logger: logger, facts: newFacts(),
	}
	b.blocks.New = func() any { block := make([]byte, blockSize); return &block }
	return b
}

// enter looks whether the bucket and the folder are there and what the server can do. With an error of a server that wants requests signed
// for another region, it returns that.
func (b *Backend) enter(ctx context.Context, op string, cfg mounts.Config) (region string, err error) {
	versions := make(chan bool, 1)
	go func() {
		v, err := b.core.GetBucketVersioning(ctx, b.bucket)
		versions <- err == nil && v.Enabled() // many keys may not ask, and some servers do not know the question
	}()
	some, err := b.peek(ctx, b.prefix, 1)
	b.versioned = <-versions
	if err != nil {
		return regionOf(err), b.failOpen(ctx, op, cfg.Name, err)
	}
	if b.prefix != "" && len(some) == 0 {
		return "", fault.New(op, cfg.Name, fault.NotExist, errors.New("the bucket has no folder "+strings.TrimSuffix(b.prefix, "/")+": make it, or correct the option path"))
	}
	b.able = b.probe(ctx, cfg)
	if err := ctx.Err(); err != nil {
		return "", fault.Wrap(op, cfg.Name, err)
	}
	return "", nil
}

// Versioned reports whether the server kept former contents of objects when the bucket was opened.
func (b *Backend) Versioned() bool { return b.versioned }

// Features returns what an S3 server guarantees, and what was found out about this one. A file is replaced in one step; that Rename takes a
// second one to remove its source does not show to who reads the target.
func (b *Backend) Features() mounts.Features {
	f := mounts.Features{
		AtomicReplace: mounts.Native, Rename: mounts.Emulated, ModTimeGrain: time.Second, CaseSensitive: true,
		MaxName: mounts.MaxName, MaxPath: maxKey - len(b.prefix), Durable: mounts.Native, Remote: true,
	}
	if b.able.Conditional {
		f.ConditionalWrite = mounts.Native
	}
	if b.able.MD5 {
		f.Hash = mounts.Native
	}
	if b.readOnly {
		f.AtomicReplace, f.Rename, f.ConditionalWrite = 0, 0, 0
	}
	return f
}

// Close ends what is under way and closes the connections.
func (b *Backend) Close() error {
	b.transport.shut()
	return nil
}

// maxKey is the longest path in a bucket: a key has 1,024 bytes at most, and a folder one for its slash.
const maxKey = 1023

// begin is the door of every call.
func (b *Backend) begin(ctx context.Context, op, name string, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap("mounts/s3."+op, name, err)
	}
	if b.transport.isShut() {
		return fault.New("mounts/s3."+op, name, fault.Unavailable, errClosed)
	}
	if err := mounts.ValidPath(name); err != nil {
		return fault.Wrap("mounts/s3."+op, name, err)
	}
	if len(b.prefix)+len(name) > maxKey {
		return fault.New("mounts/s3."+op, name, fault.Invalid, errLongKey)
	}
	if strings.TrimSpace(b.prefix+name) == "" {
		return fault.New("mounts/s3."+op, name, fault.Invalid, errBlank)
	}
	if write && b.readOnly {
		return fault.New("mounts/s3."+op, name, fault.Denied, errReadOnly)
	}
	return nil
}

// key returns the key of the file name.
func (b *Backend) key(name string) string { return b.prefix + name }

// folder returns the key of the marker of the folder name, with which all keys in it begin. That of the root is "" in a whole bucket.
func (b *Backend) folder(name string) string {
	if name == "." {
		return b.prefix
	}
	return b.prefix + name + "/"
}
