// Package appliance is the box: it wires the house together, reads its configuration, opens its doors, and is looked after from the shell.
//
// Wiring is by plain calls from the bottom to the top, in box.go. Commands that need a running box speak HTTP with it over the socket
// admin.sock in its data folder, whose mode, 0600, is the login: who may read the folder could do all that the commands do anyway. The
// handlers behind the socket take typed requests and give typed results, so that they can be served elsewhere.
package appliance

//go:generate sh -c "go run ./cellgate config > config.example.yaml"
