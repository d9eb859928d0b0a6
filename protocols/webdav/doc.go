// Package webdav serves the gateway over WebDAV (RFC 4918, classes 1, 2 and 3) with quota properties (RFC 4331), Prefer (RFC 8144), and
// what ownCloud's, SabreDAV's, Microsoft's and Apple's clients add to it.
//
// # What is ours and what is golang.org/x/net/webdav's
//
// The library is the base of PROPPATCH alone: its decoding of set and remove, its protection of live properties, its all-or-nothing answer
// are sound once what reaches it is bounded and well-formed (proppatch.go feeds it a body that xml.go has read and written anew). Every
// other verb is our own, each for a fault that cannot be mended from outside a webdav.Handler:
//
//   - PUT truncates before it reads and publishes torsos; If-Match, If-None-Match and Content-Range are ignored.
//   - COPY, MOVE and DELETE remove the destination first, copy a folder into itself, and overlook locks on members.
//   - GET hides the descriptor, so there is no sendfile, and refuses folders.
//   - PROPFIND opens each child, serves Depth infinity without limit, accepts broken namespaces, and knows neither quota nor locks.
//   - LOCK knows exclusive locks only and copies the owner's XML with its prefixes unbound; LockSystem has no notion of a user.
//   - The If header's entity tags are parsed and thrown away.
//
// # Order of a request
//
// Method known, path canonical, login, If header parsed, headers of the verb checked, conditions of the request target, then the core. The
// core checks conditions once more under its publish lock (gateway.Cond). No byte of a body is read before the early checks have passed,
// so a client that sends "Expect: 100-continue" is spared the upload.
//
// # Time
//
// The handler has no deadline for a whole transfer. It moves the connection's deadlines along with progress, so that a client which stalls
// is cut off after Config.Stall. The http.Server in front should set ReadHeaderTimeout, IdleTimeout and WriteTimeout, not ReadTimeout.
package webdav
