package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/protocols/fuse"
)

type mountCmd struct {
	Dir        string `arg:"" help:"Folder to mount on." type:"path"`
	As         string `help:"User whose tree it is; without it, the user of the box with the name of who runs this." placeholder:"USER"`
	ReadOnly   bool   `help:"Let nobody change anything through the mount."`
	AllowOther bool   `help:"Let other users of this machine in, too."`
}

// mountRequest asks the box for a mount. It lasts as long as the connection.
type mountRequest struct {
	Dir        string `json:"dir"`
	User       string `json:"user"`
	ReadOnly   bool   `json:"readOnly"`
	AllowOther bool   `json:"allowOther"`
	UID        uint32 `json:"uid"`
	GID        uint32 `json:"gid"`
}

// mountEvent is a line of the answer.
type mountEvent struct {
	State string `json:"state"` // "mounted", "unmounted"
}

// remountEvery is how long mount waits between attempts to reach a box that has gone.
const remountEvery = time.Second

// Run mounts until it is told to stop or somebody unmounts. The box does the work, since it has the data folder; where none is running, this
// process is the box. When the box goes away, the mount comes back with it.
func (c *mountCmd) Run(t *term) error {
	if info, err := os.Stat(c.Dir); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is no folder", c.Dir)
	} else if errors.Is(err, os.ErrNotExist) {
		return err
	}
	if c.As == "" {
		me, err := user.Current()
		if err != nil {
			return usagef("name a user with --as: %v", err)
		}
		c.As = me.Username
	}
	req := mountRequest{Dir: c.Dir, User: c.As, ReadOnly: c.ReadOnly, AllowOther: c.AllowOther, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
	told := false
	tell := func() error {
		if told {
			return nil
		}
		told = true
		_, err := fmt.Fprintf(t.out, "mounted %s\n", c.Dir)
		return err
	}
	for first := true; ; first = false {
		gone, err := c.ask(t, req, tell)
		switch {
		case t.ctx.Err() != nil:
			return nil
		case errors.Is(err, errNoBox) && first:
			return t.offline(func(b *box) error { return b.mountHere(t.ctx, req, tell) })
		case err != nil && first:
			return err
		case gone:
			return nil
		}
		unmountStale(c.Dir)
		select {
		case <-t.ctx.Done():
			return nil
		case <-time.After(remountEvery):
		}
	}
}

// ask has the box mount and waits for the end. gone says that it was unmounted, and not that the box went away.
func (c *mountCmd) ask(t *term, req mountRequest, tell func() error) (gone bool, err error) {
	cl, err := t.local()
	if err != nil {
		return false, err
	}
	in, err := json.Marshal(req)
	if err != nil {
		return false, err
	}
	body, err := cl.send(t.ctx, http.MethodPost, "/v1/mount", bytes.NewReader(in))
	if err != nil {
		return false, err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var e mountEvent
		if err := dec.Decode(&e); err != nil {
			return false, nil // the box has gone
		}
		switch e.State {
		case "mounted":
			if err := tell(); err != nil {
				return false, err
			}
		case "unmounted":
			return true, nil
		}
	}
}

// unmountStale takes away what a box has left mounted when it was killed.
func unmountStale(dir string) {
	if _, err := os.Stat(dir); err != nil { // "transport endpoint is not connected"
		_ = exec.Command("fusermount3", "-uz", dir).Run()
	}
}

// openMount mounts a user's tree.
func (b *box) openMount(ctx context.Context, req mountRequest) (*fuse.Server, error) {
	if !filepath.IsAbs(req.Dir) {
		return nil, fault.New("appliance.mount", req.Dir, fault.Invalid, errors.New("not an absolute path"))
	}
	sub, err := b.identity.Subject(ctx, req.User)
	if err != nil {
		if fault.KindOf(err) == fault.NotExist {
			err = fault.New("appliance.mount", "", fault.NotExist, fmt.Errorf("there is no user %s; name one with --as", strconv.Quote(req.User)))
		}
		return nil, err
	}
	session := b.gateway.Session(sub)
	cfg := fuse.Config{
		Session: session, Credential: "local", Events: b.gateway.Events(), ReadOnly: req.ReadOnly, AllowOther: req.AllowOther,
		Place: func(p gateway.Path) (policy.Place, error) { return b.gateway.Place(session.Subject(), p) },
		UID:   req.UID, GID: req.GID, IgnoreOwners: req.UID == 0, Logger: b.log, Spool: filepath.Join(b.cfg.Data, "spool"),
	}
	return fuse.Mount(req.Dir, cfg)
}

// mountHere is mount without a running box.
func (b *box) mountHere(ctx context.Context, req mountRequest, tell func() error) error {
	m, err := b.openMount(ctx, req)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { m.Wait(); close(ended) }()
	if err := tell(); err != nil {
		return errors.Join(err, m.Unmount())
	}
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return m.Unmount()
	}
}

// mount answers a mountRequest: it mounts, says so, and unmounts when the client leaves or the box stops.
func (a *admin) mount(w http.ResponseWriter, r *http.Request) {
	var req mountRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		writeError(w, fault.New("appliance.mount", "", fault.Invalid, err))
		return
	}
	m, err := a.openMount(r.Context(), req)
	if err != nil {
		writeError(w, err)
		return
	}
	a.log.Info("mounted", "dir", req.Dir, "user", req.User)
	defer a.log.Info("unmounted", "dir", req.Dir, "user", req.User)
	ended := make(chan struct{})
	go func() { m.Wait(); close(ended) }()
	say := func(state string) {
		_ = json.NewEncoder(w).Encode(mountEvent{state}) // who has gone hears nothing
		_ = http.NewResponseController(w).Flush()
	}
	w.Header().Set("Content-Type", "application/json")
	say("mounted")
	select {
	case <-ended:
		say("unmounted")
		return
	case <-r.Context().Done():
	case <-a.stopping:
	}
	if err := m.Unmount(); err != nil {
		a.log.Warn("cannot unmount", "dir", req.Dir, "err", err)
	}
}
