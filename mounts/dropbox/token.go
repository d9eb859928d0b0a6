package dropbox

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
)

// tokens gives out access tokens and fetches new ones with the refresh token. Many callers wait for one fetch.
type tokens struct {
	conf    oauth2.Config
	refresh secret.String
	client  *http.Client
	timeout time.Duration
	stop    context.CancelFunc // of the fetch that runs; guarded by mu
	fetches sync.WaitGroup

	mu      sync.Mutex
	current *oauth2.Token // guarded by mu
	running *fetch        // guarded by mu
	refused *fetch        // the last one, where Dropbox refused the credentials; guarded by mu
	closed  bool          // guarded by mu
}

// fetch is one request for a token.
type fetch struct {
	done  chan struct{}
	token *oauth2.Token
	err   error
	at    time.Time
}

// calm is how long a refusal of the credentials is repeated without asking Dropbox again.
const calm = 5 * time.Second

func newTokens(s settings, client *http.Client) *tokens {
	t := &tokens{refresh: s.refresh, client: client, timeout: 2 * s.timeout}
	t.conf = oauth2.Config{
		ClientID: s.key, ClientSecret: s.secret.Reveal(),
		Endpoint: oauth2.Endpoint{TokenURL: s.host("api") + "/oauth2/token", AuthStyle: oauth2.AuthStyleInParams},
	}
	if !s.token.IsZero() {
		t.current = &oauth2.Token{AccessToken: s.token.Reveal()}
	}
	return t
}

// access returns a token that is good for some seconds at least, as far as one can know.
func (t *tokens) access(ctx context.Context) (string, error) {
	t.mu.Lock()
	if t.current.Valid() {
		defer t.mu.Unlock()
		return t.current.AccessToken, nil
	}
	if t.refresh.IsZero() {
		defer t.mu.Unlock()
		return "", &refusal{status: http.StatusUnauthorized, tags: []string{"expired_access_token"}}
	}
	if t.refused != nil && time.Since(t.refused.at) < calm {
		defer t.mu.Unlock()
		return "", t.refused.err
	}
	f := t.running
	if f == nil {
		if t.closed {
			defer t.mu.Unlock()
			return "", errClosed
		}
		f = &fetch{done: make(chan struct{})}
		t.running = f
		inner, cancel := context.WithTimeout(context.Background(), t.timeout)
		t.stop = cancel
		t.fetches.Go(func() { t.fetch(inner, cancel, f) })
	}
	t.mu.Unlock()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-f.done:
	}
	if f.err != nil {
		return "", f.err
	}
	return f.token.AccessToken, nil
}

// fetch runs apart from any caller's context, because others wait for it too.
func (t *tokens) fetch(ctx context.Context, cancel context.CancelFunc, f *fetch) {
	defer cancel()
	source := t.conf.TokenSource(context.WithValue(ctx, oauth2.HTTPClient, t.client), &oauth2.Token{RefreshToken: t.refresh.Reveal()})
	token, err := source.Token()
	f.err, f.at = explainToken(err), time.Now()
	f.token = token
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running, t.refused = nil, nil
	switch {
	case err == nil:
		t.current = token
	case fault.KindOf(f.err) == fault.Unauthenticated:
		t.refused = f
	}
	close(f.done)
}

// drop forgets a token that Dropbox refused, and reports whether another can be had.
func (t *tokens) drop(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refresh.IsZero() {
		return false
	}
	if t.current != nil && t.current.AccessToken == token {
		t.current = nil
	}
	return true
}

func (t *tokens) close() {
	t.mu.Lock()
	t.closed = true
	if t.stop != nil {
		t.stop()
	}
	t.mu.Unlock()
	t.fetches.Wait()
}

// redact takes our secrets out of a text that Dropbox, or whoever answers in its place, has written.
func (t *tokens) redact(text string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := []string{t.refresh.Reveal(), t.conf.ClientSecret}
	if t.current != nil {
		all = append(all, t.current.AccessToken)
	}
	for _, s := range all {
		if s != "" {
			text = strings.ReplaceAll(text, s, "…")
		}
	}
	return text
}

var (
	errGrant  = errors.New("the refreshToken is refused: it was revoked, or belongs to another app. Connect the account again and replace the credential")
	errClient = errors.New("the app is refused: appKey or appSecret is wrong, or the app was disabled")
)

// explainToken returns err without what the token service has written, which might be anything.
func explainToken(err error) error {
	var no *oauth2.RetrieveError
	var transport *url.Error
	switch {
	case err == nil || errors.As(err, &transport):
		return err
	case !errors.As(err, &no): // no JSON, no token in it, or it broke off
		return errAnswer
	}
	status := 0
	if no.Response != nil {
		status = no.Response.StatusCode
	}
	switch {
	case no.ErrorCode == "invalid_grant":
		return fault.New("mounts/dropbox.token", "", fault.Unauthenticated, errGrant)
	case no.ErrorCode == "invalid_client" || no.ErrorCode == "unauthorized_client" || status == http.StatusUnauthorized || status == http.StatusBadRequest:
		return fault.New("mounts/dropbox.token", "", fault.Unauthenticated, errClient)
	}
	return &refusal{status: status, route: "oauth2/token"}
}
