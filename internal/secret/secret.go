// Package secret holds strings that must not be printed: passwords, tokens, keys.
package secret

import (
	"encoding"
	"fmt"
	"log/slog"
)

// String is a secret. Every way of printing, logging or encoding it yields "…"; Reveal is the only way to the value.
type String struct{ v string }

const hidden = "…"

var (
	_ fmt.Formatter            = String{}
	_ slog.LogValuer           = String{}
	_ encoding.TextMarshaler   = String{}
	_ encoding.TextUnmarshaler = (*String)(nil)
)

// New returns v as a secret.
func New(v string) String { return String{v} }

// Reveal returns the value. Call it where the value is used, not before.
func (s String) Reveal() string { return s.v }

// IsZero reports whether the secret is empty.
func (s String) IsZero() bool { return s.v == "" }

// Format prints "…" whatever the verb.
func (s String) Format(f fmt.State, _ rune) { fmt.Fprint(f, hidden) }

// LogValue logs "…".
func (s String) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText encodes "…", so that a secret never leaves through JSON or YAML.
func (s String) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// UnmarshalText reads the value, for configuration.
func (s *String) UnmarshalText(b []byte) error { s.v = string(b); return nil }
