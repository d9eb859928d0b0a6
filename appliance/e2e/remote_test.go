package e2e

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// untagged are the tests of litmus that are left out where a file has no entity tag in the first two seconds of its life: these servers tell
// no more than a time and a size, and both may be those of the next change, too. That such a tag serves later is TestRemoteVerbs'.
var untagged = []string{"cond_put", "fail_cond_put", "complex_cond_put", "fail_complex_cond_put"}

// refusedByLitmus are the tests of litmus that do not pass over a kind, by what it cannot guarantee.
var refusedByLitmus = map[string][]string{"vsftpd": untagged, "proftpd": untagged, "sftp": untagged, "smb": untagged, "webdav": untagged}

// litmus checks RFC 4918 from outside, with the files on every kind of server. What fails is exactly what the guarantees refuse.
func TestLitmusRemote(t *testing.T) {
	t.Parallel()
	litmus := program(t, "litmus")
	eachKind(t, func(t *testing.T, k *kind) {
		b := start(t, k.state())
		out, _ := command{env: []string{"TESTS=basic copymove props locks http"}}.try(t, litmus, "-k", b.url("", "/docs/"), "alice", password("alice"))
		var failed []string
		for _, m := range regexp.MustCompile(`(?m)(\w+)\.+ (FAIL|WARNING|SKIPPED)`).FindAllStringSubmatch(out, -1) {
			failed = append(failed, m[1])
		}
		sums := regexp.MustCompile("summary for `(\\w+)': of (\\d+) tests run: (\\d+) passed").FindAllStringSubmatch(out, -1)
		total := 0
		for _, m := range sums {
			n := 0
			fmt.Sscan(m[3], &n)
			total += n
		}
		if want := refusedByLitmus[k.name]; !slices.Equal(failed, want) || len(sums) != 5 || total+len(want) < 60 {
			t.Errorf("%d suites, %d tests passed; failed %v, want %v\n%s", len(sums), total, failed, want, tail(strings.ReplaceAll(out, "\r", "\n"), 6000))
		}
		t.Logf("%d suites, %d tests passed", len(sums), total)
		b.sound()
	})
}
