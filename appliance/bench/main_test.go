package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
)

// The environment of a run, and of the processes it makes of itself.
const (
	scaleEnv   = "CELLGATE_BENCH"
	roundsEnv  = "CELLGATE_BENCH_ROUNDS"
	dirEnv     = "CELLGATE_BENCH_DIR"
	profileEnv = "CELLGATE_BENCH_PROFILE"
	roleEnv    = "CELLGATE_BENCH_ROLE"
)

func TestMain(m *testing.M) {
	switch role, profiles := os.Getenv(roleEnv), os.Getenv(profileEnv); role {
	case "gofloor":
		os.Exit(floor(os.Args[1], os.Stdout))
	case "profiled":
		os.Unsetenv(roleEnv) // the box knows all that begins with CELLGATE_
		os.Unsetenv(profileEnv)
		os.Exit(profiled(os.Args[1:], profiles))
	}
	file := flag.String("json", "", "also write the table to this file")
	flag.Parse()
	status := m.Run()
	if err := bench.close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		status = 1
	}
	if len(bench.report.Lines) > 0 {
		bench.report.print(os.Stdout)
		if err := bench.report.save(*file); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			status = 1
		}
	}
	os.Exit(status)
}

// scale is how much is measured.
type scale struct {
	Name     string
	Rounds   int
	Starts   int   // rounds of what needs new servers
	Bulk     int64 // bytes of a large file
	Small    int64 // bytes of the file that memory with Bulk is compared to
	Streams  int
	Ops      int // small operations of a round
	Ranges   int
	Entries  int   // of the folder listed
	Listings []int // of folders whose listing's memory is compared
	Lists    int   // listings of a round
	Idle     int   // connections
}

func scaleOf(name string) (s scale, err error) {
	switch name {
	case "", "full":
		s = scale{Rounds: 5, Starts: 3, Bulk: 1 << 30, Small: 64 << 20, Streams: 8, Ops: 6000, Ranges: 6000, Entries: 10000, Listings: []int{1000, 10000, 50000}, Lists: 5, Idle: 1000}
	case "quick":
		s = scale{Rounds: 3, Starts: 1, Bulk: 128 << 20, Small: 16 << 20, Streams: 8, Ops: 1500, Ranges: 2000, Entries: 10000, Listings: []int{1000, 10000}, Lists: 2, Idle: 500}
	default:
		return s, fmt.Errorf("%s=%s: full or quick is expected", scaleEnv, name)
	}
	s.Name = name
	if name == "" {
		s.Name = "full"
	}
	if text := os.Getenv(roundsEnv); text != "" {
		if s.Rounds, err = strconv.Atoi(text); err != nil || s.Rounds < 1 {
			return s, fmt.Errorf("%s=%s: a number of rounds is expected", roundsEnv, text)
		}
	}
	return s, nil
}

// save writes the report to file, "" for none.
func (r *report) save(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
