// Package bench measures the box beside its peers: nginx with its dav modules, Apache mod_dav and a bare net/http server ("gofloor"), each
// a process of its own, over the real protocol, in the same run on the same machine. It is benchmarks only; none of them can fail by being
// slow.
//
//	go test -run '^$' -bench . ./appliance/bench                      everything, about a quarter of an hour
//	CELLGATE_BENCH=quick go test -run '^$' -bench . ./appliance/bench small sizes and three rounds, less than two minutes
//	go test -run '^$' -bench Put ./appliance/bench -args -json FILE   some of them, the table also as JSON
//	CELLGATE_BENCH=quick go test -run '^$' -bench 'Chain/^sftp$' ./appliance/bench   the box in front of one kind of backend, some minutes
//
// Each measure goes round the servers several times (A B C D, B C D A, …), so that what else the machine does hits all alike. Of each round
// come the wall time, the CPU time of the server's whole process tree (the clients' is not in it) and its peak memory; of the rounds the
// median, the least and the greatest, and of two servers the ratio within each round. At the end a table sets them beside the goals of the
// design (PERFORMANCE 1-5, 17, 18): a goal counts as reached when the median is on its good side, as missed when every round is on its bad
// side, and as open in between. A peer that is not installed is left out, and said so.
//
// Files, temporary files and the box's data lie in /dev/shm where that is large enough, or in the folder CELLGATE_BENCH_DIR. In memory a
// sync costs nearly nothing: what durability costs on a disk is to be measured on that disk. The box asks for a password with each request,
// checks rights, writes audit records and replaces atomically; of the peers none does more than the last. The box's workspace is of
// durability "written", as nginx and the others work; the column "synced" is the box's default. Nobody writes an access log.
//
// The chains (PERFORMANCE 13-16) set the box in front of a real server of each kind beside that kind's usual client library, over the same
// link, with round trips of 0 and of 20 ms; where there is no such library (FTP) beside our driver alone. The direct client of SFTP writes
// several packets at once, which its library does only when told; files are replaced atomically by the box only, which costs FTP, SFTP, SMB
// and WebDAV a rename. "Round trips" are the time of a single operation by that of a round trip of 100 ms.
//
// CELLGATE_BENCH_ROUNDS=N sets the rounds. CELLGATE_BENCH_PROFILE=DIR leaves a CPU profile of the box per measure there, for go tool pprof.
package bench
