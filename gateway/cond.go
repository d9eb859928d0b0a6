package gateway

import (
	"errors"
	"slices"
	"strings"
	"time"

	"cellgate/internal/fault"
)

// Cond is what must hold of a node for an operation to go on (RFC 9110 §13). It is checked early, so that nobody sends a body in vain, and
// again under the publish lock, so that of many who race exactly one wins. The zero Cond always holds.
type Cond struct {
	Match           []string  // entity tags in quotes, or "*": one must be the node's (strong comparison)
	NoneMatch       []string  // none may be the node's (weak comparison); "*": the node must not exist
	UnmodifiedSince time.Time // the node may not have changed after this second
	// Check is asked for what the fields above cannot say. It must be quick and without side effects. Its error is returned as it is.
	Check func(cur Info, exists bool) error
}

// any reports whether c asks for anything.
func (c Cond) any() bool {
	return len(c.Match)+len(c.NoneMatch) > 0 || !c.UnmodifiedSince.IsZero() || c.Check != nil
}

var errCond = errors.New("the node is not in the state the request expects")

// hold reports a Precondition fault when c does not hold for cur. blind says that the subject may not know what is there: then nothing matches.
func (c Cond) hold(cur Info, exists, blind bool) error {
	fail := fault.New("gateway.precondition", cur.Path.String(), fault.Precondition, errCond)
	seen := exists && !blind
	if len(c.Match) > 0 && !(seen && slices.ContainsFunc(c.Match, func(tag string) bool { return tag == "*" || tag == cur.ETag && tag != "" })) {
		return fail
	}
	for _, tag := range c.NoneMatch {
		// A drop box may not replace what its client said must not be there, though it cannot look.
		if tag == "*" && exists || seen && cur.ETag != "" && strings.TrimPrefix(tag, "W/") == cur.ETag {
			return fail
		}
	}
	if !c.UnmodifiedSince.IsZero() && seen && cur.ModTime.Truncate(time.Second).After(c.UnmodifiedSince) {
		return fail
	}
	if c.Check != nil {
		return c.Check(cur, seen)
	}
	return nil
}
