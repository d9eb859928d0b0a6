package s3

import (
	"crypto/md5"
	"io"
	"math/rand/v2"
	"testing"

	"cellgate/mounts"
	"cellgate/mounts/mounttest"
	"cellgate/mounts/servertest"
)

// opened returns a backend on a server, in a folder of its own.
func opened(t testing.TB, cfg mounts.Config, folder string) *Backend {
	t.Helper()
	if folder != "" {
		root := opened(t, cfg, "")
		if err := mounts.MkdirAll(t.Context(), root, folder); err != nil {
			t.Fatal(err)
		}
		root.Close()
		cfg = with(cfg, "path", folder)
	}
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// with returns cfg with other options.
func with(cfg mounts.Config, pairs ...string) mounts.Config {
	options := map[string]string{}
	for k, v := range cfg.Options {
		options[k] = v
	}
	for i := 0; i < len(pairs); i += 2 {
		if options[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(options, pairs[i])
		}
	}
	cfg.Options = options
	return cfg
}

// remembering gives cfg a memory, as the gateway does.
func remembering(cfg mounts.Config) mounts.Config {
	cfg.Known = map[string]string{}
	cfg.Learn = func(key, value string) error { cfg.Known[key] = value; return nil }
	return cfg
}

func TestConformance(t *testing.T) {
	t.Parallel()
	server := servertest.S3(t, servertest.S3Options{})
	conform(t, servertest.S3Config(server, servertest.S3Options{}))
}

// TestConformanceFake is about what versitygw cannot be: a flat map of keys, one that honours no conditions, one whose tags say nothing. That
// runs over TLS, too.
func TestConformanceFake(t *testing.T) {
	t.Parallel()
	t.Run("TLS", func(t *testing.T) { conform(t, newFake(t, true).config()) })
	t.Run("careless", func(t *testing.T) {
		f := newFake(t, false)
		f.careless, f.odd = true, true
		conform(t, f.config())
	})
}

// conform runs the suite, each test in a folder of its own.
func conform(t *testing.T, cfg mounts.Config) {
	cfg = remembering(cfg)
	n := 0
	mounttest.Run(t, func(t *testing.T) mounts.Backend {
		n++
		return opened(t, cfg, "run/"+string(rune('a'+n/26))+string(rune('a'+n%26)))
	})
}

// TestConnections is a short round over the ways to connect: TLS of the real server, and one that closes each connection.
func TestConnections(t *testing.T) {
	t.Parallel()
	cert := servertest.NewCert(t, servertest.CertOptions{})
	for name, opt := range map[string]servertest.S3Options{"TLS": {Cert: &cert}, "a connection each": {NoReuse: true}} {
		t.Run(name, func(t *testing.T) {
			b := opened(t, servertest.S3Config(servertest.S3(t, opt), opt), "")
			if f := b.Features(); f.ConditionalWrite != mounts.Native || f.Hash != mounts.Native {
				t.Errorf("Features = %+v, want conditions and digests", f)
			}
			mounttest.Script(t, b, `
				mkdir d      -> ok
				put d/f 1    -> ok
				put d/f 22   -> ok
				new d/f 1    -> ! already exists
				cat d/f      -> "22"
				cat d/f 1 1  -> "2"
				mv d e       -> ok
				cat e/f      -> "22"
				rm e/f       -> ok
				ls e         -> 
			`)
			for _, size := range []int64{2 << 20, 20<<20 + 5} { // streamed, in parts
				sum := md5.New()
				src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum)
				info, err := b.Put(t.Context(), "large", src, mounts.PutOptions{Size: size})
				if err != nil || info.Size != size {
					t.Fatalf("Put of %d bytes: %+v, %v", size, info, err)
				}
				got := md5.New()
				r, err := b.Open(t.Context(), "large", 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				if n, err := io.Copy(got, r); n != size || err != nil || string(sum.Sum(nil)) != string(got.Sum(nil)) {
					t.Errorf("%d of %d bytes came back, %v; the digests must be the same", n, size, err)
				}
				r.Close()
			}
		})
	}
}
