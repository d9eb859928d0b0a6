// Package sftp serves the gateway over SFTP: version 3 of the protocol (draft-ietf-secsh-filexfer-02) with the extensions of OpenSSH, over SSH.
//
// # What is ours and what is a library's
//
// golang.org/x/crypto/ssh is the transport. The packets are our own: the RequestServer of github.com/pkg/sftp knows no fsync, limits, copy-data,
// lsetstat, home-directory, users-groups-by-id and expand-path, answers all but reads and writes one by one, closes files under the lock of the
// session, and turns questions about open files into ones about their paths. Its client is what the tests use.
//
// # Order
//
// The draft lets a server answer in any order, and clients rely on OpenSSH's, which is that of the requests. Here requests on one handle are
// carried out in their order; requests on paths wait for earlier ones on the same path, or on one above or below it, if one of the two changes
// something (a close of a written file does); everything else runs side by side, so that a datasource that stalls holds up nobody else.
//
// # Writing
//
// What is written appears under its name when the close is answered, or an fsync, and then whole: a connection that breaks leaves nothing, except
// of files whose name says that they are parts (".filepart", ".part"): what has come of these is kept, up to the first gap, so that clients can
// go on with them. Who still writes a file sees it by stat and setstat already, as sshfs needs it; a handle follows its file when the same
// session renames it, and writes to nobody's file any more once that has been removed. A file that was opened without truncation and that somebody
// else has changed meanwhile is not overwritten: the close fails.
//
// A file that is opened for reading and writing at once, without truncation, is one that somebody works on, and not one that is sent: it is
// changed in place, as on a local disk, where the datasource can.
//
// Clients that are known to write files from start to end (those that ask for limits@openssh.com, such as sftp and scp, and some by name)
// stream: to a datasource across a network the bytes go while they come, and what arrives slightly out of order waits in a bounded window.
// Others, such as sshfs, may write at any place; their files are put together on this machine first.
//
// # Paths and links
//
// "/" lists the workspaces, and is where everybody starts; ".." is resolved by name. Links are shown and read as they are stored, and followed
// when they are used, within the datasource and within the rights of who follows them. A link is made with the target it is given, with one
// exception: an absolute target within the same workspace becomes a relative one, so that it leads to the same file for all users, on all doors
// and on the server's own disk. Other absolute targets lead nowhere.
//
// Owners are not kept: every node seems to be its reader's, and changes of owner are accepted and have no effect. Modes and times are kept as the
// datasource can. Modes restrict nobody: rights are a matter of grants.
package sftp
