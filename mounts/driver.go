package mounts

import (
	"context"
	"log/slog"

	"cellgate/internal/secret"
)

// Driver is a kind of backend: its name in a declared state, what it can be told, and how it is opened. The table of all is mounts/all.
type Driver struct {
	Name    string
	Options []Option
	Open    func(ctx context.Context, cfg Config) (Backend, error)
	Check   func(cfg Config) []error // every problem that shows without touching the storage; nil: none can
}

// Option describes one key of a datasource's options.
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
}
