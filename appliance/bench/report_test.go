package bench

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
)

// spread is what the rounds gave.
type spread struct{ Median, Min, Max float64 }

func spreadOf(values []float64) spread {
	s := slices.Sorted(slices.Values(values))
	if len(s) == 0 {
		return spread{}
	}
	return spread{(s[(len(s)-1)/2] + s[len(s)/2]) / 2, s[0], s[len(s)-1]}
}

func (s spread) String() string {
	return fmt.Sprintf("%s [%s-%s]", number(s.Median), number(s.Min), number(s.Max))
}

// number prints three digits or the whole.
func number(f float64) string {
	switch {
	case f >= 100 || f <= -100:
		return fmt.Sprintf("%.0f", f)
	case f >= 10 || f <= -10:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

// goal is a bound of the design on our value, on its ratio to a peer's, or on the difference.
type goal struct {
	no    string // "PERFORMANCE 3"
	ratio string // to this peer
	minus string // this peer
	least float64
	most  float64 // 0: none
}

func (g goal) String() string {
	of := ""
	switch {
	case g.ratio != "":
		of = " x " + g.ratio
	case g.minus != "":
		of = " over " + g.minus
	}
	if g.most != 0 {
		return fmt.Sprintf("%s: <= %v%s", g.no, g.most, of)
	}
	return fmt.Sprintf("%s: >= %v%s", g.no, g.least, of)
}

// verdict compares the rounds with the goal.
func (g goal) verdict(s spread) string {
	good := func(f float64) bool { return f >= g.least }
	if g.most != 0 {
		good = func(f float64) bool { return f <= g.most }
	}
	switch {
	case good(s.Median):
		return "reached"
	case good(s.Min) || good(s.Max):
		return "open"
	}
	return "missed"
}

// Line is one number of one measure, of all servers.
type Line struct {
	Measure string
	Metric  string
	Values  map[string]spread  // by server
	Ratios  map[string]spread  `json:",omitempty"` // ours by each peer's, within the rounds
	Goals   map[string]Outcome `json:",omitempty"` // by goal
}

// Outcome is how the box does by a goal.
type Outcome struct {
	Value   spread
	Verdict string
}

// report is the table.
type report struct {
	Scale scale
	Lines []*Line
	Notes []string
}

// add makes a line of the values of the rounds, by server.
func (r *report) add(name, metric string, values map[string][]float64, goals []goal) *Line {
	l := &Line{Measure: name, Metric: metric, Values: map[string]spread{}, Ratios: map[string]spread{}, Goals: map[string]Outcome{}}
	pair := func(peer string, f func(a, b float64) float64) spread {
		var all []float64
		for i := range values[peer] {
			all = append(all, f(values[ours][i], values[peer][i]))
		}
		return spreadOf(all)
	}
	divide := func(a, b float64) float64 { return a / b }
	for server, v := range values {
		l.Values[server] = spreadOf(v)
		if server != ours && !slices.Contains(v, 0) {
			l.Ratios[server] = pair(server, divide)
		}
	}
	for _, g := range goals {
		s := l.Values[ours]
		peer := cmp.Or(g.ratio, g.minus)
		if peer != "" && len(values[peer]) == 0 {
			continue
		}
		switch {
		case g.ratio != "":
			s = pair(peer, divide)
		case g.minus != "":
			s = pair(peer, func(a, b float64) float64 { return a - b })
		}
		l.Goals[g.String()] = Outcome{s, g.verdict(s)}
	}
	r.Lines = append(r.Lines, l)
	return l
}

// set makes a line of one value of ours, in the place of an earlier one.
func (r *report) set(name, metric string, value float64) {
	r.Lines = slices.DeleteFunc(r.Lines, func(l *Line) bool { return l.Measure == name && l.Metric == metric })
	r.add(name, metric, map[string][]float64{ours: {value}}, nil)
}

// metrics reports the line as a benchmark does: our median, and its ratios to the peers.
func (l *Line) metrics(b *testing.B) {
	unit := strings.ReplaceAll(l.Metric, " ", "-")
	b.ReportMetric(l.Values[ours].Median, unit)
	for _, peer := range everyone[1:] {
		if ratio, ok := l.Ratios[peer]; ok {
			b.ReportMetric(ratio.Median, unit+"/"+peer)
		}
	}
}

// print writes the table for people.
func (r *report) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s run, %d rounds, %d with new servers, %d processors; median [least-greatest]; ratios are ours by theirs\n\n", r.Scale.Name, r.Scale.Rounds, r.Scale.Starts, runtime.NumCPU())
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "measure\tunit\tcellgate\tsynced\tnginx\tapache\tgofloor\t/nginx\t/apache\t/gofloor\t")
	for _, l := range r.Lines {
		if l.chained() {
			continue
		}
		fmt.Fprintf(tw, "%s\t%s\t", l.Measure, l.Metric)
		for _, server := range []string{ours, synced, nginx, apache, bare} {
			fmt.Fprintf(tw, "%s\t", cell(l.Values, server))
		}
		for _, server := range everyone[1:] {
			fmt.Fprintf(tw, "%s\t", cell(l.Ratios, server))
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
	r.printChains(w)
	fmt.Fprintln(w, "\ngoals of PERFORMANCE")
	for _, l := range r.Lines {
		for _, g := range slices.Sorted(maps.Keys(l.Goals)) {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%v\n", l.Goals[g].Verdict, l.Measure, l.Metric, g, l.Goals[g].Value)
		}
	}
	tw.Flush()
	for _, note := range r.Notes {
		fmt.Fprintln(w, "note:", note)
	}
}

func cell(m map[string]spread, key string) string {
	if s, ok := m[key]; ok {
		return s.String()
	}
	return "-"
}
