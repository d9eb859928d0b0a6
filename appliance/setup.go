package appliance

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"html/template"
	"net/http"
	"net/url"
	"sync"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/policy"
	"cellgate/policy/identity"
)

const setupLasts = time.Hour

// setup lets whoever reads the first output of a new box make its first user. The secret in the link is kept in memory only, as a hash; a
// restart makes another. Once it is used or too old, or once there is a user, the page is not there.
type setup struct {
	box *box

	mu    sync.Mutex
	token secret.String // until link has been printed
	hash  [sha256.Size]byte
	until time.Time // zero: nothing to set up
}

func newSetup(b *box) *setup { return &setup{box: b} }

// begin makes the secret when there are no users.
func (s *setup) begin(ctx context.Context) error {
	users, err := s.box.identity.Users(ctx, identity.UserFilter{Limit: 1})
	if err != nil || len(users) > 0 {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token = secret.New(rand.Text())
	s.hash, s.until = sha256.Sum256([]byte(s.token.Reveal())), s.box.clock.Now().Add(setupLasts)
	return nil
}

// link returns the link to print, once: after that the secret is known to the reader only. It is "" when there is nothing to set up.
func (s *setup) link(base string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token.IsZero() {
		return ""
	}
	token := s.token.Reveal()
	s.token = secret.String{}
	return base + "/setup?token=" + url.QueryEscape(token)
}

// fits reports whether token is the secret and still good. The caller holds mu.
func (s *setup) fits(token string) bool {
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(got[:], s.hash[:]) == 1 && s.box.clock.Now().Before(s.until)
}

var setupPage = template.Must(template.New("setup").Parse(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Set up cellgate</title>
<h1>Set up cellgate</h1>
{{if .Done}}<p>The admin {{.Login}} is made. This page is gone now. Administer the box with <code>cellgate --help</code> where it runs.</p>
{{else}}<p>Make the first user, an admin.</p>
{{with .Problem}}<p role="alert"><strong>{{.}}</strong></p>
{{end}}<form method="post" action="/setup" autocomplete="off">
<input type="hidden" name="token" value="{{.Token}}">
<p><label>Login <input name="login" value="{{.Login}}" required autocomplete="username" autocapitalize="none"></label></p>
<p><label>Password, at least 8 characters <input name="password" type="password" required minlength="8" autocomplete="new-password"></label></p>
<p><button>Make the admin</button></p>
</form>
{{end}}</html>
`))

type setupView struct {
	Token, Login, Problem string
	Done                  bool
}

// ServeHTTP shows the form to who has the link, and makes the admin.
func (s *setup) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	hd := w.Header()
	hd.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	hd.Set("Referrer-Policy", "no-referrer")
	hd.Set("X-Content-Type-Options", "nosniff")
	hd.Set("Cache-Control", "no-store")
	s.mu.Lock() // one at a time: the secret works once
	defer s.mu.Unlock()
	view, status := setupView{}, http.StatusOK
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		view.Token = r.URL.Query().Get("token")
	case http.MethodPost:
		r.Body = http.MaxBytesReader(w, r.Body, 16<<10)
		view.Token, view.Login = r.PostFormValue("token"), r.PostFormValue("login")
	default:
		view.Token = ""
	}
	if s.until.IsZero() || !s.fits(view.Token) || !s.nobody(r.Context()) {
		http.NotFound(w, r)
		return
	}
	if r.Method == http.MethodPost {
		switch err := s.make(r.Context(), view.Login, r.PostFormValue("password")); {
		case err == nil:
			s.until = time.Time{}
			view.Done, view.Token = true, ""
		case fault.KindOf(err) == fault.Invalid:
			view.Problem, status = plain(err), http.StatusUnprocessableEntity
		default:
			s.box.log.Error("setup", "err", err)
			view.Problem, status = "It did not work; the log says why.", http.StatusInternalServerError
		}
	}
	hd.Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_ = setupPage.Execute(w, view)
	}
}

// nobody reports whether there still are no users: somebody may have made one from the shell.
func (s *setup) nobody(ctx context.Context) bool {
	users, err := s.box.identity.Users(ctx, identity.UserFilter{Limit: 1})
	if err != nil {
		s.box.log.Error("setup", "err", err)
	}
	if len(users) > 0 {
		s.until = time.Time{}
	}
	return err == nil && len(users) == 0
}

// make makes the first user.
func (s *setup) make(ctx context.Context, login, password string) error {
	if len(password) < 8 {
		return fault.New("appliance.setup", "", fault.Invalid, errors.New("the password has less than 8 characters"))
	}
	_, err := s.box.createUser(ctx, account{Login: login, Group: "/", Profile: policy.Admin.String(), Password: password}, "setup")
	return err
}
