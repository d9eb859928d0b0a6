package sftp

import (
	"context"
	"errors"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

// call is a request under way. Waiting for it twice is an error of ours.
type call struct {
	w     *wire
	id    uint32
	to    chan reply
	opens bool
	err   error // it could not be sent
}

// request sends p. Requests started one after the other on a wire arrive in that order.
func (w *wire) request(ctx context.Context, p packet, how waiting) *call {
	c := &call{w: w, to: make(chan reply, 1), opens: how.opens}
	how.to = c.to
	c.id, c.err = w.enqueue(ctx, p, false, how)
	return c
}

func (w *wire) simple(ctx context.Context, typ byte, args ...string) *call {
	return w.request(ctx, simple(typ, args...), waiting{})
}

func (w *wire) lstat(ctx context.Context, path string) *call { return w.simple(ctx, typeLstat, path) }

// open asks for a handle. The mode is left to the server when nil.
func (w *wire) open(ctx context.Context, path string, flags uint32, set wishes) *call {
	return w.request(ctx, request(typeOpen, len(path)+24).str(path).u32(flags).wishes(set), waiting{opens: true})
}

func (w *wire) opendir(ctx context.Context, path string) *call {
	return w.request(ctx, simple(typeOpendir, path), waiting{opens: true})
}

func (w *wire) mkdir(ctx context.Context, path string, set wishes) *call {
	return w.request(ctx, request(typeMkdir, len(path)+24).str(path).wishes(set), waiting{})
}

// setstat changes attributes: of a path, or with typeFsetstat of a handle.
func (w *wire) setstat(ctx context.Context, typ byte, what string, set wishes) *call {
	return w.request(ctx, request(typ, len(what)+24).str(what).wishes(set), waiting{})
}

// extended sends a request of an extension whose arguments are strings.
func (w *wire) extended(ctx context.Context, name string, args ...string) *call {
	return w.request(ctx, simple(typeExtended, append([]string{name}, args...)...), waiting{slow: name == extFsync})
}

// closeHandle lets the server close a handle, and does not wait.
func (w *wire) closeHandle(handle string) {
	w.link.pool.spawn(func() { w.enqueue(context.Background(), simple(typeClose, handle), false, waiting{}) })
}

// wait returns the answer, which must be of type want; a STATUS that is no success is a *statusError.
func (c *call) wait(ctx context.Context, want byte) (reply, error) {
	if c.err != nil {
		return reply{}, c.err
	}
	var r reply
	select {
	case r = <-c.to:
	case <-ctx.Done():
		c.forget()
		return reply{}, ctx.Err()
	}
	return r, c.judge(r, want)
}

// judge says what is wrong with an answer.
func (c *call) judge(r reply, want byte) error {
	switch {
	case r.err != nil:
		return r.err
	case r.typ == typeStatus:
		in := input{b: r.body}
		if code := in.u32(); code != codeOK || want != typeStatus {
			return &statusError{code: code, text: clip(string(in.bytes()))}
		}
		return nil
	case r.typ != want:
		c.w.fail(&lostError{cause: errShort})
		return lost(errShort, true)
	}
	return nil
}

// clip keeps a hostile server's text short.
func clip(s string) string { return s[:min(len(s), 200)] }

// forget gives up an answer: when it comes it is thrown away, and a handle in it closed.
func (c *call) forget() {
	if c.err != nil {
		return
	}
	c.w.mu.Lock()
	p, ok := c.w.pending[c.id]
	if ok {
		if p.slow {
			c.w.slow--
		}
		p.to, p.slow = nil, false
		c.w.pending[c.id] = p
	}
	c.w.mu.Unlock()
	if ok {
		return
	}
	select { // it came meanwhile
	case r := <-c.to:
		if c.opens && r.err == nil && r.typ == typeHandle {
			in := input{b: r.body}
			c.w.closeHandle(string(in.bytes()))
		}
		c.w.link.pool.release(r)
	default:
	}
}

// ok waits for a success.
func (c *call) ok(ctx context.Context) error {
	_, err := c.wait(ctx, typeStatus)
	return err
}

func (c *call) attrs(ctx context.Context) (attrs, error) {
	r, err := c.wait(ctx, typeAttrs)
	if err != nil {
		return attrs{}, err
	}
	in := input{b: r.body}
	return in.attrs(), nil
}

func (c *call) handle(ctx context.Context) (string, error) {
	r, err := c.wait(ctx, typeHandle)
	if err != nil {
		return "", err
	}
	in := input{b: r.body}
	return string(in.bytes()), nil
}

// link waits for the target of a symbolic link.
func (c *call) link(ctx context.Context) (string, error) {
	r, err := c.wait(ctx, typeName)
	if err != nil {
		return "", err
	}
	in := input{b: r.body}
	list := in.entries()
	if len(list) != 1 {
		return "", errShort
	}
	return list[0].name, nil
}

// run lends do a wire, and once more when that was lost before it was of use: when nothing was sent, or with safe, which says that doing it
// twice does no harm. The error is a fault of op on name.
func (b *Backend) run(ctx context.Context, op, name string, safe bool, do func(w *wire) error) error {
	for again := true; ; again = false {
		err := b.once(ctx, do)
		var gone *lostError
		if again && errors.As(err, &gone) && !gone.stalled && (safe || !gone.sent) && ctx.Err() == nil {
			b.logger.Debug("connection lost, trying again", "mount", b.name, "op", op, "err", err)
			continue
		}
		var known *fault.Error
		if err != nil && ctx.Err() != nil && !errors.As(err, &known) {
			err = ctx.Err()
		}
		if gone != nil && !gone.sent {
			err = mounts.Unsent(err)
		}
		return failure(op, name, err)
	}
}

func (b *Backend) once(ctx context.Context, do func(w *wire) error) error {
	w, err := b.pool.get(ctx)
	if err != nil {
		return mounts.Unsent(err)
	}
	defer b.pool.put(w)
	return do(w)
}

// clean runs do on the backend's own time, after a call that failed, whose context may have ended.
func (b *Backend) clean(do func(ctx context.Context, w *wire) error) <-chan struct{} {
	done := make(chan struct{})
	b.pool.tidying.Add(1)
	started := b.pool.spawn(func() {
		defer close(done)
		defer b.pool.tidying.Add(-1)
		ctx, cancel := context.WithTimeout(b.pool.base, cleanTime)
		defer cancel()
		for range 5 {
			var gone *lostError
			if err := b.once(ctx, func(w *wire) error { return do(ctx, w) }); !errors.As(err, &gone) {
				break
			}
		}
	})
	if !started {
		b.pool.tidying.Add(-1)
		close(done)
	}
	return done
}
