package bench

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// family returns pid and all processes below it.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", all[i]))
		for _, task := range tasks {
			text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", all[i], task.Name()))
			for _, field := range strings.Fields(string(text)) {
				if child, err := strconv.Atoi(field); err == nil {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

// cpuOf returns the user and system time that the processes have used, to the nanosecond: the kernel has a clock per process, and an
// unprivileged reader may ask for it.
func cpuOf(pids []int) (sum time.Duration, err error) {
	for _, pid := range pids {
		var t unix.Timespec
		const scheduled = 2 // CPUCLOCK_SCHED of linux/posix-timers.h
		if err := unix.ClockGettime(int32(^pid<<3|scheduled), &t); err != nil {
			return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// memory is what processes occupy, in bytes, pages that they share counted in each.
type memory struct {
	resident, peak int64
	anonymous      int64 // of resident, what is no file's: heap and stacks
}

func memoryOf(pids []int) (sum memory, err error) {
	for _, pid := range pids {
		f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return sum, err
		}
		for lines := bufio.NewScanner(f); lines.Scan(); {
			key, value, _ := strings.Cut(lines.Text(), ":")
			into := map[string]*int64{"VmRSS": &sum.resident, "VmHWM": &sum.peak, "RssAnon": &sum.anonymous}[key]
			if into == nil {
				continue
			}
			kib, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			*into += kib << 10
		}
		f.Close()
	}
	return sum, nil
}

// resetPeak makes what the processes occupy now their peak. Who may not do it keeps the old one.
func resetPeak(pids []int) {
	for _, pid := range pids {
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
}
