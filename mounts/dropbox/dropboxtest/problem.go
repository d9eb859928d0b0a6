package dropboxtest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// problem is an answer that is no success: a status and tags from the general to the particular, or a text.
type problem struct {
	status int
	tags   []string
	text   string
	fields map[string]any // of the innermost union
	reason bool           // the step after "path" is called "reason", as in the errors of upload
	retry  int            // Retry-After in seconds
}

// refuse returns a problem with tags written as "path/not_found".
func refuse(status int, tags string) *problem {
	return &problem{status: status, tags: strings.Split(tags, "/")}
}

// conflict is the usual refusal, 409.
func conflict(tags string) *problem { return refuse(http.StatusConflict, tags) }

// malformed is a call that is wrong in itself.
func malformed(route, why string) *problem {
	return &problem{status: http.StatusBadRequest, text: fmt.Sprintf("Error in call to API function %q: request body: %s", route, why)}
}

// below puts a tag in front.
func (p *problem) below(tag string) *problem {
	if p == nil || p.status != http.StatusConflict {
		return p
	}
	q := *p
	q.tags = append([]string{tag}, p.tags...)
	return &q
}

// union returns the error as a tagged union.
func (p *problem) union() map[string]any {
	inner := map[string]any{}
	for k, v := range p.fields {
		inner[k] = v
	}
	for i := len(p.tags) - 1; i >= 0; i-- {
		inner[".tag"] = p.tags[i]
		if i > 0 {
			step := p.tags[i-1]
			if p.reason && i == 1 {
				step = "reason"
			}
			inner = map[string]any{step: inner}
		}
	}
	if p.reason {
		inner["upload_session_id"] = "pid_upload_session:none"
	}
	return inner
}

func (p *problem) write(w http.ResponseWriter) {
	if p.retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.retry))
	}
	if p.text != "" {
		text(w, p.status, p.text)
		return
	}
	// The end of a summary is noise on purpose: nobody shall compare it.
	reply(w, p.status, map[string]any{"error_summary": strings.Join(p.tags, "/") + "/..", "error": p.union()})
}

// Fault is something that goes wrong with requests.
type Fault struct {
	Route string // such as "files/upload"; every route when empty
	Skip  int    // requests that pass before
	Times int    // requests it hits: 1 when 0, all when negative

	Status     int    // answer with this status,
	Tags       string // these tags, such as "path/too_many_write_operations",
	Body       string // or this body, as it is,
	RetryAfter int    // and this many seconds to wait

	Stall bool          // never answer
	Delay time.Duration // answer later
	Cut   int           // cut the connection after so many bytes of the answer's body, -1 before the answer
	Late  bool          // do what is asked, then cut the connection before the answer
}

// Inject makes requests fail from now on.
func (s *Service) Inject(f Fault) {
	if f.Times == 0 {
		f.Times = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// Heal takes all faults away.
func (s *Service) Heal() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// fault returns what is to go wrong with this request. The caller holds mu.
func (s *Service) fault(route string) *Fault {
	for _, f := range s.faults {
		if f.Route != "" && f.Route != route || f.Times == 0 {
			continue
		}
		if f.Skip > 0 {
			f.Skip--
			continue
		}
		if f.Times > 0 {
			f.Times--
		}
		return f
	}
	return nil
}

func (f *Fault) serve(s *Service, w http.ResponseWriter, r *http.Request, do func(http.ResponseWriter)) {
	switch {
	case f.Stall:
		select {
		case <-r.Context().Done():
		case <-s.stop:
		}
		panic(http.ErrAbortHandler)
	case f.Late:
		do(&lost{header: http.Header{}})
		panic(http.ErrAbortHandler)
	case f.Cut < 0:
		panic(http.ErrAbortHandler)
	case f.Cut > 0:
		do(&cutter{ResponseWriter: w, left: f.Cut})
	case f.Delay > 0:
		wait(r, s.stop, f.Delay)
		do(w)
	case f.Body != "":
		if f.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(f.RetryAfter))
		}
		if json.Valid([]byte(f.Body)) {
			w.Header().Set("Content-Type", "application/json")
		}
		w.WriteHeader(f.Status)
		w.Write([]byte(f.Body))
	case f.Tags != "":
		p := refuse(f.Status, f.Tags)
		p.retry, p.reason = f.RetryAfter, r.URL.Path == "/2/files/upload"
		p.write(w)
	default:
		(&problem{status: f.Status, text: http.StatusText(f.Status), retry: f.RetryAfter}).write(w)
	}
}

// lost is an answer that nobody gets.
type lost struct{ header http.Header }

func (l *lost) Header() http.Header         { return l.header }
func (l *lost) Write(p []byte) (int, error) { return len(p), nil }
func (l *lost) WriteHeader(int)             {}

// cutter breaks the connection on the way.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if len(p) < c.left {
		c.left -= len(p)
		return c.ResponseWriter.Write(p)
	}
	c.ResponseWriter.Write(p[:c.left])
	http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}
