package gateway

import (
	"maps"
	"testing"

	"cellgate/mounts"
)

// A declared state may say address and passive for every driver alike.
func TestSpellings(t *testing.T) {
	options := func(names ...string) mounts.Driver {
		var d mounts.Driver
		for _, n := range names {
			d.Options = append(d.Options, mounts.Option{Name: n})
		}
		return d
	}
	type o = map[string]string
	ftp, smb, dav, s3 := options("host", "port", "mode", "tls", "path"), options("host", "port", "share"), options("url", "ca"), options("endpoint", "bucket")
	for _, tt := range []struct {
		driver   mounts.Driver
		in, want o
	}{
		{ftp, o{"address": "h:2121", "passive": "false", "tls": "true"}, o{"host": "h", "port": "2121", "mode": "active", "tls": "explicit"}},
		{ftp, o{"address": "h", "passive": "true", "tls": "implicit"}, o{"host": "h", "mode": "passive", "tls": "implicit"}},
		{ftp, o{"address": "[::1]:21", "tls": "false"}, o{"host": "::1", "port": "21", "tls": "off"}},
		{ftp, o{"address": "::1"}, o{"host": "::1"}},
		{ftp, o{"address": "a", "host": "b"}, o{"address": "a", "host": "b"}},
		{ftp, o{"passive": "maybe"}, o{"passive": "maybe"}},
		{smb, o{"address": "nas:445", "share": "s"}, o{"host": "nas", "port": "445", "share": "s"}},
		{smb, o{"passive": "true"}, o{"passive": "true"}},
		{dav, o{"address": "dav.example.org/x"}, o{"url": "https://dav.example.org/x"}},
		{dav, o{"address": "localhost:81", "tls": "false"}, o{"url": "http://localhost:81"}},
		{s3, o{"address": "http://localhost:9000", "bucket": "b"}, o{"endpoint": "http://localhost:9000", "bucket": "b"}},
		{s3, o{"endpoint": "https://s3.example.org"}, o{"endpoint": "https://s3.example.org"}},
		{s3, o{"endpoint": "localhost:9000", "tls": "false"}, o{"endpoint": "http://localhost:9000"}},
		{s3, o{"endpoint": "https://s3.example.org", "tls": "true"}, o{"endpoint": "https://s3.example.org"}},
		{s3, o{"endpoint": "http://s3.example.org", "tls": "true"}, o{"endpoint": "http://s3.example.org", "tls": "true"}},
	} {
		if got := (Datasource{Options: tt.in}).spelled(tt.driver).Options; !maps.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.in, got, tt.want)
		}
	}
}
