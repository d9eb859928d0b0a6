package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// sample is one run of a measure on one server.
type sample struct {
	wall, cpu time.Duration
	first     time.Duration // to the first byte, where it is looked at
	peak      int64         // bytes of memory
	units     float64       // done: GiB, operations, listings
}

// metric is a number of a sample.
type metric struct {
	name string // with its unit
	of   func(s sample) float64
}

var (
	rate    = metric{"op/s", func(s sample) float64 { return s.units / s.wall.Seconds() }}
	micros  = metric{"CPU µs/op", func(s sample) float64 { return s.cpu.Seconds() * 1e6 / s.units }}
	speed   = metric{"MiB/s", func(s sample) float64 { return s.units * 1024 / s.wall.Seconds() }}
	perGiB  = metric{"CPU s/GiB", func(s sample) float64 { return s.cpu.Seconds() / s.units }}
	peak    = metric{"peak MiB", func(s sample) float64 { return mib(s.peak) }}
	total   = metric{"ms", func(s sample) float64 { return s.wall.Seconds() * 1e3 / s.units }}
	first   = metric{"first byte ms", func(s sample) float64 { return s.first.Seconds() * 1e3 }}
	cpuEach = metric{"CPU ms", func(s sample) float64 { return s.cpu.Seconds() * 1e3 / s.units }}
)

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// measure is a load that each of some servers gets.
type measure struct {
	name    string
	sides   []string
	metrics []metric
	goals   map[string][]goal // by metric
	warm    bool              // a round before the first is thrown away
	prepare func(s side) error
	run     func(s side, n int) (units float64, first time.Duration, err error) // n numbers the runs on a side, from 0
	cleanup func(s side) error
}

// do makes the rounds, adds the lines to the report and reports ratios to b.
func (m measure) do(b *testing.B) {
	b.Helper()
	l := &bench
	l.open(b)
	sides := l.of(m.sides...)
	if !l.seen[m.name] {
		l.seen[m.name] = true
		samples, err := m.rounds(sides, l.scale.Rounds)
		if err != nil {
			b.Fatal(err)
		}
		for _, metric := range m.metrics {
			values := map[string][]float64{}
			for _, s := range sides {
				for _, round := range samples {
					values[s.name] = append(values[s.name], metric.of(round[s.name]))
				}
			}
			l.report.add(m.name, metric.name, values, m.goals[metric.name])
		}
	}
	show(b, m.name)
}

func (m measure) rounds(sides []side, n int) (rounds []map[string]sample, err error) {
	for _, s := range sides {
		if m.prepare != nil {
			if err := m.prepare(s); err != nil {
				return nil, err
			}
		}
	}
	begin := 0
	if m.warm {
		begin = -1
	}
	for i := begin; i < n; i++ {
		round := map[string]sample{}
		for k := range sides {
			s := sides[(k+i+len(sides))%len(sides)]
			if round[s.name], err = m.once(s, i-begin); err != nil {
				return nil, err
			}
		}
		if i >= 0 {
			rounds = append(rounds, round)
		}
	}
	for _, s := range sides {
		if m.cleanup != nil {
			if err := m.cleanup(s); err != nil {
				return nil, err
			}
		}
	}
	return rounds, nil
}

// once is one run on one side, between two looks at its processes.
func (m measure) once(s side, n int) (got sample, err error) {
	pids := family(s.cmd.Process.Pid)
	resetPeak(pids)
	if err := s.profile(m.name, true); err != nil {
		return got, err
	}
	before, err := cpuOf(pids)
	if err != nil {
		return got, err
	}
	began := time.Now()
	if got.units, got.first, err = m.run(s, n); err != nil {
		return got, err
	}
	got.wall = time.Since(began)
	now := family(s.cmd.Process.Pid)
	after, err := cpuOf(now)
	if err != nil {
		return got, err
	}
	if !slices.Equal(now, pids) {
		return got, fmt.Errorf("%s: its processes changed during %s", s.name, m.name)
	}
	got.cpu = after - before
	if err := s.profile(m.name, false); err != nil {
		return got, err
	}
	used, err := memoryOf(now)
	got.peak = used.peak
	return got, err
}
