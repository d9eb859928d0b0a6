package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"

	"cellgate/appliance/strict"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
)

// admin serves the admin API. Whoever reaches it may do everything: the socket's mode is the login.
type admin struct{ *server }

func newAdmin(s *server) *admin { return &admin{s} }

// maxRequest bounds a request's JSON; a declared state has a bound of its own.
const maxRequest = 1 << 20

// maxState is a little more than a declared state may have, so that the reader of the state says what is wrong.
const maxState = 9 << 20

// handler is the table of the admin API.
func (a *admin) handler() http.Handler {
	mux := http.NewServeMux()
	get(mux, "GET /v1/version", func(context.Context, *http.Request) (version, error) { return thisVersion(), nil })
	get(mux, "GET /v1/doctor", func(ctx context.Context, _ *http.Request) ([]check, error) { return a.doctor(ctx), nil })
	get(mux, "POST /v1/apply", func(ctx context.Context, r *http.Request) (applied, error) {
		src, err := io.ReadAll(io.LimitReader(r.Body, maxState))
		if err != nil {
			return applied{}, err
		}
		return a.apply(ctx, r.FormValue("source"), src)
	})
	take(mux, "POST /v1/explain", func(ctx context.Context, _ *http.Request, q question) (answer, error) { return a.explain(ctx, q) })

	get(mux, "GET /v1/users", func(ctx context.Context, _ *http.Request) ([]account, error) { return a.accounts(ctx) })
	take(mux, "POST /v1/users", func(ctx context.Context, _ *http.Request, u account) (account, error) {
		return a.createUser(ctx, u, localActor)
	})
	get(mux, "GET /v1/users/{login}", func(ctx context.Context, r *http.Request) (account, error) {
		return a.account(ctx, r.PathValue("login"))
	})
	take(mux, "PATCH /v1/users/{login}", func(ctx context.Context, r *http.Request, c accountChange) (account, error) {
		return a.changeUser(ctx, r.PathValue("login"), c)
	})
	take(mux, "PUT /v1/users/{login}/password", func(ctx context.Context, r *http.Request, u account) (account, error) {
		return a.setPassword(ctx, r.PathValue("login"), u.Password)
	})
	remove(mux, "DELETE /v1/users/{login}", func(ctx context.Context, r *http.Request) error { return a.deleteUser(ctx, r.PathValue("login")) })
	get(mux, "GET /v1/users/{login}/tokens", func(ctx context.Context, r *http.Request) ([]appPassword, error) {
		return a.appPasswords(ctx, r.PathValue("login"))
	})
	take(mux, "POST /v1/users/{login}/tokens", func(ctx context.Context, r *http.Request, p appPassword) (appPassword, error) {
		return a.addAppPassword(ctx, r.PathValue("login"), p)
	})
	remove(mux, "DELETE /v1/users/{login}/tokens/{id}", func(ctx context.Context, r *http.Request) error {
		return a.revokeAppPassword(ctx, r.PathValue("login"), r.PathValue("id"))
	})
	get(mux, "GET /v1/groups", func(ctx context.Context, _ *http.Request) ([]label, error) { return a.groups(ctx) })
	take(mux, "POST /v1/groups", func(ctx context.Context, _ *http.Request, l label) (label, error) { return l, a.putGroup(ctx, l) })
	remove(mux, "DELETE /v1/groups/{path}", func(ctx context.Context, r *http.Request) error { return a.deleteGroup(ctx, r.PathValue("path")) })
	get(mux, "GET /v1/roles", func(ctx context.Context, _ *http.Request) ([]label, error) { return a.roles(ctx) })
	take(mux, "POST /v1/roles", func(ctx context.Context, _ *http.Request, l label) (label, error) { return l, a.putRole(ctx, l) })
	remove(mux, "DELETE /v1/roles/{name}", func(ctx context.Context, r *http.Request) error { return a.deleteRole(ctx, r.PathValue("name")) })

	get(mux, "GET /v1/workspaces", func(ctx context.Context, _ *http.Request) ([]workspaceInfo, error) { return a.workspaces(ctx) })
	take(mux, "POST /v1/workspaces", func(ctx context.Context, _ *http.Request, w workspaceInfo) (workspaceInfo, error) {
		return a.putWorkspace(ctx, w)
	})
	get(mux, "GET /v1/workspaces/{slug}", func(ctx context.Context, r *http.Request) (workspaceInfo, error) {
		return a.workspace(ctx, r.PathValue("slug"))
	})
	remove(mux, "DELETE /v1/workspaces/{slug}", func(ctx context.Context, r *http.Request) error { return a.deleteWorkspace(ctx, r.PathValue("slug")) })
	get(mux, "GET /v1/datasources", func(ctx context.Context, _ *http.Request) ([]datasourceInfo, error) { return a.datasources(ctx), nil })
	take(mux, "POST /v1/datasources", func(ctx context.Context, _ *http.Request, d datasourcePut) (datasourceInfo, error) {
		return a.putDatasource(ctx, d)
	})
	get(mux, "GET /v1/datasources/{name}", func(ctx context.Context, r *http.Request) (datasourceInfo, error) {
		return a.datasource(ctx, r.PathValue("name"))
	})
	get(mux, "POST /v1/datasources/{name}/test", func(ctx context.Context, r *http.Request) (datasourceInfo, error) {
		return a.testDatasource(ctx, r.PathValue("name"))
	})
	get(mux, "POST /v1/datasources/{name}/forget", func(ctx context.Context, r *http.Request) (datasourceInfo, error) {
		return a.forgetDatasource(ctx, r.PathValue("name"))
	})
	get(mux, "GET /v1/datasources/{name}/credentials", func(ctx context.Context, r *http.Request) ([]credentialInfo, error) {
		return a.credentialHolders(ctx, r.PathValue("name"))
	})
	take(mux, "POST /v1/datasources/{name}/credentials", func(ctx context.Context, r *http.Request, in credentialInfo) (credentialInfo, error) {
		return credentialInfo{User: in.User}, a.putCredentials(ctx, r.PathValue("name"), in)
	})
	get(mux, "GET /v1/templates", func(ctx context.Context, r *http.Request) ([]templateInfo, error) {
		return a.templates(ctx, r.FormValue("user"))
	})
	take(mux, "POST /v1/templates/{name}/complete", func(ctx context.Context, r *http.Request, in credentialInfo) (completedInfo, error) {
		return a.completeTemplate(ctx, r.PathValue("name"), in)
	})
	remove(mux, "DELETE /v1/templates/{name}", func(ctx context.Context, r *http.Request) error { return a.deleteTemplate(ctx, r.PathValue("name")) })
	remove(mux, "DELETE /v1/datasources/{name}", func(ctx context.Context, r *http.Request) error { return a.deleteDatasource(ctx, r.PathValue("name")) })
	get(mux, "GET /v1/policies", func(ctx context.Context, _ *http.Request) ([]policyInfo, error) { return a.policies(ctx) })
	get(mux, "GET /v1/policies/{name}", func(ctx context.Context, r *http.Request) (policyInfo, error) {
		return a.policy(ctx, r.PathValue("name"))
	})
	remove(mux, "DELETE /v1/policies/{name}", func(ctx context.Context, r *http.Request) error { return a.deletePolicy(ctx, r.PathValue("name")) })

	mux.HandleFunc("POST /v1/mount", a.mount)
	mux.HandleFunc("GET /v1/audit", a.auditRecords)
	get(mux, "POST /v1/audit/verify", func(ctx context.Context, _ *http.Request) (auditReport, error) { return a.verifyAudit(ctx) })
	get(mux, "POST /v1/fsck", func(ctx context.Context, r *http.Request) ([]finding, error) {
		return a.fsck(ctx, r.FormValue("repair") == "true")
	})
	mux.HandleFunc("GET /v1/backup", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		if err := writeBackup(r.Context(), a.db, a.cfg.Data, w); err != nil {
			a.log.Error("backup", "err", err)
			panic(http.ErrAbortHandler) // the status is out; a connection that ends early is what is left to say
		}
	})
	get(mux, "/", func(context.Context, *http.Request) (struct{}, error) {
		return struct{}{}, fault.New("appliance.admin", "", fault.NotExist, errors.New("the box has nothing of that name"))
	})
	return a.contain(mux)
}

