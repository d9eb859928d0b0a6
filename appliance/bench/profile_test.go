package bench

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"cellgate/appliance"
)

// profiled is the box, in a process of this program, which starts a CPU profile on SIGUSR1 and ends it on SIGUSR2. The profile is in the file
// that dir/next names. Profiling costs some percent of the CPU time that is measured with it.
func profiled(args []string, dir string) int {
	begin := make(chan os.Signal, 1)
	signal.Notify(begin, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		var f *os.File
		for s := range begin {
			if s == syscall.SIGUSR1 && f == nil {
				name, _ := os.ReadFile(filepath.Join(dir, "next"))
				f, _ = os.Create(filepath.Join(dir, string(name)))
				_ = pprof.StartCPUProfile(f)
			} else if s == syscall.SIGUSR2 && f != nil {
				pprof.StopCPUProfile()
				_ = f.Close()
				f = nil
			}
		}
	}()
	return appliance.Main(args, os.Stdin, os.Stdout, os.Stderr)
}

// profileNumber counts the profiles of this run.
var profileNumber atomic.Int32

// profile begins or ends a profile of the box; it does nothing for others, and without a folder for profiles.
func (s *side) profile(measure string, begin bool) error {
	dir := os.Getenv(profileEnv)
	if dir == "" || s.server.name != ours {
		return nil
	}
	sign := syscall.SIGUSR2
	if begin {
		sign = syscall.SIGUSR1
		words := strings.NewReplacer(" ", "-", ",", "", ":", "").Replace(s.name + "-" + measure)
		name := fmt.Sprintf("%s-%d.pprof", words, profileNumber.Add(1))
		if err := os.WriteFile(filepath.Join(dir, "next"), []byte(name), 0o644); err != nil {
			return err
		}
	}
	err := s.cmd.Process.Signal(sign)
	time.Sleep(300 * time.Millisecond) // the writer of profiles looks every 100 ms
	return err
}
