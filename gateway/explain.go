package gateway

import (
	"context"

	"cellgate/internal/fault"
	"cellgate/policy"
)

// Place returns where a path of a user's tree lies.
func (g *Gateway) Place(sub *policy.Subject, p Path) (policy.Place, error) {
	t, err := g.bind(sub).resolve(p)
	if err != nil {
		return policy.Place{}, err
	}
	if t.virtual() {
		return policy.Place{}, fault.New("gateway.Place", p.String(), fault.Invalid, errVirtual)
	}
	return t.at, nil
}

// Explain answers whether sub may act on p in the given circumstances, and why: the same function that enforces, with its trace.
func (g *Gateway) Explain(_ context.Context, sub *policy.Subject, act policy.Action, p Path, env policy.Env) (policy.Trace, error) {
	b := g.bind(sub)
	t, err := b.resolve(p)
	if err != nil {
		return policy.Trace{}, err
	}
	if t.virtual() {
		return policy.Trace{}, fault.New("gateway.Explain", p.String(), fault.Invalid, errVirtual)
	}
	if env.Time.IsZero() {
		env.Time = g.clock.Now()
	}
	return b.view.Explain(act, t.at, &env), nil
}
