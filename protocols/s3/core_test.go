package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
)

// box is a house with the door open.
type box struct {
	*gatewaytest.House
	t    testing.TB
	addr string // host:port
	dir  string // what the datasource "disk" is
}

// keys of the users of a box.
var (
	alice = pair{"ALICEKEY", "alicesecret0123456789"}
	bob   = pair{"BOBSKEY1", "bobssecret01234567890"}
)

// openBox opens the door on a local folder. Both alice and bob may write in docs. edit may change the configuration.
func openBox(t testing.TB, edit func(*Config)) *box {
	t.Helper()
	b := &box{t: t, dir: t.TempDir()}
	disk, err := local.Driver().Open(t.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": b.dir}})
	if err != nil {
		t.Fatal(err)
	}
	b.House = gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
	b.Grant("user:bob", "docs:/", "read", "write")
	for login, k := range map[string]pair{"alice": alice, "bob": bob} {
		if _, err := b.Identity.AddS3Key(t.Context(), login, "", identity.S3Pair{ID: k.name, Secret: secret.New(k.value)}, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := Config{Gateway: b.Gateway, Identity: b.Identity, Buckets: buckets{b.House}, ClientAddr: claimed}
	if edit != nil {
		edit(&cfg)
	}
	h, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, MaxHeaderBytes: 64 << 10}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	b.addr = l.Addr().String()
	return b
}

// claimed believes a header, so that tests can come from anywhere: wrong signatures use up the budget of their network.
func claimed(r *http.Request) netip.Addr {
	if a, err := netip.ParseAddr(r.Header.Get("Test-Address")); err == nil {
		return a
	}
	return peer(r)
}

// buckets makes workspaces on the datasource "disk", whose maker may do everything.
type buckets struct{ house *gatewaytest.House }

func (b buckets) Create(ctx context.Context, sub *policy.Subject, name string) error {
	for _, w := range b.house.Gateway.Workspaces() {
		if w.Slug == name {
			return fault.New("test.Create", name, fault.Exist, nil)
		}
	}
	err := b.house.DB.Update(ctx, func(tx *store.Tx) error {
		_, err := b.house.Gateway.PutWorkspace(tx, gateway.Workspace{Slug: name, Label: name, Roots: []string{"disk:/buckets/" + name}, Quota: -1})
		return err
	})
	if err == nil {
		err = b.house.Gateway.Reload(ctx)
	}
	if err == nil {
		b.house.Grant("user:"+sub.Login, name+":/", "read", "write")
	}
	return err
}

func (b buckets) Delete(ctx context.Context, sub *policy.Subject, name string) error {
	b.house.Revoke("user:"+sub.Login, name+":/")
	err := b.house.DB.Update(ctx, func(tx *store.Tx) error { return b.house.Gateway.DeleteWorkspace(tx, name) })
	if err == nil {
		err = b.house.Gateway.Reload(ctx)
	}
	return err
}

// client is minio-go as a user.
func (b *box) client(k pair) *minio.Core {
	b.t.Helper()
	c, err := minio.NewCore(b.addr, &minio.Options{Creds: credentials.NewStaticV4(k.name, k.value, ""), Region: "us-east-1", MaxRetries: 1, TrailingHeaders: true})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// call is a request of our own making.
type call struct {
	method  string
	path    string // decoded
	query   string // as it goes out
	header  map[string]string
	body    string
	key     pair
	payload string // x-amz-content-sha256, "" the digest
	when    time.Time
	region  string
	edit    func(*http.Request) // after it was signed
}

// answered is what came of it.
type answered struct {
	status int
	header http.Header
	body   string
}

func (a answered) code() string {
	_, rest, _ := strings.Cut(a.body, "<Code>")
	code, _, _ := strings.Cut(rest, "</Code>")
	return code
}

func (a answered) String() string { return fmt.Sprintf("%d %s", a.status, a.code()) }

// request signs a call.
func (b *box) request(c call) *http.Request {
	b.t.Helper()
	if c.key == (pair{}) {
		c.key = alice
	}
	if c.region == "" {
		c.region = "us-east-1"
	}
	if c.when.IsZero() {
		c.when = time.Now().UTC()
	}
	u := &url.URL{Scheme: "http", Host: b.addr, Path: c.path, RawPath: string(appendEscaped(nil, c.path, true)), RawQuery: c.query}
	var body io.Reader
	if c.body != "" || c.method == http.MethodPut || c.method == http.MethodPost {
		body = strings.NewReader(c.body)
	}
	r, err := http.NewRequestWithContext(b.t.Context(), c.method, u.String(), body)
	if err != nil {
		b.t.Fatal(err)
	}
	for k, v := range c.header {
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	if c.payload == "" {
		sum := sha256.Sum256([]byte(c.body))
		c.payload = hexOf(sum[:])
	}
	r.Header.Set("X-Amz-Content-Sha256", c.payload)
	sign(b.t, r, c)
	if c.edit != nil {
		c.edit(r)
	}
	return r
}

// sign puts the Authorization header on a request.
func sign(t testing.TB, r *http.Request, c call) *signature {
	t.Helper()
	s := &signature{credential: credential{c.key.name, c.when.Format("20060102"), c.region}, stamp: c.when.Format(stampLayout), when: c.when}
	r.Header.Set("X-Amz-Date", s.stamp)
	s.headers = []string{"host"}
	for name := range r.Header {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "x-amz-") {
			s.headers = append(s.headers, lower)
		}
	}
	s.headers, _ = parseSigned(strings.Join(s.headers, ";"))
	all, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		t.Fatal(err)
	}
	as := *r
	if as.Host == "" {
		as.Host = r.URL.Host
	}
	s.key = deriveKey(c.key.value, s.credential)
	s.value = mac(s.key, s.toSign(canonicalRequest(&as, all, s.headers, r.Header.Get("X-Amz-Content-Sha256"))))
	r.Header.Set("Authorization", algorithm+" Credential="+s.id+"/"+s.scope()+", SignedHeaders="+strings.Join(s.headers, ";")+", Signature="+hexOf(s.value))
	return s
}

// do makes a call.
func (b *box) do(c call) answered {
	b.t.Helper()
	return b.send(b.request(c))
}

func (b *box) send(r *http.Request) answered {
	b.t.Helper()
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return answered{res.StatusCode, res.Header, string(body)}
}

func (b *box) put(key, body string) answered {
	b.t.Helper()
	a := b.do(call{method: "PUT", path: "/docs/" + key, body: body})
	if a.status != http.StatusOK {
		b.t.Fatalf("PUT %s: %v", key, a)
	}
	return a
}

func (b *box) get(key string) answered {
	b.t.Helper()
	return b.do(call{method: "GET", path: "/docs/" + key})
}

// keys lists all keys of a bucket.
func (b *box) keys(bucket string) (keys []string) {
	b.t.Helper()
	for o := range b.client(alice).Client.ListObjects(b.t.Context(), bucket, minio.ListObjectsOptions{Recursive: true}) {
		if o.Err != nil {
			b.t.Fatal(o.Err)
		}
		keys = append(keys, o.Key)
	}
	return keys
}

// many is n bytes that are not all the same.
func many(n int) []byte {
	b := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	for i := 0; i < n; i += 4096 {
		b[i] = byte(i >> 12)
	}
	return b
}
