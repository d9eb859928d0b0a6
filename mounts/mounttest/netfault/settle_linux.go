package netfault

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// settle waits until the other machine has what was written, for at most a second: a reset throws away what the kernel still holds.
func settle(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
		held := 0
		if err := raw.Control(func(fd uintptr) { held, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil || held == 0 {
			return
		}
	}
}
