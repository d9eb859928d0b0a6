package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// chainScale is how much the chains carry.
type chainScale struct {
	large   int64
	files   int // small ones of a round
	alone   int // of one client at a distance
	entries int // of a folder
	ranges  int
}

func chainScaleOf(s scale) chainScale {
	if s.Name == "quick" {
		return chainScale{large: 64 << 20, files: 200, alone: 40, entries: 1000, ranges: 200}
	}
	return chainScale{large: 1 << 30, files: 1000, alone: 200, entries: 10_000, ranges: 1000}
}

// distances are the round trips between the box, or the direct client, and the backend.
var distances = []time.Duration{0, 20 * time.Millisecond}

// BenchmarkChain compares the way through the box with the backend's own client, kind by kind, near and far. Both go over the same relay, by
// connections made before any time is taken. CPU time and memory are the box's; far away, where one request comes every 20 ms, an operation
// finds the processor's caches cold and costs several times what it costs near.
func BenchmarkChain(b *testing.B) {
	bench.open(b)
	for _, k := range kinds {
		b.Run(k.name, func(b *testing.B) {
			if bench.seen["chain "+k.name] {
				return
			}
			bench.seen["chain "+k.name] = true
			c := openChain(b, k)
			if err := c.warm(); err != nil {
				b.Fatal(err)
			}
			for _, rtt := range distances {
				c.link.Delay(rtt / 2)
				b.Run(fmt.Sprintf("rtt=%v", rtt), func(b *testing.B) {
					b.Run("small-1", func(b *testing.B) { c.small(b, rtt, 1) })
					b.Run("small-16", func(b *testing.B) { c.small(b, rtt, connections) })
					b.Run("large", func(b *testing.B) { c.large(b, rtt) })
					b.Run("list", func(b *testing.B) { c.lists(b, rtt) })
					b.Run("range", func(b *testing.B) { c.ranges(b, rtt) })
				})
			}
			b.Run("writeback", c.writeBack)
			b.Run("trips", c.trips)
		})
	}
}

// event is something of a round that is timed.
type event struct {
	name    string
	metrics []metric
	goals   map[string][]goal
}

