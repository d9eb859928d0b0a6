package smb

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
)

const (
	idleAfter = time.Minute     // an unused session is closed
	quietFor  = time.Second     // a session whose server owes an answer for so long gets no new calls while there are others
	credits   = 256             // asked of the server; 16 of them are spent on a request for 1 MiB
	slots     = 12              // requests for 1 MiB in flight on a session, so that credits remain: the library takes too few as enough
	longest   = 10              // timeouts that a call may take though others on its session get their answers
	patience  = 2 * time.Second // how long a call is repeated while a file is in use
)

// session is a connection to the share, used by many calls at a time.
type session struct {
	b     *Backend
	link  *link
	share *smb2.Share
	life  context.Context // of the library's calls; ends with the session and never before, see the package comment
	end   context.CancelFunc
	slots chan none

	mu    sync.Mutex
	calls map[*call]none // under way, guarded by mu
	files int            // open, guarded by mu
	used  int64          // when the last call ended, guarded by mu
	why   error          // it was closed, nil while it lives, guarded by mu
}

type call struct{ since int64 }

// dial opens a session. The error is one of refusal.
func (b *Backend) dial(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.timeout)
	defer cancel()
	conn, err := b.cfg.dialer.DialContext(ctx, "tcp", b.cfg.address)
	if err != nil {
		return nil, b.refusal("dial", err)
	}
	s := &session{b: b, slots: make(chan none, slots), calls: map[*call]none{}, used: now()}
	s.link = newLink(conn, b.cfg.encrypt != "off")
	s.link.broken = s.kill
	s.life, s.end = context.WithCancel(context.Background())
	stop := context.AfterFunc(ctx, func() { s.kill(context.Cause(ctx)) })
	defer stop()
	step := "sign in"
	_, err = contain(s, func() (v none, err error) {
		d := smb2.Dialer{MaxCreditBalance: credits, Initiator: &smb2.NTLMInitiator{User: b.cfg.user, Password: b.cfg.password, Domain: b.cfg.domain}}
		d.Negotiator.RequireMessageSigning = b.cfg.encrypt != "off" && !b.cfg.guest()
		signed, err := d.DialConn(s.life, s.link, b.cfg.host)
		if err != nil {
			return v, err
		}
		if err := s.judge(); err != nil {
			return v, err
		}
		step = "share"
		share, err := signed.WithContext(s.life).Mount(b.cfg.share)
		if err == nil {
			s.share = share.WithContext(s.life)
		}
		return v, err
	})
	switch why := s.reason(); {
	case ctx.Err() != nil:
		err = ctx.Err()
	case errors.Is(err, context.Canceled) && why != nil:
		err = why
	case err == nil:
		err = why
	}
	if err == nil && !b.spawn(s.watch) {
		err = errClosed
	}
	if err != nil {
		s.kill(err)
		return nil, b.refusal(step, err)
	}
	b.logger.Debug("smb session opened", "mount", b.cfg.name, "encrypted", s.link.encrypted)
	return s, nil
}

// judge refuses a session that is less than what was asked for.
func (s *session) judge() error {
	cfg := s.b.cfg
	switch {
	case s.link.guest && !cfg.guest():
		return failure{fault.Unauthenticated, fmt.Sprintf("the server does not know user %q and lets it in as a guest only; check username and domain", cfg.user)}
	case cfg.encrypt == "required" && !s.link.encrypted:
		return failure{fault.Unsupported, "the server cannot encrypt this session, and option encrypt says required: that needs SMB 3, and a user who is no guest"}
	}
	return nil
}

// kill closes the session; calls on it end with an error soon.
func (s *session) kill(why error) {
	s.mu.Lock()
	if s.why == nil {
		s.why = why
	}
	s.mu.Unlock()
	s.link.Close()
	s.end()
}

// reason returns why the session was closed, nil while it lives.
func (s *session) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why
}

// enter counts a call; leave ends it.
func (s *session) enter() *call {
	c := &call{now()}
	s.mu.Lock()
	s.calls[c] = none{}
	s.mu.Unlock()
	return c
}

func (s *session) leave(c *call) {
	s.mu.Lock()
	delete(s.calls, c)
	s.used = now()
	s.mu.Unlock()
}

// addFile counts open files, which keep the session from being idle.
func (s *session) addFile(n int) {
	s.mu.Lock()
	s.files += n
	s.used = now()
	s.mu.Unlock()
}

