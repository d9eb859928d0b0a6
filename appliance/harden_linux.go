package appliance

import "golang.org/x/sys/unix"

// harden keeps what the process remembers to itself: files it makes are readable by its user only, and its memory, which holds keys and
// passwords, is neither dumped when it crashes nor open to other processes of the user.
func harden() error {
	unix.Umask(0o077)
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	return unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