// each runs fn for all numbers below n, shared among so many connections of a party.
func (p *party) each(connections, n int, fn func(cl client, i int) error) error {
	var wg sync.WaitGroup
	errs := make([]error, connections)
	for k := range connections {
		wg.Go(func() {
			for i := k; i < n && errs[k] == nil; i += connections {
				errs[k] = fn(p.clients[k], i)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// take measures some work of a party; of the box also what its processes use.
func (c *chain) take(p *party, name string, units float64, work func() error) (got sample, err error) {
	var before time.Duration
	pids := family(c.box.cmd.Process.Pid)
	if p.name == ours {
		s := side{server: c.box, name: ours}
		if err := s.profile(name, true); err != nil {
			return got, err
		}
		defer func() { err = errors.Join(err, s.profile(name, false)) }()
		resetPeak(pids)
		if before, err = cpuOf(pids); err != nil {
			return got, err
		}
	}
	began := time.Now()
	if err := work(); err != nil {
		return got, fmt.Errorf("%s: %w", p.name, err)
	}
	got.units, got.wall = units, time.Since(began)
	if p.name == ours {
		after, err := cpuOf(pids)
		if err != nil {
			return got, err
		}
		used, err := memoryOf(pids)
		got.cpu, got.peak = after-before, used.peak
		return got, err
	}
	return got, nil
}

// compare lets the parties run rounds in turns and adds a line for each metric of each event.
func (c *chain) compare(b *testing.B, title string, parties []*party, events []event, run func(p *party, take func(event int, units float64, work func() error) error) error) {
	b.Helper()
	name := func(e event) string { return c.kind.name + ", " + title + ": " + e.name }
	if !bench.seen[name(events[0])] {
		bench.seen[name(events[0])] = true
		samples := make([]map[string][]sample, len(events))
		for i := range samples {
			samples[i] = map[string][]sample{}
		}
		for round := range bench.scale.Rounds {
			for k := range parties {
				p := parties[(k+round)%len(parties)]
				if err := p.renew(); err != nil {
					b.Fatal(err)
				}
				err := run(p, func(event int, units float64, work func() error) error {
					s, err := c.take(p, name(events[event]), units, work)
					samples[event][p.name] = append(samples[event][p.name], s)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		}
		for i, e := range events {
			for _, m := range e.metrics {
				values := map[string][]float64{}
				for party, all := range samples[i] {
					if party == direct && slices.Contains([]string{micros.name, perGiB.name, peak.name, cpuEach.name}, m.name) {
						continue // it is not the box that works
					}
					for _, s := range all {
						values[party] = append(values[party], m.of(s))
					}
				}
				bench.report.add(name(e), m.name, values, e.goals[m.name])
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for _, l := range bench.report.Lines {
		for _, e := range events {
			if l.Measure == name(e) {
				l.metricsOf(b, e.name)
			}
		}
	}
}

func at(rtt time.Duration) string { return fmt.Sprintf("%d ms", rtt.Milliseconds()) }

// warm makes the connections, and lets the box forget what the first login took.
func (c *chain) warm() error {
	for _, p := range []*party{c.ours, c.direct} {
		if err := p.want(connections); err != nil {
			return err
		}
		dir := p.root + c.fresh("warm")
		if err := p.clients[0].mkdir(dir); err != nil {
			return err
		}
		err := p.each(connections, 3*connections, func(cl client, i int) error {
			name := fmt.Sprintf("%s/%d", dir, i)
			if err := cl.put(name, smallSize); err != nil {
				return err
			}
			if _, err := cl.get(name, 0, -1); err != nil {
				return err
			}
			return cl.remove(name)
		})
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if err := c.ours.each(connections, 5000, func(cl client, _ int) error { _, err := cl.list(""); return err }); err != nil {
		return err
	}
	_, err := settled(family(c.box.cmd.Process.Pid))
	return err
}

// small writes, reads and deletes small files.
func (c *chain) small(b *testing.B, rtt time.Duration, connections int) {
	sc := chainScaleOf(bench.scale)
	n, least := sc.files, 0.6
	if rtt > 0 {
		least = 0.9
		if connections == 1 {
			n = sc.alone
		}
	}
	goals := map[string][]goal{rate.name: {{no: "14", ratio: direct, least: least}}, micros.name: {{no: "14", most: 400}}}
	var events []event
	for _, what := range []string{"PUT", "GET", "DELETE"} {
		events = append(events, event{what + " 4 KiB", []metric{rate, micros}, goals})
	}
	title := fmt.Sprintf("%s, %d clients", at(rtt), connections)
	c.compare(b, title, []*party{c.ours, c.direct}, events, func(p *party, take func(int, float64, func() error) error) error {
		dir := p.root + c.fresh("small")
		if err := p.clients[0].mkdir(dir); err != nil {
			return err
		}
		for i, do := range []func(cl client, name string) error{
			func(cl client, name string) error { return cl.put(name, smallSize) },
			func(cl client, name string) error { return whole(cl, name, smallSize) },
			func(cl client, name string) error { return cl.remove(name) },
		} {
			err := take(i, float64(n), func() error {
				return p.each(connections, n, func(cl client, i int) error { return do(cl, fmt.Sprintf("%s/f%05d", dir, i)) })
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// whole reads a file and checks how long it is.
func whole(cl client, name string, size int64) error {
	n, err := cl.get(name, 0, -1)
	if err == nil && n != size {
		err = fmt.Errorf("read %d bytes of %s, want %d", n, name, size)
	}
	return err
}

// large writes and reads a large file in one stream and in several, and a smaller one, for the memory that takes.
func (c *chain) large(b *testing.B, rtt time.Duration) {
	size := chainScaleOf(bench.scale).large
	least := 0.95
	if rtt > 0 && c.kind.name == "sftp" {
		least = 1.5
	}
	for _, load := range []struct {
		streams int
		size    int64
		parties []*party
	}{
		{1, size, []*party{c.ours, c.direct}}, {1, size / 4, []*party{c.ours}}, {bench.scale.Streams, size / int64(bench.scale.Streams), []*party{c.ours, c.direct}},
	} {
		if rtt > 0 && len(load.parties) == 1 {
			continue
		}
		goals := map[string][]goal{speed.name: {{no: "13", ratio: direct, least: least}}, peak.name: {{no: "17", most: 96}}}
		metrics := []metric{speed, perGiB, peak}
		events := []event{{"PUT", metrics, goals}, {"GET", metrics, goals}}
		title := fmt.Sprintf("%s, %s, %d streams", at(rtt), sizeName(load.size), load.streams)
		b.Run(fmt.Sprintf("%dx%s", load.streams, strings.ReplaceAll(sizeName(load.size), " ", "")), func(b *testing.B) {
			c.compare(b, title, load.parties, events, func(p *party, take func(int, float64, func() error) error) error {
				dir := p.root + c.fresh("large")
				if err := p.clients[0].mkdir(dir); err != nil {
					return err
				}
				all := func(do func(cl client, name string) error) func() error {
					return func() error {
						return p.each(load.streams, load.streams, func(cl client, i int) error { return do(cl, fmt.Sprintf("%s/%d", dir, i)) })
					}
				}
				units := gib(load.size) * float64(load.streams)
				return errors.Join(
					take(0, units, all(func(cl client, name string) error { return cl.put(name, load.size) })),
					take(1, units, all(func(cl client, name string) error { return whole(cl, name, load.size) })),
					all(func(cl client, name string) error { return cl.remove(name) })(),
				)
			})
		})
	}
}

// outdated is when the box believes nothing any more that it was told before.
const outdated = 5500 * time.Millisecond

// entries counts what is listed.
var entries = metric{"entries/s", func(s sample) float64 { return s.units / s.wall.Seconds() }}

// lists reads a folder that nobody has asked for before.
func (c *chain) lists(b *testing.B, rtt time.Duration) {
	n := chainScaleOf(bench.scale).entries
	var dirs []string
	for range 2 * bench.scale.Rounds {
		dirs = append(dirs, c.fresh("list"))
		if err := c.lay(plain+"/"+dirs[len(dirs)-1], n); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(outdated) // the box may have listed the folder that these are in
	events := []event{{fmt.Sprintf("list of %d", n), []metric{entries, peak}, map[string][]goal{entries.name: {{no: "15", ratio: direct, least: 0.95}}}}}
	c.compare(b, at(rtt), []*party{c.ours, c.direct}, events, func(p *party, take func(int, float64, func() error) error) error {
		dir := p.root + dirs[0]
		dirs = dirs[1:]
		return take(0, float64(n), func() error {
			got, err := p.clients[0].list(dir)
			if err == nil && got < n {
				err = fmt.Errorf("listed %d of %d", got, n)
			}
			return err
		})
	})
}

// ranges reads parts of a file at random. As no request of HTTP knows of another, neither client keeps the file open between them.
func (c *chain) ranges(b *testing.B, rtt time.Duration) {
	const size, part = 16 << 20, 64 << 10
	sc := chainScaleOf(bench.scale)
	name := c.fresh("ranges")
	if err := c.ours.renew(); err != nil {
		b.Fatal(err)
	}
	if err := c.ours.clients[0].put(name, size); err != nil {
		b.Fatal(err)
	}
	events := []event{{"64 KiB ranges", []metric{rate, micros}, map[string][]goal{rate.name: {{no: "15", ratio: direct, least: 0.95}}}}}
	for _, connections := range []int{1, connections} {
		n := sc.ranges
		if connections == 1 && rtt > 0 {
			n = sc.alone
		}
		b.Run(fmt.Sprint(connections), func(b *testing.B) {
			c.compare(b, fmt.Sprintf("%s, %d clients", at(rtt), connections), []*party{c.ours, c.direct}, events, func(p *party, take func(int, float64, func() error) error) error {
				return take(0, float64(n), func() error {
					return p.each(connections, n, func(cl client, _ int) error {
						got, err := cl.get(p.root+name, rand.Int64N(size-part), part)
						if err == nil && got != part {
							err = fmt.Errorf("a range of %d bytes, want %d", got, part)
						}
						return err
					})
				})
			})
		})
	}
}

// writeBack has the box acknowledge small files before the backend has them. Between rounds it has time to deliver.
func (c *chain) writeBack(b *testing.B) {
	rtt := distances[len(distances)-1]
	c.link.Delay(rtt / 2)
	p := &party{name: ours, dial: func() (client, error) { return c.door(late) }}
	if err := p.want(1); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.clients[0].close() })
	n := chainScaleOf(bench.scale).alone
	events := []event{{"PUT 4 KiB, write-back", []metric{rate, micros}, map[string][]goal{rate.name: {{no: "16", ratio: direct, least: 10}}}}}
	c.compare(b, at(rtt)+", 1 clients", []*party{p, c.directAt(late)}, events, func(p *party, take func(int, float64, func() error) error) error {
		dir := p.root + c.fresh("late")
		if err := p.clients[0].mkdir(dir); err != nil {
			return err
		}
		err := take(0, float64(n), func() error {
			return p.each(1, n, func(cl client, i int) error { return cl.put(fmt.Sprintf("%s/f%05d", dir, i), smallSize) })
		})
		for until := time.Now().Add(time.Minute); err == nil && p.name == ours; time.Sleep(200 * time.Millisecond) {
			got, lerr := c.direct.clients[0].list(late + "/" + dir)
			if lerr == nil && got >= n {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("%d of %d files have arrived after a minute (%v)", got, n, lerr)
			}
		}
		return err
	})
}
