// Package protocols holds the doors: how clients talk to us. It has no code of its own; each protocol is a package below it.
//
// What every protocol package owes:
//
//   - It translates: decode, call the gateway's Session, encode. If two protocols need the same if, it belongs in the gateway.
//   - Credentials go to identity.Login, which owns passwords, budgets and the cache of verified ones. No package compares users or roles.
//   - A Session is made once per login and bound to each request by With, which tells the core the protocol, the client's address, its
//     agent and the request id. Addresses behind proxies are decided by the appliance and come through the Config.
//   - Paths from the wire become gateway.Path in one place per package, decoded exactly once.
//   - One table turns fault kinds into the protocol's statuses, and a test proves that none is missing. Clients see the kind's words;
//     the cause goes to the log with the request id, once.
//   - Whatever a client sends has a bound: sizes, counts, nesting, time without progress. Whoever stalls is cut off, whoever is merely slow
//     is not. Uploads that end early are aborted, never published.
//   - Parsers of foreign bytes have a Fuzz function. The standard is cited beside the code that obeys it.
//   - It imports gateway, policy and internal, never mounts or store.
package protocols
