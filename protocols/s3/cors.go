package s3

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// CORSRule lets scripts of other origins use the door. They need signatures as everybody else.
type CORSRule struct {
	Origins []string // "https://app.example.org"; one "*" in each stands for anything
	Methods []string // GET, PUT, HEAD, POST, DELETE
	Headers []string // that requests may have; one "*" in each stands for anything
	Expose  []string // of answers, that scripts may read
	MaxAge  int      // seconds for which a browser remembers this
}

// corsMethods are those that a rule can allow.
var corsMethods = []string{"GET", "PUT", "HEAD", "POST", "DELETE"}

func (c CORSRule) check() error {
	if len(c.Origins) == 0 || len(c.Methods) == 0 {
		return errors.New("s3: a CORS rule needs origins and methods")
	}
	for _, m := range c.Methods {
		if !slices.Contains(corsMethods, m) {
			return errors.New("s3: " + m + " is no method of a CORS rule")
		}
	}
	for _, v := range slices.Concat(c.Origins, c.Headers) {
		if strings.Count(v, "*") > 1 {
			return errors.New("s3: " + v + " has more than one *")
		}
	}
	return nil
}

// wild reports whether v is as a pattern, with at most one "*", says.
func wild(pattern, v string) bool {
	before, behind, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == v
	}
	return len(v) >= len(before)+len(behind) && strings.HasPrefix(v, before) && strings.HasSuffix(v, behind)
}

// corsRule returns the first rule for what an origin asks.
func (h *handler) corsRule(origin, method string, headers []string) (CORSRule, bool) {
	for _, c := range h.cfg.CORS {
		if !slices.ContainsFunc(c.Origins, func(p string) bool { return wild(p, origin) }) || !slices.Contains(c.Methods, method) {
			continue
		}
		all := true
		for _, name := range headers {
			all = all && slices.ContainsFunc(c.Headers, func(p string) bool { return wild(strings.ToLower(p), name) })
		}
		if all {
			return c, true
		}
	}
	return CORSRule{}, false
}

// allowOrigin lets the script that asks read the answer.
func (q *request) allowOrigin() {
	origin := q.r.Header.Get("Origin")
	if origin == "" || len(q.h.cfg.CORS) == 0 || q.r.Method == http.MethodOptions {
		return
	}
	hd := q.w.Header()
	hd["Vary"] = []string{"Origin, Access-Control-Request-Headers, Access-Control-Request-Method"}
	if c, ok := q.h.corsRule(origin, q.r.Method, nil); ok {
		q.h.allow(hd, c, origin)
	}
}

func (h *handler) allow(hd http.Header, c CORSRule, origin string) {
	if slices.Contains(c.Origins, "*") {
		origin = "*"
	}
	hd["Access-Control-Allow-Origin"] = []string{origin}
	if len(c.Expose) > 0 {
		hd["Access-Control-Expose-Headers"] = []string{strings.Join(c.Expose, ", ")}
	}
}

// preflight answers OPTIONS (Fetch §3.2.2), which browsers send without a signature. It says nothing of what there is.
func (q *request) preflight() error {
	hd := q.r.Header
	origin, method := hd.Get("Origin"), hd.Get("Access-Control-Request-Method")
	if origin == "" {
		return refuse(answer{http.StatusBadRequest, "BadRequest", "Insufficient information. Origin request header needed."})
	}
	if method == "" {
		return refuse(answer{http.StatusBadRequest, "BadRequest", "Invalid Access-Control-Request-Method: null"})
	}
	var headers []string
	for name := range strings.SplitSeq(hd.Get("Access-Control-Request-Headers"), ",") {
		if name = strings.ToLower(strings.TrimSpace(name)); name != "" {
			headers = append(headers, name)
		}
	}
	c, ok := q.h.corsRule(origin, method, headers)
	if !ok || len(headers) > 200 {
		return refuse(answer{http.StatusForbidden, "AccessForbidden", "CORSResponse: This CORS request is not allowed. This is usually because the evalution of Origin, request method / Access-Control-Request-Method or Access-Control-Request-Headers are not whitelisted."})
	}
	out := q.w.Header()
	q.h.allow(out, c, origin)
	out["Vary"] = []string{"Origin, Access-Control-Request-Headers, Access-Control-Request-Method"}
	out["Access-Control-Allow-Methods"] = []string{strings.Join(c.Methods, ", ")}
	if len(headers) > 0 {
		out["Access-Control-Allow-Headers"] = []string{strings.Join(headers, ", ")}
	}
	if c.MaxAge > 0 {
		out["Access-Control-Max-Age"] = []string{strconv.Itoa(c.MaxAge)}
	}
	return q.done(http.StatusOK)
}

// getCORS tells the configured rules, which hold for all buckets.
func (q *request) getCORS() error {
	if err := q.bucketThere(); err != nil {
		return err
	}
	if len(q.h.cfg.CORS) == 0 {
		return refuse(answer{http.StatusNotFound, "NoSuchCORSConfiguration", "The CORS configuration does not exist"})
	}
	b := document("CORSConfiguration")
	for _, c := range q.h.cfg.CORS {
		b = open(b, "CORSRule")
		for _, l := range []struct {
			name   string
			values []string
		}{{"AllowedOrigin", c.Origins}, {"AllowedMethod", c.Methods}, {"AllowedHeader", c.Headers}, {"ExposeHeader", c.Expose}} {
			for _, v := range l.values {
				b = elem(b, l.name, v)
			}
		}
		if c.MaxAge > 0 {
			b = elemInt(b, "MaxAgeSeconds", int64(c.MaxAge))
		}
		b = closed(b, "CORSRule")
	}
	return q.reply(http.StatusOK, closed(b, "CORSConfiguration"))
}