// contain turns a panic of a handler into an error of its request alone.
func (a *admin) contain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if e := recover(); e != nil {
				if e == http.ErrAbortHandler {
					panic(e)
				}
				a.log.Error("panic", "value", e, "stack", string(debug.Stack()))
				writeError(w, errors.New("internal error, see the log of the box"))
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// get is for what takes no JSON.
func get[Out any](mux *http.ServeMux, pattern string, fn func(context.Context, *http.Request) (Out, error)) {
	mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		out, err := fn(r.Context(), r)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, out)
	})
}

// take is for what takes JSON; unknown fields are refused.
func take[In, Out any](mux *http.ServeMux, pattern string, fn func(context.Context, *http.Request, In) (Out, error)) {
	get(mux, pattern, func(ctx context.Context, r *http.Request) (Out, error) {
		var in In
		dec := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&in); err != nil {
			var none Out
			return none, fault.New("appliance.admin", "", fault.Invalid, fmt.Errorf("the request: %w", err))
		}
		return fn(ctx, r, in)
	})
}

func remove(mux *http.ServeMux, pattern string, fn func(context.Context, *http.Request) error) {
	get(mux, pattern, func(ctx context.Context, r *http.Request) (struct{}, error) { return struct{}{}, fn(ctx, r) })
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // a client that went away needs no answer
}

