package webdav

import (
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"cellgate/gateway"
)

// RFC 9110 §14.1.2.
func TestParseRanges(t *testing.T) {
	tests := []struct {
		in    string
		want  []span
		valid bool
	}{
		{"bytes=0-0", []span{{0, 1}}, true},
		{"bytes=2-5", []span{{2, 4}}, true},
		{"Bytes=2-", []span{{2, 8}}, true},
		{"bytes=-3", []span{{7, 3}}, true},
		{"bytes=-30", []span{{0, 10}}, true},
		{"bytes=8-99", []span{{8, 2}}, true},
		{"bytes=0-1, 4-4 ,-1", []span{{0, 2}, {4, 1}, {9, 1}}, true},
		{"bytes=10-", nil, true},
		{"bytes=-0", nil, true},
		{"bytes=10-,0-0", []span{{0, 1}}, true},
		{"bytes=0-99999999999999999999", []span{{0, 10}}, true},
		{"bytes=5-2", nil, false},
		{"bytes=", nil, false},
		{"bytes=-", nil, false},
		{"bytes=a-b", nil, false},
		{"bytes=+1-2", nil, false},
		{"bytes=0--1", nil, false},
		{"lines=0-1", nil, false},
	}
	for _, tt := range tests {
		got, valid := parseRanges(tt.in, 10)
		if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(span{})); diff != "" && valid || valid != tt.valid {
			t.Errorf("%s: got valid %v %s", tt.in, valid, diff)
		}
	}
}

// RFC 9110 §13.2.2: the order of conditions.
func TestEvaluate(t *testing.T) {
	mod := time.Date(2026, 5, 1, 12, 0, 0, 5e8, time.UTC)
	info := gateway.Info{ETag: `"1"`, ModTime: mod}
	then := func(d time.Duration) string { return mod.Add(d).Format(http.TimeFormat) }
	tests := []struct {
		key, value, key2, value2 string
		want                     int
	}{
		{"If-Match", `"1"`, "", "", 0},
		{"If-Match", `*`, "", "", 0},
		{"If-Match", `"2", "1"`, "", "", 0},
		{"If-Match", `W/"1"`, "", "", 412},
		{"If-Match", `"2"`, "", "", 412},
		{"If-Match", `1`, "", "", 412},
		{"If-Match", `"1"`, "If-Unmodified-Since", then(-time.Hour), 0},
		{"If-Unmodified-Since", then(0), "", "", 0},
		{"If-Unmodified-Since", then(-time.Second), "", "", 412},
		{"If-Unmodified-Since", "yesterday", "", "", 0},
		{"If-None-Match", `"1"`, "", "", 304},
		{"If-None-Match", `W/"1"`, "", "", 304},
		{"If-None-Match", `"a,b", "1"`, "", "", 304},
		{"If-None-Match", `"2"`, "", "", 0},
		{"If-None-Match", `"2"`, "If-Modified-Since", then(time.Hour), 0},
		{"If-Modified-Since", then(0), "", "", 304},
		{"If-Modified-Since", then(-time.Second), "", "", 0},
		{"If-Match", `"1"`, "If-None-Match", `"1"`, 304},
	}
	for _, tt := range tests {
		r := &http.Request{Header: http.Header{tt.key: {tt.value}}}
		if tt.key2 != "" {
			r.Header.Set(tt.key2, tt.value2)
		}
		if got := evaluate(r, info); got != tt.want {
			t.Errorf("%s: %s, %s: %s: got %d, want %d", tt.key, tt.value, tt.key2, tt.value2, got, tt.want)
		}
	}
}

func TestUpdateRange(t *testing.T) {
	tests := []struct {
		in      string
		size, n int64
		want    int64 // -1: refused
	}{
		{"append", 10, 3, 10},
		{"bytes=2-4", 10, 3, 2},
		{"bytes=2-5", 10, 3, -1},
		{"bytes=4-2", 10, 3, -1},
		{"bytes=10-", 10, 3, 10},
		{"bytes=11-", 10, 3, -1},
		{"bytes=-4", 10, 3, 6},
		{"bytes=-11", 10, 3, -1},
		{"bytes=-", 10, 3, -1},
		{"bytes=1", 10, 3, -1},
		{"", 10, 3, -1},
		{"lines=1-2", 10, 3, -1},
	}
	for _, tt := range tests {
		got, err := updateRange(tt.in, tt.size, tt.n)
		if err != nil {
			got = -1
		}
		if got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.in, got, tt.want)
		}
	}
}

// X01: what a browser could run is never shown in this origin.
func TestProtect(t *testing.T) {
	for kind, inline := range map[string]bool{
		"text/html; charset=utf-8": false, "image/svg+xml": false, "text/xml; charset=utf-8": false, "application/xhtml+xml": false,
		"application/pdf": false, "text/javascript": false, "application/octet-stream": false, "": false,
		"text/plain; charset=utf-8": true, "image/png": true, "video/mp4": true,
	} {
		hd := make(http.Header)
		protect(hd, kind)
		if got := hd.Get("Content-Disposition") == ""; got != inline {
			t.Errorf("%s: inline %v, want %v", kind, got, inline)
		}
		if hd.Get("X-Content-Type-Options") != "nosniff" || hd.Get("Content-Security-Policy") == "" {
			t.Errorf("%s: unprotected: %v", kind, hd)
		}
	}
}
