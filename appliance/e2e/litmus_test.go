package e2e

import (
	"regexp"
	"strconv"
	"testing"
)

// litmus checks RFC 4918 from outside. Every test of every suite passes, with the files on a real disk.
func TestLitmus(t *testing.T) {
	t.Parallel()
	litmus := program(t, "litmus")
	b := start(t, common)
	out := command{}.run(t, litmus, b.url("", "/docs/"), "alice", password("alice"))
	sums := regexp.MustCompile("summary for `(\\w+)': of (\\d+) tests run: (\\d+) passed, (\\d+) failed").FindAllStringSubmatch(out, -1)
	total := 0
	for _, m := range sums {
		if m[2] != m[3] || m[4] != "0" {
			t.Errorf("%s", m[0])
		}
		n, _ := strconv.Atoi(m[3])
		total += n
	}
	if len(sums) != 5 || total < 60 || t.Failed() || regexp.MustCompile(`WARNING|SKIPPED`).MatchString(out) {
		t.Errorf("%d suites, %d tests passed\n%s", len(sums), total, out)
	}
	t.Logf("%d suites, %d tests passed", len(sums), total)
	b.sound()
}