// statuses says how the admin API tells each kind of failure.
var statuses = map[fault.Kind]int{
	fault.Internal: http.StatusInternalServerError, fault.NotExist: http.StatusNotFound, fault.Exist: http.StatusConflict,
	fault.Denied: http.StatusForbidden, fault.Unauthenticated: http.StatusUnauthorized, fault.Invalid: http.StatusBadRequest,
	fault.IsDir: http.StatusConflict, fault.NotDir: http.StatusConflict, fault.NotEmpty: http.StatusConflict, fault.Locked: http.StatusLocked,
	fault.Precondition: http.StatusPreconditionFailed, fault.TooLarge: http.StatusRequestEntityTooLarge, fault.Quota: http.StatusInsufficientStorage,
	fault.NoSpace: http.StatusInsufficientStorage, fault.Unsupported: http.StatusNotImplemented, fault.Busy: http.StatusServiceUnavailable,
	fault.Timeout: http.StatusGatewayTimeout, fault.Unavailable: http.StatusServiceUnavailable, fault.Corrupt: http.StatusInternalServerError,
	fault.Canceled: 499,
}

func writeError(w http.ResponseWriter, err error) {
	var problems strict.Problems
	if errors.As(err, &problems) {
		writeJSON(w, http.StatusUnprocessableEntity, apiError{Kind: fault.Invalid.String(), Text: count(len(problems), "problem"), Problems: problems})
		return
	}
	kind := fault.KindOf(err)
	writeJSON(w, statuses[kind], apiError{Kind: kind.String(), Text: plain(err)})
}

// localActor is who acts through the socket.
const localActor = "local"

// record writes an administrative act into the audit log, in the transaction that does it.
func (b *box) record(tx *store.Tx, actor, action, what string) {
	b.audit.Append(tx, audit.Record{Actor: actor, Action: action, Place: what, Outcome: "ok", Protocol: "admin"})
}

// note is record for what identity does in a transaction of its own.
func (b *box) note(login, action, detail string) {
	b.audit.Note(audit.Record{Actor: localActor, Action: action, Place: "user:" + policy.FoldLogin(login), Outcome: "ok", Protocol: "admin", Detail: detail})
}
