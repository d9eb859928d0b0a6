package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
)

type serveCmd struct {
	Config    *string `help:"Configuration file [CELLGATE_CONFIG]. See cellgate config." placeholder:"FILE"`
	HTTP      *string `name:"http" help:"Address of HTTP, off for none." placeholder:"ADDR"`
	HTTPS     *string `name:"https" help:"Address of HTTPS." placeholder:"ADDR"`
	TLS       *string `name:"tls" help:"off, self-signed, files or acme." placeholder:"MODE"`
	SFTP      *string `name:"sftp" help:"Address of SFTP, off for none." placeholder:"ADDR"`
	S3        *string `name:"s3" help:"Address of S3, off for none." placeholder:"ADDR"`
	Services  *string `help:"Doors to open, comma-separated." placeholder:"A,B"`
	State     *string `help:"Declared state to apply at the start." placeholder:"FILE"`
	LogLevel  *string `name:"log-level" help:"debug, info, warn or error." placeholder:"LEVEL"`
	LogFormat *string `name:"log-format" help:"text or json." placeholder:"FORMAT"`
}

func (c *serveCmd) Run(t *term) error {
	flags := map[string]string{}
	for key, v := range map[string]*string{
		"http": c.HTTP, "tls.address": c.HTTPS, "tls.mode": c.TLS, "sftp": c.SFTP, "s3": c.S3, "services": c.Services, "state": c.State,
		"log.level": c.LogLevel, "log.format": c.LogFormat,
	} {
		if v != nil {
			flags[key] = *v
		}
	}
	if t.dataGiven {
		flags["data"] = t.cli.Data
	}
	file := lookup(t.environ, "CELLGATE_CONFIG")
	if c.Config != nil {
		file = *c.Config
	}
	l, err := Load(file, t.environ, flags)
	if err != nil {
		return err
	}
	if err := harden(); err != nil {
		return err
	}
	return serve(t.ctx, &l.Config, l.Warnings, func(s *server) error {
		s.announce(t.err)
		_, err := fmt.Fprintln(t.out, s.readyLine())
		return err
	}, t.err)
}

func lookup(environ []string, name string) string {
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// softMemory is what the runtime tries to stay below by collecting sooner. Hashing a password takes 64 MiB of it.
const softMemory = 192 << 20

// boundMemory sets the soft limit, unless GOMEMLIMIT says otherwise.
func boundMemory() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(softMemory)
	}
}

// serve runs a box until ctx ends, and then lets requests finish; a second signal cuts them off. It calls ready once every door accepts.
func serve(ctx context.Context, cfg *Config, warnings []string, ready func(*server) error, stderr io.Writer) (err error) {
	out := &lines{out: stderr}
	defer func() { err = errors.Join(err, out.Flush()) }()
	log := out.logger(cfg.Log)
	for _, w := range warnings {
		log.Warn(w)
	}
	boundMemory()
	b, err := openBox(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	s, err := newServer(ctx, b)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.firstState(ctx); err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	failed := s.start(ctx)
	if err := ready(s); err != nil {
		return err
	}
	for {
		select {
		case <-hup:
			s.reload()
			continue
		case err = <-failed:
			log.Error("door closed", "err", err)
		case err = <-b.lostLease():
			log.Error("stopping", "err", err)
		case <-ctx.Done():
		}
		break
	}
	log.Info("stopping", "limit", cfg.Limits.StopTimeout)
	again := make(chan os.Signal, 1)
	signal.Notify(again, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(again)
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), cfg.Limits.StopTimeout)
	defer cancel()
	go func() {
		select {
		case <-again:
			cancel()
		case <-limit.Done():
		}
	}()
	s.stop(limit)
	log.Info("stopped")
	return err
}
