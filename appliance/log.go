package appliance

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
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

// requestLine is the message of the line that the log has for each request.
const requestLine = "request"

// lines gathers the lines of requests, which come by the thousand, and writes them together a moment later. Every other line is written at
// once, with those before it, so their order is that of time. What a kill loses is a moment of request lines; the audit log loses nothing.
type lines struct {
	out  io.Writer
	mu   sync.Mutex
	held []byte      // guarded by mu
	due  *time.Timer // guarded by mu; nil while nothing is held
}

// The most that request lines wait, and take.
const (
	linesWait = 100 * time.Millisecond
	linesSize = 32 << 10
)

// Write holds p, which is whole lines.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, p...)
	if len(l.held) >= linesSize {
		return len(p), l.flush()
	}
	if l.due == nil {
		l.due = time.AfterFunc(linesWait, func() { _ = l.Flush() })
	}
	return len(p), nil
}

// Flush writes what is held.
func (l *lines) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flush()
}

func (l *lines) flush() error {
	if l.due != nil {
		l.due.Stop()
		l.due = nil
	}
	if len(l.held) == 0 {
		return nil
	}
	_, err := l.out.Write(l.held)
	l.held = l.held[:0]
	return err
}

// logger returns the log of the box on l.
func (l *lines) logger(c Log) *slog.Logger { return slog.New(prompt{newLogger(c, l).Handler(), l}) }

// prompt is a handler that writes everything but request lines at once.
type prompt struct {
	slog.Handler
	lines *lines
}

func (h prompt) Handle(ctx context.Context, r slog.Record) error {
	err := h.Handler.Handle(ctx, r)
	if r.Message == requestLine && r.Level < slog.LevelWarn {
		return err
	}
	return errors.Join(err, h.lines.Flush())
}

func (h prompt) WithAttrs(attrs []slog.Attr) slog.Handler {
	return prompt{h.Handler.WithAttrs(attrs), h.lines}
}
func (h prompt) WithGroup(name string) slog.Handler {
	return prompt{h.Handler.WithGroup(name), h.lines}
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
