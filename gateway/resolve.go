package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/store"
)

// table is what is mounted where. It is replaced as a whole, never changed.
type table struct {
	datasources map[string]*datasource
	workspaces  map[string]*workspace
}

// workspace is a Workspace ready for resolving.
type workspace struct {
	Workspace
	roots []root
	names []string // of the folders that stand for the roots when there are several
}

// root is a place whose path may be a template.
type root struct {
	datasource string
	path       string // "." or slash-separated
	template   bool
}

var errTemplate = errors.New("a template may use {login} and {group}")

func parseRoot(s string) (root, error) {
	ds, path, ok := strings.Cut(s, ":")
	if !ok {
		return root{}, errors.New(`want "datasource:/path"`)
	}
	p, err := ParsePath(path)
	if err != nil {
		return root{}, err
	}
	for segment := range strings.SplitSeq(p.s, "/") {
		if mounts.Reserved(segment) {
			return root{}, fmt.Errorf("%s is the gateway's own folder", segment)
		}
	}
	r := root{datasource: ds, path: join(".", p.s)}
	for _, word := range tokenPattern.FindAllString(r.path, -1) {
		if word != "{login}" && word != "{group}" {
			return root{}, errTemplate
		}
		r.template = true
	}
	if !r.template && strings.ContainsAny(r.path, "{}") {
		return root{}, errTemplate
	}
	return r, nil
}

// expand returns the root's path for one user. It fails for one who has none: a user of the topmost group has no folder of a group.
func (r root) expand(sub *policy.Subject) (string, error) {
	if !r.template {
		return r.path, nil
	}
	group := strings.Trim(sub.Group, "/")
	if group == "" && strings.Contains(r.path, "{group}") {
		return "", errTemplate // of nobody, not of everybody
	}
	p, err := ParsePath(strings.NewReplacer("{login}", sub.Login, "{group}", group).Replace(r.path))
	if err == nil && reserved(p.s) {
		err = errTemplate
	}
	return join(".", p.s), err
}

func newWorkspace(w Workspace) (*workspace, error) {
	ws := &workspace{Workspace: w}
	for _, s := range w.Roots {
		r, err := parseRoot(s)
		if err != nil {
			return nil, fault.New("gateway.workspace", w.Slug, fault.Invalid, fmt.Errorf("root %q: %w", s, err))
		}
		name := r.datasource
		if r.path != "." {
			name = r.path[strings.LastIndexByte(r.path, '/')+1:]
		}
		unique := name
		for n := 2; slices.Contains(ws.names, unique); n++ {
			unique = name + "-" + strconv.Itoa(n)
		}
		ws.roots, ws.names = append(ws.roots, r), append(ws.names, unique)
	}
	return ws, nil
}

// place is datasource.place for a datasource that may not be there.
func (t *table) place(name, path string) policy.Place {
	if ds := t.datasources[name]; ds != nil {
		return ds.place(path)
	}
	return policy.Place{Datasource: name, Path: path}
}

// Reload reads datasources and workspaces from the store and makes the table theirs: opens what is new or changed, closes what is gone.
// Call it after a transaction that put or deleted some. It fails only when the store does.
func (g *Gateway) Reload(ctx context.Context) error {
	g.reload.Lock()
	defer g.reload.Unlock()
	var declared []Datasource
	var ws []Workspace
	err := g.db.View(ctx, func(tx *store.Tx) (err error) {
		if declared, err = g.loadDatasources(tx, ""); err != nil {
			return err
		}
		ws, err = loadWorkspaces(tx)
		return err
	})
	if err != nil {
		return err
	}
	old := g.table.Load()
	next := &table{datasources: make(map[string]*datasource), workspaces: make(map[string]*workspace)}
	var dropped []*datasource
	for _, cfg := range declared {
		was := old.datasources[cfg.Name]
		if was != nil && sameDatasource(was.cfg, cfg) {
			next.datasources[cfg.Name] = was
			continue
		}
		ds := &datasource{g: g, cfg: cfg, since: g.clock.Now()}
		if !ds.personal() {
			ds.err = errOpening
		}
		if was != nil {
			ds.lasting = was.lasting
		} else {
			ds.lasting = &lasting{serial: new(serial)}
			blind, err := g.db.Setting(ctx, "datasource."+cfg.Name+".case")
			if err != nil {
				return err
			}
			ds.blind.Store(blind != "")
		}
		next.datasources[cfg.Name] = ds
	}
	for name, ds := range old.datasources {
		if next.datasources[name] != ds {
			dropped = append(dropped, ds)
		}
	}
	for _, w := range ws {
		ready, err := newWorkspace(w)
		if err != nil {
			g.log.Error("a workspace in the store is not valid", "workspace", w.Slug, "err", err)
			continue
		}
		next.workspaces[w.Slug] = ready
	}
	for _, ds := range dropped {
		if err := ds.close(); err != nil {
			g.log.Warn("closing a datasource failed", "datasource", ds.cfg.Name, "err", err)
		}
	}
	g.attachAll(ctx, next)
	g.journal.resume(ctx, next)
	g.table.Store(next)
	for _, ds := range next.datasources {
		g.ensureRoots(ctx, next, ds)
	}
	return g.loadQuotas(ctx, next)
}

