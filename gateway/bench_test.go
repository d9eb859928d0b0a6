package gateway_test

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/mounts"
	"cellgate/mounts/local"
)

// onMemory is a local datasource in a folder that is memory where the machine has one: what is measured is the core, not the disk.
func onMemory(b *testing.B) *gatewaytest.House {
	b.Helper()
	root := "/dev/shm"
	if _, err := os.Stat(root); err != nil {
		root = b.TempDir()
	}
	dir, err := os.MkdirTemp(root, "cellgate-bench-")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	disk, err := local.Driver().Open(b.Context(), mounts.Config{Name: "disk", Options: map[string]string{"path": dir}})
	if err != nil {
		b.Fatal(err)
	}
	return gatewaytest.New(b, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
}

// cpu returns the processor time of this process so far, in microseconds.
func cpu() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec)*1e6 + float64(u.Utime.Usec+u.Stime.Usec)
}

// perOp reports the processor time of one operation: wall time says little while 16 wait for each other's commits.
func perOp(b *testing.B, run func()) {
	b.ResetTimer()
	before := cpu()
	run()
	b.StopTimer()
	b.ReportMetric((cpu()-before)/float64(b.N), "cpu-µs/op")
}

func BenchmarkPut4K(b *testing.B) {
	h := onMemory(b)
	s := h.As("alice")
	content := make([]byte, 4096)
	var n atomic.Int64
	b.SetParallelism(8)
	perOp(b, func() {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := gatewaytest.Write(b.Context(), s, gatewaytest.Path(fmt.Sprint("/docs/f", n.Add(1))), content, gateway.Cond{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

func BenchmarkGet4K(b *testing.B) {
	h := onMemory(b)
	s := h.As("alice")
	p := gatewaytest.Path("/docs/f")
	if err := gatewaytest.Write(b.Context(), s, p, make([]byte, 4096), gateway.Cond{}); err != nil {
		b.Fatal(err)
	}
	b.SetParallelism(8)
	perOp(b, func() {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				f, err := s.Open(b.Context(), p, gateway.ReadOptions{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.CopyTo(b.Context(), io.Discard, 0, 4096); err != nil {
					b.Fatal(err)
				}
				f.Close()
			}
		})
	})
}

func BenchmarkRemove(b *testing.B) {
	h := onMemory(b)
	s := h.As("alice")
	for i := range b.N {
		if err := gatewaytest.Write(b.Context(), s, gatewaytest.Path(fmt.Sprint("/docs/f", i)), nil, gateway.Cond{}); err != nil {
			b.Fatal(err)
		}
	}
	var n atomic.Int64
	b.SetParallelism(8)
	perOp(b, func() {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := s.Remove(b.Context(), gatewaytest.Path(fmt.Sprint("/docs/f", n.Add(1)-1)), gateway.RemoveOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

func BenchmarkList10k(b *testing.B) {
	h := onMemory(b)
	s := h.As("alice")
	for i := range 10_000 {
		if err := gatewaytest.Write(b.Context(), s, gatewaytest.Path(fmt.Sprint("/docs/f", i)), nil, gateway.Cond{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	perOp(b, func() {
		for range b.N {
			n := 0
			for _, err := range s.List(b.Context(), gatewaytest.Path("/docs")) {
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
			if n != 10_000 {
				b.Fatal(n, "entries")
			}
		}
	})
}
