package smb

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/cloudsoda/go-smb2"

	"cellgate/internal/fault"
)

const (
	idleAfter = time.Minute     // an unused session is closed
	quietFor  = time.Second     // a session whose server owes an answer for so long gets no new calls while there are others
	credits   = 256             // asked of the server
	longest   = 10              // timeouts that a call may take though others on its session get their answers
	patience  = 2 * time.Second // how long a call is repeated while a file is in use
)

// weight is what a call costs in credits, of which the server grants so many at a time: MS-SMB2 §3.2.4.1.5. The library takes too few of them as
// enough, and the server refuses the request then. So calls of each weight have places on a session, and no call takes two.
type weight int

const (
	small weight = iota // 1 credit at a time
	large               // 16: an answer may have 1 MiB, as the library asks
	data                // 8: a block
)

var places = [3]int{small: 48, large: 4, data: 18} // of credits

// session is a connection to the share, used by many calls at a time.
type session struct {
	b     *Backend
	link  *link
	share *smb2.Share
	life  context.Context // of the library's calls; ends with the session and never before, see the package comment
	end   context.CancelFunc

	places [3]chan none // by weight, taken by calls under way
	lonely sync.Mutex   // held by who waits for all places

	mu    sync.Mutex
	calls map[*call]none // under way, guarded by mu
	files int            // open, guarded by mu
	used  int64          // when the last call ended, guarded by mu
	why   error          // it was closed, nil while it lives, guarded by mu
}

type call struct{ since int64 }

func newSession(b *Backend, l *link) *session {
	s := &session{b: b, link: l, calls: map[*call]none{}, used: now()}
	for w, n := range places {
		s.places[w] = make(chan none, n)
	}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// dial opens a session. The error is one of refusal.
func (b *Backend) dial(ctx context.Context) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.timeout)
	defer cancel()
	conn, err := b.cfg.dialer.DialContext(ctx, "tcp", b.cfg.address)
	if err != nil {
		return nil, b.refusal("dial", err)
	}
	s := newSession(b, newLink(conn, b.cfg.encrypt != "off"))
	s.link.broken = s.kill
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

// place waits for one that a call of this weight may take, and returns the function that gives it back.
func (s *session) place(w weight) (free func(), err error) {
	select {
	case s.places[w] <- none{}:
		return func() { <-s.places[w] }, nil
	case <-s.life.Done():
		return nil, s.reason()
	}
}

// alone waits until no call is under way and holds up all others, until the function it returns is called.
func (s *session) alone() (free func(), err error) {
	s.lonely.Lock()
	var taken []func()
	free = func() {
		for _, give := range taken {
			give()
		}
		s.lonely.Unlock()
	}
	for w, n := range places {
		for range n {
			give, err := s.place(weight(w))
			if err != nil {
				free()
				return nil, err
			}
			taken = append(taken, give)
		}
	}
	return free, nil
}

// run carries a call of the library out, to its end, and returns its error or why the session ended meanwhile. A panic costs the session. A large
// call that the server refuses is repeated alone: it may have granted fewer credits than it was asked for.
func run[T any](s *session, w weight, do func() (T, error)) (v T, err error) {
	c := s.enter()
	defer s.leave(c)
	enter := func() (func(), error) { return s.place(w) }
	for again := false; ; again = true {
		free, err := enter()
		if err != nil {
			return v, err
		}
		v, err := attempt(s, do)
		free()
		if w != large || again || status(err) != statusInvalid {
			return v, err
		}
		enter = s.alone
	}
}

func attempt[T any](s *session, do func() (T, error)) (T, error) {
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

// on is run for a caller with a context: when that ends, on returns, and a call under way goes on in the background. What it yields then goes to
// drop, which may be nil.
func on[T any](ctx context.Context, s *session, w weight, do func() (T, error), drop func(T)) (T, error) {
	return leaving(ctx, s.b, func() (T, error) { return run(s, w, unlessEnded(ctx, do)) }, drop)
}

// unlessEnded is do, but for calls that got their place too late.
func unlessEnded[T any](ctx context.Context, do func() (T, error)) func() (T, error) {
	return func() (v T, err error) {
		if err := ctx.Err(); err != nil {
			return v, err
		}
		return do()
	}
}

// leaving runs call in the background and waits for it, or for the end of ctx.
func leaving[T any](ctx context.Context, b *Backend, call func() (T, error), drop func(T)) (T, error) {
	type result struct {
		v   T
		err error
	}
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, err
	}
	done := make(chan result)
	if !b.spawn(func() {
		v, err := call()
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

// later is the result of a call in the background.
type later[T any] struct {
	done chan none
	v    T     // valid once done is closed, as err
	err  error // errClosed where the call was not made
}

func start[T any](b *Backend, call func() (T, error)) *later[T] {
	l := &later[T]{done: make(chan none)}
	if !b.spawn(func() { l.v, l.err = call(); close(l.done) }) {
		l.err = errClosed
		close(l.done)
	}
	return l
}

func (l *later[T]) wait(ctx context.Context) (v T, err error) {
	select {
	case <-l.done:
		return l.v, l.err
	case <-ctx.Done():
		return v, ctx.Err()
	}
}
