// Package e2e tests the whole box as its users meet it: the real binary in a process of its own, which can be killed, and real clients on
// loopback. The tests of published cases carry the names of RELIABILITY: D01, A05, W03.
//
// Everything lives in temporary folders and on free ports, and ends by process id. A test whose client program or right (root, FUSE, mounts)
// is missing is skipped and says so.
package e2e
