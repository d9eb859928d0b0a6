package bench

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	smallSize   = 4 << 10
	connections = 16
)

// small are files that a measure writes, reads or deletes, spread over folders.
type small struct{ n int }

func (f small) path(run, i int) string { return fmt.Sprintf("/r%d/%d/f%05d", run, i%16, i) }

// folders makes the folders of a run.
func (f small) folders(s side, run int) error {
	for i := range 17 {
		path := fmt.Sprintf("/r%d/", run)
		if i > 0 {
			path += fmt.Sprintf("%d/", i-1)
		}
		if err := each(s, 1, 1, func(c *conn, _ int) error {
			_, err := c.do("MKCOL", path, "", nil)
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}

func (f small) each(s side, do func(c *conn, i int) error) (float64, time.Duration, error) {
	return float64(f.n), 0, each(s, connections, f.n, do)
}

func (f small) put(s side, run int) (float64, time.Duration, error) {
	body := make([]byte, smallSize)
	return f.each(s, func(c *conn, i int) error {
		_, err := c.do("PUT", f.path(run, i), "", body)
		return err
	})
}

// BenchmarkSmall writes, replaces, reads and deletes the same files, a measure each.
func BenchmarkSmall(b *testing.B) {
	bench.open(b)
	f := small{bench.scale.Ops}
	runs := bench.scale.Rounds + 1
	remove := func(s side) error {
		names, err := filepath.Glob(filepath.Join(s.files, "r*"))
		if err != nil || len(names) == 0 {
			return err
		}
		return each(s, 1, len(names), func(c *conn, i int) error {
			_, err := c.do("DELETE", "/"+filepath.Base(names[i])+"/", "", nil)
			return err
		})
	}
	folders := func(s side) error {
		for run := range runs {
			if err := f.folders(s, run); err != nil {
				return err
			}
		}
		return nil
	}
	filled := func(s side) error {
		err := folders(s)
		for run := range runs {
			if err == nil {
				_, _, err = f.put(s, run)
			}
		}
		return err
	}
	// What PERFORMANCE says in microseconds is 110 of 67 (nginx) and of 95 (gofloor) for PUT, 90 of 30 and of 80 for GET.
	putGoals := map[string][]goal{
		rate.name:   {{no: "3", ratio: nginx, least: 0.6}},
		micros.name: {{no: "3", most: 110}, {no: "3 (110 of 67 µs)", ratio: nginx, most: 1.64}, {no: "18", minus: bare, most: 25}},
	}
	for _, m := range []measure{
		{name: "PUT 4 KiB, new", sides: everyMode, goals: putGoals, prepare: folders, run: f.put, cleanup: remove},
		{name: "PUT 4 KiB, replace", sides: everyMode, goals: putGoals, prepare: func(s side) error {
			if err := f.folders(s, 0); err != nil {
				return err
			}
			_, _, err := f.put(s, 0)
			return err
		}, run: func(s side, _ int) (float64, time.Duration, error) { return f.put(s, 0) }, cleanup: remove},
		{name: "GET 4 KiB", sides: everyone, goals: map[string][]goal{
			micros.name: {{no: "4", most: 90}, {no: "4 (90 of 30 µs)", ratio: nginx, most: 3}, {no: "18", minus: bare, most: 25}},
		}, prepare: func(s side) error {
			if err := f.folders(s, 0); err != nil {
				return err
			}
			_, _, err := f.put(s, 0)
			return err
		}, run: func(s side, _ int) (float64, time.Duration, error) {
			return f.each(s, func(c *conn, i int) error { return get(c, f.path(0, i), smallSize) })
		}, cleanup: remove},
		{name: "DELETE 4 KiB", sides: everyMode, goals: map[string][]goal{micros.name: {{no: "18", minus: bare, most: 25}}}, prepare: filled,
			run: func(s side, run int) (float64, time.Duration, error) {
				return f.each(s, func(c *conn, i int) error {
					_, err := c.do("DELETE", f.path(run, i), "", nil)
					return err
				})
			}, cleanup: remove},
	} {
		m.warm, m.metrics = true, []metric{rate, micros}
		b.Run(strings.ReplaceAll(strings.ReplaceAll(m.name, " 4 KiB", ""), ", ", "-"), m.do)
	}
}
