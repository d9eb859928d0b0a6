package roundtrip

import (
	"context"
	"crypto/rand"
	"io"
	"iter"
	"strings"
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	s3driver "cellgate/mounts/s3"
	"cellgate/policy/identity"
	"cellgate/protocols/s3"
)

// The gateway keeps names that begin with mounts.Area from every client, and the driver does not know that it talks to a gateway: so they are
// called otherwise between the two.
const otherwise = "~area"

func aliasOf(name string) string {
	return strings.ReplaceAll("/"+name, "/"+mounts.Area, "/"+otherwise)[1:]
}

func nameOf(i mounts.Info) mounts.Info {
	i.Name = strings.ReplaceAll("/"+i.Name, "/"+otherwise, "/"+mounts.Area)[1:]
	return i
}

// aliased is the driver under such names.
type aliased struct{ *s3driver.Backend }

func (b aliased) Stat(ctx context.Context, name string) (mounts.Info, error) {
	i, err := b.Backend.Stat(ctx, aliasOf(name))
	return nameOf(i), err
}

func (b aliased) List(ctx context.Context, dir string) iter.Seq2[mounts.Info, error] {
	return func(yield func(mounts.Info, error) bool) {
		for i, err := range b.Backend.List(ctx, aliasOf(dir)) {
			if !yield(nameOf(i), err) {
				return
			}
		}
	}
}

func (b aliased) Open(ctx context.Context, name string, off, n int64) (io.ReadCloser, error) {
	return b.Backend.Open(ctx, aliasOf(name), off, n)
}

func (b aliased) Put(ctx context.Context, name string, src io.Reader, opt mounts.PutOptions) (mounts.Info, error) {
	i, err := b.Backend.Put(ctx, aliasOf(name), src, opt)
	return nameOf(i), err
}

func (b aliased) Mkdir(ctx context.Context, name string) error {
	return b.Backend.Mkdir(ctx, aliasOf(name))
}

func (b aliased) Remove(ctx context.Context, name string) error {
	return b.Backend.Remove(ctx, aliasOf(name))
}

func (b aliased) Rename(ctx context.Context, from, to string) error {
	return b.Backend.Rename(ctx, aliasOf(from), aliasOf(to))
}

func (b aliased) Purge(ctx context.Context, name string) error {
	return b.Backend.Purge(ctx, aliasOf(name))
}

// TestS3 serves a mem mount as a bucket and mounts it.
func TestS3(t *testing.T) {
	house := gatewaytest.New(t, gatewaytest.Config{})
	pair := identity.S3Pair{ID: "ALICEKEY", Secret: secret.New("alicesecret0123456789")}
	if _, err := house.Identity.AddS3Key(t.Context(), "alice", "", pair, time.Time{}); err != nil {
		t.Fatal(err)
	}
	h, err := s3.New(s3.Config{Gateway: house.Gateway, Identity: house.Identity})
	if err != nil {
		t.Fatal(err)
	}
	cfg := mounts.Config{
		Options:     map[string]string{"endpoint": serve(t, h), "bucket": "docs", "region": "us-east-1"},
		Credentials: map[string]secret.String{"accessKey": secret.New(pair.ID), "secretKey": pair.Secret},
	}
	// What the driver finds out by trying it under such a name: the door is what it takes for the best of servers.
	cfg.Known = map[string]string{"s3.abilities": cfg.Options["endpoint"] + " docs  conditional=true md5=true"}
	open := func(cfg mounts.Config) mounts.Backend {
		b, err := s3driver.Driver().Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return aliased{b.(*s3driver.Backend)}
	}
	root := open(cfg)
	if support := root.Features().ConditionalWrite; support != mounts.Native {
		t.Errorf("ConditionalWrite is %s", support)
	}
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		name := rand.Text()
		if err := root.Mkdir(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		c := cfg
		c.Options = map[string]string{"endpoint": cfg.Options["endpoint"], "bucket": "docs", "region": "us-east-1", "path": name}
		return open(c)
	})
}
