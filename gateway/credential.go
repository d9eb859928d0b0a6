package gateway

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// The modes of a datasource's credentials.
const (
	Shared   = "shared"  // one for all
	PerUser  = "user"    // each user's own, entered by the user or an admin, sealed in the store
	PerLogin = "session" // the name and password of the login passed on, kept sealed in memory as long as the session
)

// credentialSet are the credentials a datasource is opened with for one user. Its key changes with them.
type credentialSet struct {
	values map[string]secret.String
	key    string
	shared bool // the datasource's own, for want of others
}

// credentialAge is how long stored credentials are taken for what they were. Those put in this process count at once.
const credentialAge = 5 * time.Second

// credentialsOf returns what ds is opened with for the session's user, or Denied with what is missing. A Cell or a link over a datasource
// acts as its owner: what counts are the credentials the owner has stored, never a password somebody else signed in with.
func (ds *datasource) credentialsOf(ctx context.Context, s *Session) (credentialSet, error) {
	var set credentialSet
	var err error
	sub := s.Subject()
	switch ds.cfg.Mode {
	case PerUser:
		set, err = ds.stored(ctx, sub)
	case PerLogin:
		set, err = s.core.passport.use(ds.g)
		if sub.Credential != "password" {
			err = errNoPassport
		}
	}
	if err == nil {
		set.key = strconv.FormatInt(sub.ID, 36) + " " + set.key
		return set, nil
	}
	if ds.cfg.Fallback == Shared && (errors.Is(err, errNoCredentials) || errors.Is(err, errNoPassport)) {
		return credentialSet{values: ds.cfg.Credentials, shared: true}, nil
	}
	kind := fault.Denied
	if !errors.Is(err, errNoCredentials) && !errors.Is(err, errNoPassport) {
		kind = fault.KindOf(err)
	}
	return set, fault.New("gateway.open", ds.cfg.Name, kind, err)
}

var (
	errNoCredentials = errors.New("this datasource is opened with each user's own credentials, and none are stored for this one")
	errNoPassport    = errors.New("this datasource is opened with the password of the login: an app password, a key, a presigned request or a job has none")
)

// stored returns the user's own credentials.
func (ds *datasource) stored(ctx context.Context, sub *policy.Subject) (set credentialSet, err error) {
	var sealed []byte
	var changed int64
	err = ds.g.db.QueryRow(ctx, `SELECT sealed, changed FROM credentials WHERE datasource = $1 AND user_id = $2`, ds.cfg.Name, sub.ID).Scan(&sealed, &changed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return set, errNoCredentials
	case err != nil:
		return set, err
	}
	values, err := ds.g.unsealMap(sealed, userContext(ds.cfg.Name, sub.ID))
	if err != nil {
		return set, err
	}
	// What is the same for all, such as a domain or an app's key, need not be entered by everybody.
	all := maps.Clone(ds.cfg.Credentials)
	if all == nil {
		all = make(map[string]secret.String)
	}
	maps.Copy(all, values)
	return credentialSet{values: all, key: strconv.FormatInt(changed, 36)}, nil
}

func userContext(datasource string, user int64) string {
	return "datasource " + datasource + " user " + strconv.FormatInt(user, 10)
}

// PutCredentials stores within tx what the datasource is opened with for a user, in place of what was stored; nil forgets it. It reports
// whether anything changed. Keys are those of the driver. Only datasources in mode PerUser have such.
func (g *Gateway) PutCredentials(tx *store.Tx, datasource string, user int64, values map[string]secret.String) (changed bool, err error) {
	const op = "gateway.PutCredentials"
	found, err := g.loadDatasources(tx, datasource)
	if err != nil {
		return false, err
	}
	if len(found) == 0 {
		return false, fault.New(op, datasource, fault.NotExist, errors.New("there is no such datasource"))
	}
	if found[0].Mode != PerUser {
		return false, fault.New(op, datasource, fault.Invalid, fmt.Errorf("the datasource has credentials of the mode %q; only those of the mode %q are stored for each user", found[0].Mode, PerUser))
	}
	if errs := g.checkSecrets(found[0].Driver, values); len(errs) > 0 {
		return false, fault.New(op, datasource, fault.Invalid, errors.Join(errs...))
	}
	context := userContext(datasource, user)
	var sealed []byte
	err = tx.QueryRow(`SELECT sealed FROM credentials WHERE datasource = $1 AND user_id = $2`, datasource, user).Scan(&sealed)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		if len(values) == 0 {
			return false, nil
		}
	case err != nil:
		return false, fault.Wrap(op, datasource, err)
	case len(values) > 0:
		if was, err := g.unsealMap(sealed, context); err == nil && maps.Equal(was, values) {
			return false, nil
		}
	}
	if ds := g.table.Load().datasources[datasource]; ds != nil {
		tx.OnCommit(func() { ds.tenants.forget(user) })
	}
	if len(values) == 0 {
		_, err = tx.Exec(`DELETE FROM credentials WHERE datasource = $1 AND user_id = $2`, datasource, user)
		return true, fault.Wrap(op, datasource, err)
	}
	if sealed, err = g.sealMap(values, context); err != nil {
		return false, fault.Wrap(op, datasource, err)
	}
	_, err = tx.Exec(`INSERT INTO credentials (datasource, user_id, sealed, changed) VALUES ($1, $2, $3, $4)
		ON CONFLICT (datasource, user_id) DO UPDATE SET sealed = excluded.sealed, changed = excluded.changed`, datasource, user, sealed, g.now())
	return true, fault.Wrap(op, datasource, err)
}