// attachWait is how long Reload waits for datasources to open. What takes longer is tended until it does, and costs nobody else anything.
const attachWait = 2 * time.Second

// attachAll opens the datasources of t side by side.
func (g *Gateway) attachAll(ctx context.Context, t *table) {
	done := make(chan struct{}, len(t.datasources))
	for _, ds := range t.datasources {
		g.wg.Go(func() {
			err := ds.attach(g.life) // it keeps its error itself
			done <- struct{}{}
			if err == nil && g.table.Load() == t { // too late for Reload
				g.ensureRoots(g.life, t, ds)
				g.journal.resume(g.life, t)
			}
		})
	}
	late := time.NewTimer(attachWait)
	defer late.Stop()
	for range t.datasources {
		select {
		case <-done:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// ensureRoots makes the root folders on ds that workspaces name and that are missing. Templates are made at their user's first access.
func (g *Gateway) ensureRoots(ctx context.Context, t *table, ds *datasource) {
	m, err := ds.open()
	if err != nil || ds.cfg.ReadOnly {
		return
	}
	for _, w := range t.workspaces {
		for _, r := range w.roots {
			if r.datasource == ds.cfg.Name && !r.template {
				if err := mounts.MkdirAll(ctx, m, r.path); err != nil {
					g.log.Warn("cannot make a workspace's root folder", "workspace", w.Slug, "root", r.datasource+":"+r.path, "err", err)
				}
			}
		}
	}
}

// loadDatasources returns the declared datasources by name, or the one called only.
func (g *Gateway) loadDatasources(tx *store.Tx, only string) (all []Datasource, err error) {
	rows, err := tx.Query(`SELECT name, driver, options, mode, fallback, credentials, read_only, durability, owner, template, guest FROM datasources
		WHERE $1 = '' OR name = $1 ORDER BY name`, only)
	if err != nil {
		return nil, fault.Wrap("gateway.loadDatasources", only, err)
	}
	defer rows.Close()
	for rows.Next() {
		var d Datasource
		var options string
		var sealed []byte
		var readOnly, guest int64
		if err := rows.Scan(&d.Name, &d.Driver, &options, &d.Mode, &d.Fallback, &sealed, &readOnly, &d.Durability, &d.Owner, &d.Template, &guest); err != nil {
			return nil, fault.Wrap("gateway.loadDatasources", only, err)
		}
		d.ReadOnly, d.Guest = readOnly != 0, guest != 0
		if err := json.Unmarshal([]byte(options), &d.Options); err != nil {
			return nil, fault.New("gateway.loadDatasources", d.Name, fault.Corrupt, err)
		}
		if sealed != nil {
			if d.Credentials, err = g.unsealMap(sealed, sealContext(d.Name)); err != nil {
				return nil, err
			}
		}
		all = append(all, d)
	}
	return all, fault.Wrap("gateway.loadDatasources", only, rows.Err())
}

func loadWorkspaces(tx *store.Tx) (all []Workspace, err error) {
	rows, err := tx.Query(`SELECT slug, label, roots, quota FROM workspaces ORDER BY slug`)
	if err != nil {
		return nil, fault.Wrap("gateway.loadWorkspaces", "", err)
	}
	defer rows.Close()
	for rows.Next() {
		var w Workspace
		var roots string
		if err := rows.Scan(&w.Slug, &w.Label, &roots, &w.Quota); err != nil {
			return nil, fault.Wrap("gateway.loadWorkspaces", "", err)
		}
		if err := json.Unmarshal([]byte(roots), &w.Roots); err != nil {
			return nil, fault.New("gateway.loadWorkspaces", w.Slug, fault.Corrupt, err)
		}
		all = append(all, w)
	}
	return all, fault.Wrap("gateway.loadWorkspaces", "", rows.Err())
}
