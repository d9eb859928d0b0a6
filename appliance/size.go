package appliance

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes as people write it: 1048576, 1MiB, 10GB; -1 stands for no limit.
type size int64

var units = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"PB", 1e15}, {"B", 1},
}

// UnmarshalText reads a size.
func (s *size) UnmarshalText(text []byte) error {
	number, factor := strings.TrimSpace(string(text)), int64(1)
	for _, u := range units {
		if n, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = strings.TrimSpace(n), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	switch {
	case err != nil, n < -1, n < 0 && factor != 1:
		return errors.New("no size of the form 1048576, 100MiB or 10GB, or -1 for no limit")
	case n > math.MaxInt64/factor:
		return errors.New("the size is too large")
	}
	*s = size(n * factor)
	return nil
}

// bytesText returns n for people; a negative n is not known, or no limit.
func bytesText(n int64) string {
	if n < 0 {
		return "-"
	}
	for i := 4; i >= 0; i-- {
		if u := units[i]; n >= u.bytes {
			return strconv.FormatFloat(float64(n)/float64(u.bytes), 'f', 1, 64) + " " + u.name
		}
	}
	return strconv.FormatInt(n, 10) + " B"
}
