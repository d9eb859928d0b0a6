package appliance

import (
	"io"
	"log/slog"
	"strings"
)

func logLevel(name string) (slog.Level, error) {
	var l slog.Level
	err := l.UnmarshalText([]byte(name))
	return l, err
}

// newLogger returns the log of the box. Secrets have a type that prints as "…"; what clients sent is quoted by the handlers.
func newLogger(c Log, w io.Writer) *slog.Logger {
	level, _ := logLevel(c.Level)
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: utc}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

func utc(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Time(slog.TimeKey, a.Value.Time().UTC())
	}
	return a
}

// lineLog gives the log.Logger of net/http a home in slog: TLS handshakes that fail and the like are for debugging, not for people.
type lineLog struct{ log *slog.Logger }

func (l lineLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(line))
	if strings.Contains(text, "panic") {
		l.log.Error("http server", "text", text)
	} else {
		l.log.Debug("http server", "text", text)
	}
	return len(line), nil
}
