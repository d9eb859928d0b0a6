package bench

import "testing"

func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		name   string
		goal   goal
		values []float64
		want   string
	}{
		{"median above the least", goal{least: 2}, []float64{1, 3, 4}, "reached"},
		{"median below the least, one round above", goal{least: 2}, []float64{1, 1.5, 3}, "open"},
		{"all below the least", goal{least: 2}, []float64{1, 1.5, 1.9}, "missed"},
		{"median of two below the most", goal{most: 2}, []float64{3, 0.5}, "reached"},
		{"all above the most", goal{most: 2}, []float64{2.1, 3}, "missed"},
		{"one round", goal{most: 2}, []float64{2}, "reached"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.goal.verdict(spreadOf(tt.values)); got != tt.want {
				t.Errorf("%v of %v is %s, want %s", tt.goal, tt.values, got, tt.want)
			}
		})
	}
}