// oldest returns how long the oldest call is under way, and how long nothing moved meanwhile; both are 0 without calls.
func (s *session) oldest() (age, silence time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := now()
	for c := range s.calls {
		age = max(age, time.Duration(at-c.since))
	}
	return age, min(age, time.Duration(at-s.link.last.Load()))
}

// state is what the pool decides by.
func (s *session) state() (alive, quiet bool, load int) {
	_, silence := s.oldest()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why == nil, silence > quietFor, len(s.calls) + s.files
}

// watch closes the session once its server is silent, or it is idle.
func (s *session) watch() {
	tick := time.NewTicker(min(max(s.b.cfg.timeout/8, 10*time.Millisecond), time.Second))
	defer tick.Stop()
	for {
		select {
		case <-s.life.Done():
			return
		case <-tick.C:
		}
		age, silence := s.oldest()
		if silence > s.b.cfg.timeout || age > longest*s.b.cfg.timeout {
			s.b.logger.Debug("smb session stalled", "mount", s.b.cfg.name)
			s.kill(errStalled)
		}
		s.mu.Lock()
		idle := len(s.calls)+s.files == 0 && time.Duration(now()-s.used) > idleAfter
		s.mu.Unlock()
		if idle {
			s.kill(errIdle)
		}
	}
}

// run carries a call of the library out, to its end, and returns its error or why the session ended meanwhile. A panic costs the session.
func run[T any](s *session, do func() (T, error)) (T, error) {
	c := s.enter()
	defer s.leave(c)
	v, err := contain(s, do)
	var invalid *smb2.InvalidResponseError
	var internal *smb2.InternalError
	switch {
	case err == nil:
	case lost(err), errors.As(err, &invalid), errors.As(err, &internal), expired(err):
		s.kill(err)
		fallthrough
	case errors.Is(err, context.Canceled):
		if why := s.reason(); why != nil {
			err = why
		}
	}
	return v, err
}

// contain turns a panic into an error and closes the session, whose state nobody knows.
func contain[T any](s *session, do func() (T, error)) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			s.b.logger.Error("driver panicked", "mount", s.b.cfg.name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = failure{fault.Unavailable, "an answer of the server makes no sense"}
			s.kill(err)
		}
	}()
	return do()
}

// on is run for a caller with a context: when that ends, on returns, and the call goes on in the background. What it yields then goes to drop,
// which may be nil.
func on[T any](ctx context.Context, s *session, do func() (T, error), drop func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	done := make(chan result)
	if !s.b.spawn(func() {
		v, err := run(s, do)
		select {
		case done <- result{v, err}:
		case <-ctx.Done():
			if err == nil && drop != nil {
				drop(v)
			}
		}
	}) {
		return zero, errClosed
	}
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return zero, ctx.Err()
	}
}

// slot waits for a place among the large requests, and returns the function that gives it back. It is for use within a call.
func (s *session) slot() (func(), error) {
	select {
	case s.slots <- none{}:
		return func() { <-s.slots }, nil
	case <-s.life.Done():
		return nil, s.reason()
	}
}

// openFile opens a file for the library's flags. It takes the finalizer off, which would call the server from the collector's goroutine, and
// refuses what the library reached by following a symbolic link.
func (s *session) openFile(ctx context.Context, path string, flag int) (*smb2.File, error) {
	return on(ctx, s, func() (*smb2.File, error) {
		f, err := s.share.OpenFile(path, flag, 0o666)
		if err != nil {
			return nil, err
		}
		runtime.SetFinalizer(f, nil)
		s.addFile(1)
		if f.Name() != path {
			s.closeFile(f)
			return nil, errLink
		}
		return f, nil
	}, func(f *smb2.File) { s.closeFile(f) })
}

// closeFile ends what openFile began.
func (s *session) closeFile(f *smb2.File) error {
	defer s.addFile(-1)
	_, err := run(s, func() (none, error) { return none{}, f.Close() })
	return err
}

// stat describes an open file.
func (s *session) stat(ctx context.Context, f *smb2.File) (*smb2.FileStat, error) {
	return on(ctx, s, func() (*smb2.FileStat, error) {
		free, err := s.slot()
		if err != nil {
			return nil, err
		}
		defer free()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		stat, ok := info.Sys().(*smb2.FileStat)
		if !ok {
			return nil, errFrame
		}
		return stat, nil
	}, nil)
}