// CredentialHolders returns the ids of the users who have stored credentials for a datasource, with when they were last changed.
func (g *Gateway) CredentialHolders(ctx context.Context, datasource string) (map[int64]time.Time, error) {
	rows, err := g.db.Query(ctx, `SELECT user_id, changed FROM credentials WHERE datasource = $1`, datasource)
	if err != nil {
		return nil, fault.Wrap("gateway.CredentialHolders", datasource, err)
	}
	defer rows.Close()
	holders := make(map[int64]time.Time)
	for rows.Next() {
		var user, changed int64
		if err := rows.Scan(&user, &changed); err != nil {
			return nil, fault.Wrap("gateway.CredentialHolders", datasource, err)
		}
		holders[user] = time.Unix(0, changed).UTC()
	}
	return holders, fault.Wrap("gateway.CredentialHolders", datasource, rows.Err())
}

// CheckCredentials returns every problem of credentials for a driver.
func (g *Gateway) CheckCredentials(driver string, values map[string]secret.String) []error {
	return g.checkSecrets(driver, values)
}

// checkSecrets says which of values the driver has no use for.
func (g *Gateway) checkSecrets(driver string, values map[string]secret.String) (errs []error) {
	d, ok := g.drivers[driver]
	if !ok || d.Secrets == nil {
		return nil
	}
	for key := range values {
		if !has(d.Secrets, key) {
			errs = append(errs, fmt.Errorf("driver %s has no credential %q: it has %s", driver, key, names(d.Secrets)))
		}
	}
	return errs
}

// passport is the name and password somebody signed in with, sealed. The zero passport is nobody's.
type passport struct {
	login  string
	sealed []byte
	key    string
}

// use opens the passport.
func (p *passport) use(g *Gateway) (set credentialSet, err error) {
	if p == nil {
		return set, errNoPassport
	}
	password, err := g.keys.Unseal(p.sealed, "passport "+p.login)
	if err != nil {
		return set, err
	}
	return credentialSet{values: map[string]secret.String{"username": secret.New(p.login), "password": secret.New(string(password))}, key: p.key}, nil
}

// Carry returns the session with the password its user signed in with, for datasources that ask for it. It is kept sealed, and only for a
// login by password; no other kind of credential is one that a backend would know.
func (s *Session) Carry(password secret.String) (*Session, error) {
	sub := s.Subject()
	if sub.Credential != "password" {
		return s, nil
	}
	sealed, err := s.g.keys.Seal([]byte(password.Reveal()), "passport "+sub.Login)
	if err != nil {
		return nil, fault.Wrap("gateway.Carry", "", err)
	}
	mac := hmac.New(sha256.New, s.g.passportKey)
	mac.Write([]byte(password.Reveal()))
	c := *s
	c.core = &core{budget: s.core.budget, passport: &passport{login: sub.Login, sealed: sealed, key: hex.EncodeToString(mac.Sum(nil)[:16])}}
	c.core.bound.Store(s.core.bound.Load())
	return &c, nil
}

// newPassportKey makes the key that tells passwords apart in memory without showing them.
func newPassportKey() []byte {
	key := make([]byte, 32)
	rand.Read(key)
	return key
}

func (g *Gateway) sealMap(values map[string]secret.String, context string) ([]byte, error) {
	if len(values) == 0 {
		return nil, nil
	}
	plain := make(map[string]string, len(values))
	for k, v := range values {
		plain[k] = v.Reveal()
	}
	b, err := json.Marshal(plain)
	if err != nil {
		return nil, fault.New("gateway.sealMap", context, fault.Internal, err)
	}
	return g.keys.Seal(b, context)
}

func (g *Gateway) unsealMap(sealed []byte, context string) (map[string]secret.String, error) {
	b, err := g.keys.Unseal(sealed, context)
	if err != nil {
		return nil, err
	}
	var plain map[string]string
	if err := json.Unmarshal(b, &plain); err != nil {
		return nil, fault.New("gateway.unsealMap", context, fault.Corrupt, err)
	}
	values := make(map[string]secret.String, len(plain))
	for k, v := range plain {
		values[k] = secret.New(v)
	}
	return values, nil
}

// has reports whether an option of that name is among all, and names lists them.
func has(all []mounts.Option, name string) bool {
	return slices.ContainsFunc(all, func(o mounts.Option) bool { return o.Name == name })
}

func names(all []mounts.Option) string {
	words := make([]string, len(all))
	for i, o := range all {
		words[i] = o.Name
	}
	return strings.Join(words, ", ")
}

func requires(all []mounts.Option, name string) bool {
	return slices.ContainsFunc(all, func(o mounts.Option) bool { return o.Name == name && o.Required })
}
