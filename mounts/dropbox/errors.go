package dropbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/internal/trust"
)

// refusal is an answer that is no success.
type refusal struct {
	route  string
	status int
	tags   []string      // what Dropbox says, from the general to the particular: "path", "conflict", "folder"
	text   string        // what else it said, bounded and without our secrets
	scope  string        // the permission that the app lacks
	wait   time.Duration // Retry-After
	offset int64         // correct_offset of an upload session, -1 when not told
}

// Error says what Dropbox said, and what to do where somebody can.
func (r *refusal) Error() string {
	var said string
	switch {
	case len(r.tags) > 0:
		said = "Dropbox says " + strings.Join(r.tags, "/")
	case r.text != "":
		said = fmt.Sprintf("Dropbox answers %d: %s", r.status, r.text)
	default:
		said = fmt.Sprintf("Dropbox answers %d %s", r.status, http.StatusText(r.status))
	}
	if hint := r.hint(); hint != "" {
		said += ": " + hint
	}
	return said
}

func (r *refusal) hint() string {
	switch {
	case r.has("missing_scope"):
		return "the app lacks the permission " + r.scope + ". Tick it among the app's permissions and connect the account again"
	case r.status == http.StatusUnauthorized:
		return "the access token has expired, was revoked or is wrong. Connect the account again, best with a refreshToken"
	case r.status == http.StatusForbidden:
		return "the account may not use this"
	case r.status == http.StatusTooManyRequests && r.wait > 0:
		return fmt.Sprintf("too many requests; try again in %v", r.wait)
	case r.status >= 300 && r.status < 400:
		return "redirects are not followed. Is the option api right?"
	case r.status == http.StatusNotFound || r.status == http.StatusMethodNotAllowed:
		return "this server has no such call. Is the option api right?"
	case r.has("disallowed_name"):
		return "Dropbox keeps this name for itself"
	case r.kind() == fault.NoSpace:
		return "the Dropbox is full. Delete something there or get more space"
	}
	return ""
}

func (r *refusal) has(tag string) bool { return slices.Contains(r.tags, tag) }

// expired reports whether another token may help.
func (r *refusal) expired() bool { return !r.has("missing_scope") && !r.has("user_suspended") }

// kinds says what the tags of an error mean; the most particular one that is here counts.
var kinds = map[string]fault.Kind{
	"not_found": fault.NotExist, "not_file": fault.IsDir, "not_folder": fault.NotDir,
	"malformed_path": fault.Invalid, "disallowed_name": fault.Invalid, "cant_move_folder_into_itself": fault.Invalid,
	"duplicated_or_nested_paths": fault.Invalid, "invalid_copy_reference": fault.Invalid, "properties_error": fault.Invalid,
	"conflict": fault.Exist, "file": fault.Exist, "folder": fault.Exist, "file_ancestor": fault.NotDir,
	"no_write_permission": fault.Denied, "access_restricted": fault.Denied, "team_folder": fault.Denied, "restricted_content": fault.Denied,
	"operation_suppressed": fault.Denied, "cant_copy_shared_folder": fault.Denied, "cant_nest_shared_folder": fault.Denied,
	"cant_move_shared_folder": fault.Denied, "cant_move_into_vault": fault.Denied, "cant_move_into_family": fault.Denied,
	"cant_transfer_ownership": fault.Denied, "unsupported_file": fault.Denied, "unsupported_content_type": fault.Denied,
	"locked": fault.Locked, "payload_too_large": fault.TooLarge, "too_large": fault.TooLarge, "content_hash_mismatch": fault.Corrupt,
	"insufficient_space": fault.NoSpace, "insufficient_quota": fault.NoSpace, "team_folder_insufficient_space": fault.NoSpace,
	"team_folder_insufficient_quota": fault.NoSpace, "member_folder_insufficient_space": fault.NoSpace, "member_folder_insufficient_quota": fault.NoSpace,
	"too_many_write_operations": fault.Busy, "too_many_requests": fault.Busy, "upload_traffic_limit_reached": fault.Busy,
	"too_many_files": fault.Unsupported, "encryption_not_supported": fault.Unsupported, // by hand, file by file, it works
	"missing_scope": fault.Denied, "user_suspended": fault.Denied, "paper_access_denied": fault.Denied, "invalid_account_type": fault.Denied,
	"internal_error": fault.Unavailable, "reset": fault.Unavailable, "other": fault.Unavailable,
}

func (r *refusal) kind() fault.Kind {
	for _, tag := range slices.Backward(r.tags) {
		if k, ok := kinds[tag]; ok {
			return k
		}
	}
	switch r.status {
	case http.StatusBadRequest:
		return fault.Invalid
	case http.StatusUnauthorized:
		return fault.Unauthenticated
	case http.StatusForbidden:
		return fault.Denied
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return fault.Unsupported
	case http.StatusRequestEntityTooLarge:
		return fault.TooLarge
	case http.StatusTooManyRequests:
		return fault.Busy
	}
	return fault.Unavailable
}

