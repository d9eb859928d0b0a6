package s3

import (
	"encoding/xml"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
)

// listingXML is an answer of any of the listings.
type listingXML struct {
	IsTruncated           bool
	NextMarker            string
	NextContinuationToken string
	NextKeyMarker         string
	KeyCount              int
	MaxKeys               int
	Contents              []struct{ Key, ETag string }
	Version               []struct{ Key, VersionId string }
	CommonPrefixes        []struct{ Prefix string }
}

// lines lists a bucket page by page in one of three ways.
func (b *box) lines(t *testing.T, way, prefix, delimiter, after string, most int, query string) (lines []string) {
	t.Helper()
	v := url.Values{"prefix": {prefix}, "delimiter": {delimiter}, "max-keys": {fmt.Sprint(most)}}
	next := map[string]string{"v1": "marker", "v2": "continuation-token", "versions": "key-marker"}[way]
	if after != "" {
		v.Set(map[string]string{"v1": "marker", "v2": "start-after", "versions": "key-marker"}[way], after)
	}
	if way == "v2" {
		v.Set("list-type", "2")
	}
	if way == "versions" {
		v.Set("versions", "")
	}
	for range 10_000 {
		a := b.do(call{method: "GET", path: "/docs", query: strings.ReplaceAll(v.Encode(), "+", "%20") + query})
		var l listingXML
		if err := xml.Unmarshal([]byte(a.body), &l); err != nil || a.status != 200 {
			t.Fatalf("%v: %v %s", err, a, a.body)
		}
		var page []string
		for _, c := range l.Contents {
			page = append(page, c.Key)
		}
		for _, c := range l.Version {
			page = append(page, c.Key)
		}
		for _, c := range l.CommonPrefixes {
			page = append(page, c.Prefix)
		}
		slices.Sort(page)
		if len(page) > most || l.IsTruncated && len(page) != most || way == "v2" && l.KeyCount != len(page) {
			t.Fatalf("a page of %d for %d: %+v", len(page), most, l)
		}
		lines = append(lines, page...)
		if !l.IsTruncated {
			return lines
		}
		position := l.NextContinuationToken + l.NextKeyMarker
		if way == "v1" {
			if position = l.NextMarker; delimiter == "" {
				position = page[len(page)-1]
			}
		}
		v.Set(next, position)
	}
	t.Fatal("the listing has no end")
	return nil
}

// model is what a listing of keys should be.
func model(keys []string, prefix, delimiter, after string) (lines []string) {
	for _, k := range keys {
		rest, ok := strings.CutPrefix(k, prefix)
		if !ok {
			continue
		}
		if i := strings.Index(rest, delimiter); i >= 0 && delimiter != "" {
			k = prefix + rest[:i+len(delimiter)]
		}
		if k > after && !slices.Contains(lines, k) {
			lines = append(lines, k)
		}
	}
	slices.Sort(lines)
	return lines
}

