// Package gateway is the core: what a file operation means, decided once for every protocol.
//
//	client ── protocol: authenticate → identity.Login → policy.Subject → Gateway.Session
//	             │
//	             ▼
//	  Session.Verb(ctx, Path, …)
//	     begin:  Path → workspace → datasource and place        (resolve.go)
//	             budget of the principal                         (budget.go)
//	             policy.View.Decide, fail closed                 (op.go)
//	     verb:   locks (lock.go), preconditions (cond.go), quota (policy/quota)
//	             bytes to a staged file in the datasource's Area (upload.go)
//	     commit: publish lock of the node (serial.go)
//	             preconditions, locks and rights once more
//	             ONE store transaction: journal, node, quota, audit record
//	             the last step on the backend: one rename
//	     end:    refusals recorded, event published, budget returned
//
// # How a write becomes durable
//
// The store transaction is the commit point. It holds the audit record, the node row, the quota and a journal row which says what is still
// to be done on the backend: one rename of what is already staged and synced. After the transaction the rename is a redo: if the process
// dies in between, New replays the journal and does it. So mutation and audit record are one, a reader sees old or new and never a part,
// and an operation costs one wait for the store instead of two (an intent before and a confirmation after). The journal row also says how
// to take the transaction back (journal.go): when the rename fails, or can no longer be done at the next start since its place has changed
// from outside, rows, quotas and grants become exactly what they were, and the failure is recorded. Journal rows of finished operations are
// removed with whatever commits next; replaying one of them again changes nothing (replay.go).
//
// Replacing anything but a file by a file takes two renames: the old one goes aside first, and is deleted when all is done (area.go). A move
// between file systems is a copy that is published, and then the source put aside, if it is still what was copied.
//
// # Across a network
//
// A rename there is a round trip more, or none is one step. So nothing is staged on such a backend: what is written goes to its own atomic Put
// while it comes, and the last of it is held back until the transaction is committed (outbound.go); reads are streams (inbound.go). The
// journal's step is then the Put, Mkdir or Remove itself (step.go). What only the running operation had, a replay cannot put again: it looks
// whether the place is still what it was, and takes the transaction back if so. A step whose outcome nobody can tell, since the backend has
// gone, and one that is many there, such as moving a folder by copying, stays in the journal and is gone on with when the backend is back.
//
// Such a backend stands behind a chain of wrappers (chain.go): what they remember is believed for a stated age, except where a condition or a
// replay asks, which is of the backend itself. Datasources may be opened with each user's own credentials: then there is a backend for each
// user (tenant.go), and a journal entry belongs to who made it.
//
// The audit log is the outbox as well: it is ordered, durable and written in the transaction of the mutation, so whoever must not miss an
// event reads it from a sequence number on. The bus (package event) carries hints in process.
//
// # Order of locks
//
// A verb takes the publish locks of its places (serial.go; those of two datasources in the order of their names), then the store. Nothing
// waits for a client while it holds one; only a move between file systems copies under it, so that nothing written meanwhile is lost.
package gateway
