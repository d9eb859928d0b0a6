package mounts

import (
	"context"
	"log/slog"
	"net/netip"

	"cellgate/internal/dial"
	"cellgate/internal/secret"
)

// Driver is a kind of backend: its name in a declared state, what it can be told, and how it is opened. The table of all is mounts/all.
type Driver struct {
	Name    string
	Options []Option
	// Local says that it serves folders of this machine, which only an admin can mean.
	Local bool
	// Secrets are the keys of its credentials. Those that are Required make the mode "session" impossible unless they are username and password.
	Secrets []Option
	Open    func(ctx context.Context, cfg Config) (Backend, error)
	Check   func(cfg Config) []error // every problem that shows without touching the storage; nil: none can
}

// Option describes one key of a datasource's options or credentials.
type Option struct {
	Name     string
	Help     string
	Required bool
}

// Config is what a driver is opened with. Drivers refuse unknown options with Invalid, naming them.
type Config struct {
	Name        string                   // the datasource's, for errors and logs
	Options     map[string]string        // by Option.Name
	Credentials map[string]secret.String // username, password, privateKey, …
	ReadOnly    bool
	Unsynced    bool         // durability: written; leave syncing to the operating system
	Logger      *slog.Logger // nil discards

	// Allow are networks that may be dialled though they are private, or this machine's own; Guest says that the address was not an admin's
	// choice, but that of a user who completed a template: then even the host it names must be public or in Allow.
	Allow []netip.Prefix
	Guest bool

	// Known is what the datasource has been told to remember, such as the key of its server; Learn adds to it for good. Nil remembers nothing.
	Known map[string]string
	Learn func(key, value string) error
}

// Dialer returns the way to the storage's host, the only one a driver connects by: see package dial.
func (c Config) Dialer(host string) *dial.Dialer {
	d := &dial.Dialer{Allow: c.Allow}
	if !c.Guest {
		d.Host = host
	}
	return d
}