const (
	longestRefusal = 64 << 10
	longestText    = 200
)

// refused reads an answer that is no success, and closes it.
func (t *transport) refused(route string, resp *http.Response) *refusal {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, longestRefusal))
	no := parseRefusal(resp.StatusCode, body)
	if err != nil {
		no.text = ""
	}
	no.route, no.text = route, t.tokens.redact(no.text)
	for i, tag := range no.tags {
		no.tags[i] = t.tokens.redact(tag)
	}
	no.scope = t.tokens.redact(no.scope)
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		no.wait = max(no.wait, time.Duration(min(s, 1<<20))*time.Second)
	}
	return no
}

// parseRefusal understands the body of an answer that is no success. Whatever it holds, the result is bounded and plain.
func parseRefusal(status int, body []byte) *refusal {
	no := &refusal{status: status, offset: -1}
	var outer struct {
		Summary string          `json:"error_summary"`
		Error   json.RawMessage `json:"error"`
	}
	if json.Unmarshal(body, &outer) != nil {
		no.text = plain(string(body))
		return no
	}
	union := outer.Error
	for depth := 0; depth < 8 && len(union) > 0; depth++ {
		var tag struct {
			Tag        string `json:".tag"`
			Scope      string `json:"required_scope"`
			RetryAfter int64  `json:"retry_after"`
			Offset     *int64 `json:"correct_offset"`
		}
		_ = json.Unmarshal(union, &tag) // what does not fit stays empty
		if tag.Tag = word(tag.Tag); tag.Tag != "" {
			no.tags = append(no.tags, tag.Tag)
		}
		if tag.Scope != "" {
			no.scope = word(tag.Scope)
		}
		if tag.RetryAfter > 0 {
			no.wait = time.Duration(min(tag.RetryAfter, 1<<20)) * time.Second
		}
		if tag.Offset != nil && *tag.Offset >= 0 {
			no.offset = *tag.Offset
		}
		var fields map[string]json.RawMessage
		if json.Unmarshal(union, &fields) != nil {
			break
		}
		next, ok := fields[tag.Tag]
		if !ok {
			next = fields["reason"] // of an upload: path and reason are one step
		}
		union = next
	}
	if len(no.tags) == 0 { // "path/not_found/..": the end is noise
		for tag := range strings.SplitSeq(outer.Summary, "/") {
			if tag = word(tag); tag != "" && len(no.tags) < 8 {
				no.tags = append(no.tags, tag)
			}
		}
	}
	return no
}

// word returns s when it is a short word of the letters that tags and permissions are made of.
func word(s string) string {
	if len(s) > 64 || strings.Trim(s, ".") == "" || strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '.'
	}) >= 0 {
		return ""
	}
	return s
}

// plain returns the beginning of s without what is not printable.
func plain(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, s[:min(len(s), longestText)])
	return strings.Join(strings.Fields(s), " ")
}

var errAnswer = errors.New("the answer makes no sense; is the option api right?")

// fail is the one place where errors of the library, of net/http and of Dropbox become faults.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	op = "mounts/dropbox." + op
	var own *fault.Error
	if errors.As(err, &own) {
		return fault.New(op, name, own.Kind, own)
	}
	var no *refusal
	if errors.As(err, &no) {
		return fault.New(op, name, no.kind(), no)
	}
	switch {
	case errors.Is(err, errClosed):
		return fault.New(op, name, fault.Unavailable, errClosed)
	case errors.Is(err, errConnections):
		return fault.New(op, name, fault.Busy, errConnections)
	}
	if unreadable(err) {
		return fault.New(op, name, fault.Unavailable, errAnswer)
	}
	inner := err
	for outer := (*url.Error)(nil); errors.As(inner, &outer); {
		inner = outer.Err // without the address, which says nothing
	}
	switch k := fault.KindOf(inner); {
	case errors.Is(inner, os.ErrDeadlineExceeded):
		return fault.New(op, name, fault.Timeout, errors.New("nothing went to or came from Dropbox for too long, see the option timeout"))
	case errors.Is(inner, dial.ErrRefused):
		return fault.New(op, name, fault.Denied, inner)
	case trust.Is(inner):
		return fault.New(op, name, fault.Unavailable, trust.Explain(inner))
	case k == fault.Canceled || k == fault.Timeout:
		return fault.New(op, name, k, inner)
	}
	return fault.New(op, name, fault.Unavailable, fmt.Errorf("no connection to Dropbox: %w", inner))
}

// unreadable reports whether an answer came that could not be understood. What is in it is not for messages.
func unreadable(err error) bool {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	var parse *time.ParseError
	return errors.Is(err, errLong) || errors.Is(err, errAnswer) || errors.As(err, &syntax) || errors.As(err, &typ) || errors.As(err, &parse)
}

// refusedWith returns the refusal in err that has the tag.
func refusedWith(err error, tag string) (*refusal, bool) {
	var no *refusal
	ok := errors.As(err, &no) && no.has(tag)
	return no, ok
}
