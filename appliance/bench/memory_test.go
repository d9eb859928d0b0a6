package bench

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// fresh runs fn on a newly started server, and stops it. What is in its folder stays, for the next start.
func fresh(p peer, name string, fn func(s side) error) error {
	sides, err := bench.launch(p, name)
	if err != nil {
		return err
	}
	if err := fn(sides[0]); err != nil {
		_ = sides[0].stop()
		return err
	}
	return sides[0].stop()
}

// growth returns how much more memory a fresh server has at its peak during run than idle before, and the peak.
func growth(p peer, name string, prepare, run func(s side) error) (more, most int64, err error) {
	defer bench.forget(name)
	err = fresh(p, name, func(s side) error {
		if err := prepare(s); err != nil {
			return err
		}
		if err := wear(s, 10000); err != nil {
			return err
		}
		pids := family(s.cmd.Process.Pid)
		before, err := settled(pids)
		if err != nil {
			return err
		}
		resetPeak(pids)
		if err := run(s); err != nil {
			return err
		}
		after, err := memoryOf(pids)
		more, most = after.peak-before.resident, after.peak
		return err
	})
	return more, most, err
}

// installed are the peers that are here, of those named.
func installed(names ...string) (all []peer) {
	for _, p := range peers {
		for _, name := range names {
			if p.name == name && len(bench.of(name)) > 0 {
				all = append(all, p)
			}
		}
	}
	return all
}

// BenchmarkMemory compares the memory that large and small files and folders need, of newly started servers.
func BenchmarkMemory(b *testing.B) {
	bench.open(b)
	type load struct {
		name         string
		prepare, run func(s side) error
	}
	nothing := func(side) error { return nil }
	var loads []load
	for _, size := range []int64{bench.scale.Small, bench.scale.Bulk} {
		loads = append(loads,
			load{"GET " + sizeName(size), func(s side) error { return lay(s, "large", size) }, func(s side) error {
				return each(s, 1, 1, func(c *conn, _ int) error { return get(c, "/large", size) })
			}},
			load{"PUT " + sizeName(size), nothing, func(s side) error {
				return each(s, 1, 1, func(c *conn, _ int) error { return putLarge(c, "/large", size) })
			}})
	}
	for _, n := range bench.scale.Listings {
		loads = append(loads, load{fmt.Sprintf("PROPFIND of %d", n), func(s side) error { return fill(s, "list", n) }, func(s side) error {
			return each(s, 1, 1, func(c *conn, _ int) error { _, _, err := list(c, "/list/", allprop); return err })
		}})
	}
	for i, ld := range loads {
		b.Run(ld.name, func(b *testing.B) {
			name := "memory, " + ld.name
			if !bench.seen[name] {
				bench.seen[name] = true
				more, most := map[string][]float64{}, map[string][]float64{}
				for round := range bench.scale.Starts {
					for _, p := range installed(ours, nginx, bare) {
						grown, peak, err := growth(p, fmt.Sprintf("m-%s-%d-%d", p.name, i, round), ld.prepare, ld.run)
						if err != nil {
							b.Fatal(err)
						}
						more[p.name] = append(more[p.name], mib(grown))
						most[p.name] = append(most[p.name], mib(peak))
					}
				}
				bench.report.add(name, "MiB more", more, nil)
				bench.report.add(name, "peak MiB", most, nil)
			}
			show(b, name)
		})
	}
}

// show gives b the lines of a measure.
func show(b *testing.B, name string) {
	b.ReportMetric(0, "ns/op")
	for _, line := range bench.report.Lines {
		if line.Measure == name {
			line.metrics(b)
		}
	}
}

// BenchmarkFootprint looks at the binary, and starts servers anew: how soon they answer, what they occupy idle, and what a client costs that
// has asked once and keeps its connection.
func BenchmarkFootprint(b *testing.B) {
	bench.open(b)
	const name = "start and idle"
	if !bench.seen[name] {
		bench.seen[name] = true
		info, err := os.Stat(bench.binary)
		if err != nil {
			b.Fatal(err)
		}
		bench.report.add("binary", "MiB", map[string][]float64{ours: {mib(info.Size())}}, []goal{{no: "17", most: 45}})
		got := map[string]map[string][]float64{}
		note := func(line, server string, value float64) {
			if got[line] == nil {
				got[line] = map[string][]float64{}
			}
			got[line][server] = append(got[line][server], value)
		}
		for round := range bench.scale.Starts {
			for _, p := range installed(everyone...) {
				dir := fmt.Sprintf("f-%s-%d", p.name, round)
				if err := fresh(p, dir, func(s side) error {
					note("first", p.name, s.ready.Seconds()*1e3)
					return nil
				}); err != nil {
					b.Fatal(err)
				}
				if err := fresh(p, dir, func(s side) error { return idle(s, note) }); err != nil {
					b.Fatal(err)
				}
				bench.forget(dir)
			}
		}
		bench.report.add("first start", "ms", got["first"], nil)
		bench.report.add("start", "ms", got["start"], []goal{{no: "17", minus: bare, most: 50}})
		bench.report.add("idle", "resident MiB", got["resident"], []goal{{no: "17", most: 24}})
		bench.report.add("idle", "anonymous MiB", got["anonymous"], nil)
		bench.report.add("idle connection", "KiB", got["connection"], []goal{{no: "17", most: 20}})
		bench.report.add("first login", "peak MiB", got["login"], nil)
		bench.report.add("after the first login", "resident MiB", got["settled"], nil)
	}
	b.ReportMetric(0, "ns/op")
	for _, measure := range []string{"start", "idle", "idle connection"} {
		show(b, measure)
	}
}

// idle notes what a server that has just been started occupies, and what each of many connections adds that has asked once.
func idle(s side, note func(line, server string, value float64)) error {
	note("start", s.name, s.ready.Seconds()*1e3)
	pids := family(s.cmd.Process.Pid)
	time.Sleep(time.Second)
	start, err := memoryOf(pids)
	if err != nil {
		return err
	}
	note("resident", s.name, mib(start.resident))
	note("anonymous", s.name, mib(start.anonymous))
	if err := wear(s, 200); err != nil {
		return err
	}
	before, err := settled(pids)
	if err != nil {
		return err
	}
	note("login", s.name, mib(before.peak))
	note("settled", s.name, mib(before.resident))
	n := bench.scale.Idle
	for range n {
		c, err := dial(s)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := get(c, wearFile, 7); err != nil {
			return err
		}
	}
	after, err := memoryOf(pids)
	note("connection", s.name, float64(after.resident-before.resident)/1024/float64(n))
	return err
}

const wearFile = "/wear/file-000000.txt"

// wear has one client log in, and then some come and go with n requests in all: what a server makes once for all of them is not to be
// counted. After many the garbage of the login, 64 MiB that would hide what comes next, has been collected.
func wear(s side, n int) error {
	if err := fill(s, "wear", 1); err != nil {
		return err
	}
	ask := func(c *conn, _ int) error { return get(c, wearFile, 7) }
	if err := each(s, 1, 1, ask); err != nil {
		return err
	}
	return each(s, connections, n, ask)
}

// settled is what processes occupy once they have stopped to give memory back, or after a while: Go gives it back slowly.
func settled(pids []int) (memory, error) {
	last, err := memoryOf(pids)
	for range 10 {
		if err != nil {
			break
		}
		time.Sleep(time.Second)
		before := last
		if last, err = memoryOf(pids); last.resident > before.resident-before.resident/100 {
			break
		}
	}
	return last, err
}
