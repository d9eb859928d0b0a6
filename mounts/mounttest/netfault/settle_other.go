//go:build !linux

package netfault

import (
	"net"
	"time"
)

// settle gives the other machine some time to take what was written: a reset throws away what the kernel still holds.
func settle(*net.TCPConn) { time.Sleep(20 * time.Millisecond) }
