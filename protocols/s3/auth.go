package s3

import (
	"errors"
	"net/http"
	"strings"
	"sync"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
)

const protocol = "s3"

// login verifies the signature and binds a session to the request.
func (q *request) login() error {
	sig, err := q.signature()
	if err != nil {
		return err
	}
	if err := q.payload(sig); err != nil {
		return err
	}
	return q.signIn(sig, sig.toSign(canonicalRequest(q.r, q.query, sig.headers, q.pay.signed)))
}

// signature reads how the request is signed: by header or by query, never both.
func (q *request) signature() (*signature, error) {
	hd, all := q.r.Header, q.query
	header, presigned := hd.Get("Authorization"), all.has("X-Amz-Algorithm") || all.has("X-Amz-Signature") || all.has("X-Amz-Credential")
	old := all.has("AWSAccessKeyId") || all.has("Signature")
	switch {
	case header != "" && (presigned || old), presigned && old:
		return nil, refuse(errTwoSignatures)
	case old:
		return nil, refuse(errOldSignature)
	case header == "" && !presigned:
		return nil, refuse(errAnonymous)
	}
	var sig *signature
	var err error
	if presigned {
		sig, err = parsePresigned(all)
	} else if sig, err = parseAuthorization(header); err == nil {
		err = sig.dated(headerStamp(hd))
	}
	if err == nil {
		err = sig.timely(q.h.now())
	}
	if err == nil && sig.region != q.h.cfg.Region {
		a := errAuthMalformed
		if presigned {
			a = errQueryMalformed
		}
		a.words = "The authorization is malformed; the region '" + sig.region + "' is wrong; expecting '" + q.h.cfg.Region + "'"
		err = &refusal{a, []string{"Region", q.h.cfg.Region}}
	}
	if err == nil {
		err = sig.allSigned(hd)
	}
	return sig, err
}

// signIn asks identity whether the owner of the key made the signature of what was signed, and binds the owner's session to the request.
func (q *request) signIn(sig *signature, signed []byte) error {
	q.client = gateway.Client{
		Protocol: protocol, Address: q.h.cfg.ClientAddr(q.r), Agent: q.r.UserAgent(), Method: q.r.Method, RequestID: q.id, OwnLocks: true, Sums: true,
	}
	sub, err := q.h.cfg.Identity.LoginS3(q.ctx(), identity.Attempt{Protocol: protocol, Addr: q.client.Address, Client: q.client.Agent}, sig.id,
		func(s secret.String) bool { return sig.verify(&q.h.keys, s.Reveal(), signed) })
	switch kind := fault.KindOf(err); {
	case err == nil:
	case kind == fault.NotExist:
		return refuse(errAccessKey)
	case kind == fault.Unauthenticated && sig.key == nil:
		return refuse(errSignature)
	default:
		return err
	}
	q.client.Credential = sub.Credential
	if log, ok := q.w.ResponseWriter.(interface{ SignedIn(login string) }); ok {
		log.SignedIn(sub.Login)
	}
	q.pay.signature = sig
	q.sub = sub
	q.s = q.h.sessions.of(q.h, sub).With(q.client)
	return nil
}

// maxSessions bounds the cache of sessions. It is emptied when full: making one anew costs microseconds.
const maxSessions = 8192

// sessions keeps one gateway.Session per key, so that rights are compiled once and not per request. Identity answers a key with the same
// Subject until the epoch moves, so the pointer is the key, and everything goes when the epoch moves.
type sessions struct {
	mu    sync.RWMutex
	epoch uint64                               // guarded by mu
	known map[*policy.Subject]*gateway.Session // guarded by mu
}

func (c *sessions) of(h *handler, sub *policy.Subject) *gateway.Session {
	epoch := h.cfg.Identity.Epoch()
	c.mu.RLock()
	s, ok := c.known[sub]
	ok = ok && c.epoch == epoch
	c.mu.RUnlock()
	if ok {
		return s
	}
	s = h.cfg.Gateway.Session(sub)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch != epoch || len(c.known) >= maxSessions || c.known == nil {
		c.epoch, c.known = epoch, make(map[*policy.Subject]*gateway.Session)
	}
	c.known[sub] = s
	return s
}

// Values of x-amz-content-sha256 that are no digest.
const (
	unsignedPayload   = "UNSIGNED-PAYLOAD"
	streamingSigned   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	streamingTrailer  = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	streamingUnsigned = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

// payload is what the headers say of the body.
type payload struct {
	signed    string // what of it is signed: a digest, or one of the words above
	sum       []byte // SHA-256 that it must have, nil where none was signed
	chunked   bool
	chunkSigs bool     // each chunk is signed
	trailers  []string // announced, lower case
	size      int64    // of the content, -1 unknown
	*signature
}

// payload reads how the body comes.
func (q *request) payload(sig *signature) error {
	hd := q.r.Header
	p := payload{signed: hd.Get("X-Amz-Content-Sha256"), size: q.r.ContentLength}
	switch {
	case sig.presigned && p.signed == "":
		if p.signed = q.query.get("X-Amz-Content-Sha256"); p.signed == "" {
			p.signed = unsignedPayload
		}
	case p.signed == "":
		return refuse(errNoContentSHA)
	}
	switch p.signed {
	case unsignedPayload:
	case streamingSigned, streamingTrailer:
		p.chunked, p.chunkSigs = true, true
	case streamingUnsigned:
		p.chunked = true
	default:
		var ok bool
		if p.sum, ok = parseSignature(p.signed); !ok || strings.ToLower(p.signed) != p.signed {
			return refuse(errBadContentSHA)
		}
	}
	if sig.presigned && p.chunkSigs {
		return refuse(errBadContentSHA) // the seed of the chunks' signatures is that of a header
	}
	if err := p.announced(hd); err != nil {
		return err
	}
	q.pay = p
	return nil
}

// announced reads what a body in chunks says of itself beforehand.
func (p *payload) announced(hd http.Header) error {
	for _, v := range hd["X-Amz-Trailer"] {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
				p.trailers = append(p.trailers, name)
			}
		}
	}
	switch {
	case len(p.trailers) > 8, len(p.trailers) > 0 && p.signed != streamingTrailer && p.signed != streamingUnsigned:
		return refuseFor(errRequest, "x-amz-trailer needs a body with trailers.")
	case !p.chunked:
		return nil
	}
	v := hd.Get("X-Amz-Decoded-Content-Length")
	if v == "" {
		return refuse(errNoLength)
	}
	size, ok := parseDigits(v)
	if !ok {
		return refuseFor(errArgument, "x-amz-decoded-content-length is no length.")
	}
	p.size = size
	return nil
}

var errGone = errors.New("the body ended early")
