package s3

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/encrypt"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"cellgate/internal/trust"
	"cellgate/mounts"
)

// settings are a datasource's options, understood.
type settings struct {
	endpoint       url.URL // scheme and host
	bucket, region string
	prefix         string
	style          minio.BucketLookupType
	tls            *tls.Config
	timeout        time.Duration
	connections    int
	partSize       int64
	sse            encrypt.ServerSide
}

func (s settings) secure() bool { return s.endpoint.Scheme == "https" }

// dialHost is the host that is dialled: who names a bucket and the style "virtual" names both.
func (s settings) dialHost() string {
	if s.style == minio.BucketLookupDNS {
		return s.bucket + "." + s.endpoint.Hostname()
	}
	return s.endpoint.Hostname()
}

func defaultRegion(endpoint url.URL) string {
	if r := s3utils.GetRegionFromURL(endpoint); r != "" {
		return r
	}
	return "us-east-1"
}

// parse returns what cfg says and every problem with it.
func parse(cfg mounts.Config) (settings, []error) {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	s := settings{timeout: 30 * time.Second, connections: 16, partSize: 8 << 20, bucket: cfg.Options["bucket"], region: cfg.Options["region"]}
	d := Driver()
	for name := range cfg.Options {
		if !slices.ContainsFunc(d.Options, func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown option %q", name)
		}
	}
	for name := range cfg.Credentials {
		if !slices.ContainsFunc(d.Secrets, func(o mounts.Option) bool { return o.Name == name }) {
			bad("unknown credential %q", name)
		}
	}
	for _, o := range d.Secrets {
		if o.Required && cfg.Credentials[o.Name].IsZero() {
			bad("the credential %s is missing", o.Name)
		}
	}
	if u, err := endpoint(cfg.Options["endpoint"]); err != nil {
		errs = append(errs, err)
	} else {
		s.endpoint = u
	}
	if err := s3utils.CheckValidBucketName(s.bucket); err != nil {
		bad("option bucket: %w", err)
	}
	switch cfg.Options["style"] {
	case "", "auto":
	case "path":
		s.style = minio.BucketLookupPath
	case "virtual":
		s.style = minio.BucketLookupDNS
	default:
		bad("option style is auto, path or virtual")
	}
	if path := strings.Trim(cfg.Options["path"], "/"); path != "" && path != "." {
		s.prefix = path + "/"
		if err := mounts.ValidPath(path); err != nil || len(path) > maxKey/2 {
			bad("option path is no path of a folder")
		}
	}
	s.numbers(cfg, bad)
	switch sse := cfg.Options["sse"]; {
	case sse == "":
	case sse == "AES256":
		s.sse = encrypt.NewSSE()
	case sse == "aws:kms" || strings.HasPrefix(sse, "aws:kms:"):
		var err error
		if s.sse, err = encrypt.NewSSEKMS(strings.TrimPrefix(strings.TrimPrefix(sse, "aws:kms"), ":"), nil); err != nil {
			bad("option sse: %w", err)
		}
	default:
		bad("option sse is AES256, aws:kms, or aws:kms: and the id of a key")
	}
	return s, errs
}

func (s *settings) numbers(cfg mounts.Config, bad func(format string, args ...any)) {
	opt := cfg.Options
	if v := opt["timeout"]; v != "" {
		d, err := time.ParseDuration(v)
		if s.timeout = d; err != nil || d <= 0 {
			bad("option timeout is no duration such as 30s")
		}
	}
	if v := opt["connections"]; v != "" {
		n, err := strconv.Atoi(v)
		if s.connections = n; err != nil || n < 1 || n > 1000 {
			bad("option connections is no number from 1 to 1000")
		}
	}
	if v := opt["partSize"]; v != "" {
		number, unit := strings.CutSuffix(v, "MiB")
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if unit && n < 1<<20 {
			n <<= 20
		}
		if s.partSize = n; err != nil || n < 5<<20 || n > 64<<20 {
			bad("option partSize is no size from 5MiB to 64MiB")
		}
	}
	insecure := opt["tlsInsecure"]
	if insecure != "" && insecure != "true" && insecure != "false" {
		bad("option tlsInsecure is true or false")
	}
	if s.endpoint.Scheme == "http" && (opt["ca"] != "" || opt["tlsPin"] != "" || insecure == "true") {
		bad("options ca, tlsPin and tlsInsecure need an endpoint that begins with https://")
	}
	config, err := trust.Config(trust.Options{CA: opt["ca"], Pin: opt["tlsPin"], Insecure: insecure == "true"}) // the host is that of each request
	if s.tls = config; err != nil {
		bad("option %w", err)
	}
}

var errEndpoint = errors.New("option endpoint is no address such as https://s3.example.com or http://10.0.0.5:9000, without a path")

// endpoint never repeats what it was given: somebody may have put a password into it.
func endpoint(text string) (url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return url.URL{}, errEndpoint
	}
	if _, err := minio.New(u.Host, &minio.Options{Secure: u.Scheme == "https"}); err != nil {
		return url.URL{}, errEndpoint
	}
	return url.URL{Scheme: u.Scheme, Host: u.Host}, nil
}