// Listings of all kinds agree with a model on random trees whose names are close to each other.
func TestListingsAgainstModel(t *testing.T) {
	b := openBox(t, nil)
	rnd := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "a!", "a0", "a-", "ab", "ä", "\U0001F600", "a b", "a+b", "%41", "a&<\"", "\uff5e"}
	var keys []string
	folders := map[string]bool{}
	for len(keys) < 120 {
		var parts []string
		for range 1 + rnd.IntN(4) {
			parts = append(parts, names[rnd.IntN(len(names))])
		}
		key := strings.Join(parts, "/")
		clash := folders[key] || slices.Contains(keys, key)
		for i := 1; i < len(parts); i++ {
			clash = clash || slices.Contains(keys, strings.Join(parts[:i], "/"))
		}
		if clash {
			continue
		}
		for i := 1; i < len(parts); i++ {
			folders[strings.Join(parts[:i], "/")] = true
		}
		if rnd.IntN(12) == 0 {
			folders[key] = true
			key += "/"
		}
		b.put(key, map[bool]string{true: "", false: key}[strings.HasSuffix(key, "/")])
		keys = append(keys, key)
	}
	slices.Sort(keys)
	prefixes := []string{"", "a", "a/", "a/b", "a/a/", "ä/", "zzz", "a//", "/", "a/a!/b", "a+"}
	delimiters := []string{"", "/", "a", "b/", "//", "!", "\U0001F600"}
	for i := range 160 {
		prefix, delimiter := prefixes[rnd.IntN(len(prefixes))], delimiters[rnd.IntN(len(delimiters))]
		after := ""
		if rnd.IntN(2) == 0 {
			after = keys[rnd.IntN(len(keys))]
			after = after[:1+rnd.IntN(len(after))]
			if after = strings.ToValidUTF8(after, ""); rnd.IntN(3) == 0 {
				after += "0"
			}
		}
		way := []string{"v1", "v2", "versions"}[i%3]
		most := []int{1, 2, 7, 50, 1000}[rnd.IntN(5)]
		want := model(keys, prefix, delimiter, after)
		if got := b.lines(t, way, prefix, delimiter, after, most, ""); !slices.Equal(got, want) {
			t.Errorf("%s prefix %q delimiter %q after %q by %d:\ngot  %q\nwant %q", way, prefix, delimiter, after, most, got, want)
		}
	}
}

// Folders that are too large to be remembered are listed all the same, and remembered ones show what has changed.
func TestLargeFolder(t *testing.T) {
	const n = 2*window + 300
	for _, limit := range []int{100, 1 << 20} {
		b := openBox(t, func(c *Config) { c.Limits.Folder, c.Limits.Listed = limit, limit })
		want := make([]string, 0, n)
		for i := range n {
			name := fmt.Sprintf("f%06d", i*7919%n)
			if i < 20 {
				name = fmt.Sprintf("f%06d-/x", i*400)
			}
			want = append(want, name)
			at := filepath.Join(b.dir, "docs", name)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(want)
		got := b.lines(t, "v2", "", "", "", 1000, "")
		if !slices.Equal(got, want) {
			t.Errorf("limit %d: %d keys, want %d", limit, len(got), len(want))
		}
		if got := b.lines(t, "v1", "f", "/", "f000100", 999, ""); len(got) == 0 || got[0] <= "f000100" || !slices.IsSorted(got) {
			t.Errorf("limit %d: %d lines by delimiter", limit, len(got))
		}
	}
}

// A page that follows shows what was written and deleted meanwhile behind it, by whichever door.
func TestChangesBetweenPages(t *testing.T) {
	b := openBox(t, nil)
	for _, k := range []string{"a", "b", "c", "d/1", "d/2", "e"} {
		b.put(k, "x")
	}
	var l listingXML
	a := b.do(call{method: "GET", path: "/docs", query: "list-type=2&max-keys=2"})
	if err := xml.Unmarshal([]byte(a.body), &l); err != nil {
		t.Fatal(err)
	}
	if err := b.As("bob").Remove(t.Context(), gatewaytest.Path("/docs/c"), gateway.RemoveOptions{}); err != nil {
		t.Fatal(err)
	}
	b.put("d/0", "new")
	b.put("b2", "new")
	a = b.do(call{method: "GET", path: "/docs", query: "list-type=2&continuation-token=" + l.NextContinuationToken})
	var rest listingXML
	if err := xml.Unmarshal([]byte(a.body), &rest); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range rest.Contents {
		got = append(got, c.Key)
	}
	if want := []string{"b2", "d/0", "d/1", "d/2", "e"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for query, want := range map[string]string{
		"list-type=2&continuation-token=nonsense!": "400 InvalidArgument", "max-keys=-1": "400 InvalidArgument", "max-keys=x": "400 InvalidArgument",
		"encoding-type=x": "400 InvalidArgument", "list-type=3": "400 InvalidArgument", "max-keys=0": "200 ",
	} {
		if a := b.do(call{method: "GET", path: "/docs", query: query}); a.String() != want {
			t.Errorf("%s: %v, want %s", query, a, want)
		}
	}
}
