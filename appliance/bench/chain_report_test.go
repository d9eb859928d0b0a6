package bench

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"text/tabwriter"
)

// chained reports whether a line is of a chain.
func (l *Line) chained() bool {
	name, _, _ := strings.Cut(l.Measure, ",")
	for _, k := range kinds {
		if k.name == name {
			return true
		}
	}
	return false
}

// metricsOf reports one event of a chain as a benchmark does.
func (l *Line) metricsOf(b *testing.B, event string) {
	unit := strings.ReplaceAll(event+" "+l.Metric, " ", "-")
	b.ReportMetric(l.Values[ours].Median, unit)
	if ratio, ok := l.Ratios[direct]; ok {
		b.ReportMetric(ratio.Median, unit+"/"+direct)
	}
}

// printChains writes the table of the chains for people.
func (r *report) printChains(w io.Writer) {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	began := false
	for _, l := range r.Lines {
		if !l.chained() {
			continue
		}
		if !began {
			fmt.Fprintln(w, "\nchains: the box in front of a backend, and the backend's own client over the same link")
			fmt.Fprintln(tw, "\nmeasure\tunit\tcellgate\tdirect\tratio\t")
			began = true
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t\n", l.Measure, l.Metric, cell(l.Values, ours), cell(l.Values, direct), cell(l.Ratios, direct))
	}
	tw.Flush()
}
