package appliance

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/protocols/s3"
	"cellgate/protocols/sftp"
	"cellgate/store"
)

// openSFTP opens the SFTP door. Its host keys are made at the first start and kept in the data folder.
func (s *server) openSFTP(ctx context.Context) error {
	if s.cfg.SFTP == off || !s.cfg.serves("sftp") {
		return nil
	}
	var err error
	if s.hostKeys, err = sftp.HostKeys(filepath.Join(s.cfg.Data, "ssh")); err != nil {
		return err
	}
	cfg := sftp.Config{Gateway: s.gateway, Identity: s.identity, HostKeys: s.hostKeys, Logger: s.log}
	if cfg.CAs, err = authorities(s.cfg.SSHAuthorities); err != nil {
		return err
	}
	srv, err := sftp.New(cfg)
	if err != nil {
		return err
	}
	l, err := listen(ctx, "sftp", s.cfg.SFTP)
	if err != nil {
		return err
	}
	s.doors = append(s.doors, &door{name: "sftp", listener: l, server: srv})
	return nil
}

// authorities reads a file of public keys, one a line as in authorized_keys.
func authorities(file string) (keys []ssh.PublicKey, err error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for text = bytes.TrimSpace(text); len(text) > 0; text = bytes.TrimSpace(text) {
		key, _, _, rest, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys, text = append(keys, key), rest
	}
	return keys, nil
}

// openS3 opens the S3 door, with TLS where HTTPS is served.
func (s *server) openS3(ctx context.Context, tc *tls.Config) error {
	if s.cfg.S3 == off || !s.cfg.serves("s3") {
		return nil
	}
	h, err := s3.New(s3.Config{
		Gateway: s.gateway, Identity: s.identity, Region: s.cfg.S3Region, Hosts: s.cfg.S3Domains, Buckets: buckets{s}, Logger: s.log, Clock: s.clock,
		Limits: s3.Limits{Stall: -1}, RequestID: func(r *http.Request) string { return r.Header.Get(requestIDHeader) },
		ClientAddr: func(r *http.Request) netip.Addr {
			at, _ := netip.ParseAddrPort(r.RemoteAddr) // the edge has seen to proxies
			return at.Addr().Unmap()
		},
	})
	if err != nil {
		return err
	}
	edge := newEdge(h, s.cfg, s.log, s.metrics)
	edge.door = "s3"
	return s.open(ctx, "s3", s.cfg.S3, edge, tc)
}

// buckets makes workspaces of buckets, for admins, where the configuration says so.
type buckets struct{ *server }

var (
	errNoBuckets = errors.New("nobody may make buckets here: the configuration names no place for them (s3Buckets)")
	errNotAdmin  = errors.New("only admins make and delete buckets")
	errNotBucket = errors.New("the workspace was not made as a bucket; an admin deletes it with cellgate workspace delete")
)

// may says whether sub may make and delete buckets.
func (b buckets) may(sub *policy.Subject, name string) error {
	switch {
	case b.cfg.S3Buckets == "":
		return fault.New("appliance.buckets", name, fault.Denied, errNoBuckets)
	case sub.Profile != policy.Admin:
		return fault.New("appliance.buckets", name, fault.Denied, errNotAdmin)
	}
	return nil
}

// root is the root of a bucket's workspace.
func (b buckets) root(name string) string {
	return strings.TrimSuffix(b.cfg.S3Buckets, "/") + "/" + name
}

// Create makes a workspace with a folder of its own, which is its maker's to read and write.
func (b buckets) Create(ctx context.Context, sub *policy.Subject, name string) error {
	if err := b.may(sub, name); err != nil {
		return err
	}
	b.administering.Lock()
	defer b.administering.Unlock()
	for _, w := range b.gateway.Workspaces() {
		if w.Slug == name {
			return fault.New("appliance.buckets", name, fault.Exist, nil)
		}
	}
	place, err := b.gateway.RootPlace(b.root(name))
	if err != nil {
		return err
	}
	w := gateway.Workspace{Slug: name, Label: name, Roots: []string{b.root(name)}, Quota: -1}
	if problems := b.gateway.CheckWorkspace(w); len(problems) > 0 {
		return fault.New("appliance.buckets", name, fault.Invalid, errors.Join(problems...))
	}
	err = b.db.Update(ctx, func(tx *store.Tx) error {
		if _, err := b.gateway.PutWorkspace(tx, w); err != nil {
			return err
		}
		grant := policy.Grant{To: policy.Principal("user:" + sub.Login), On: place, Rights: policy.Read | policy.Write}
		_, err := b.engine.ReplaceGrants(tx, "workspace:"+name, []policy.Grant{grant})
		return err
	})
	if err != nil {
		return err
	}
	return b.gateway.Reload(ctx)
}

// Delete takes a bucket's workspace away. Its folder stays, empty as it is.
func (b buckets) Delete(ctx context.Context, sub *policy.Subject, name string) error {
	if err := b.may(sub, name); err != nil {
		return err
	}
	b.administering.Lock()
	defer b.administering.Unlock()
	for _, w := range b.gateway.Workspaces() {
		if w.Slug == name && (len(w.Roots) != 1 || w.Roots[0] != b.root(name)) {
			return fault.New("appliance.buckets", name, fault.Denied, errNotBucket)
		}
	}
	err := b.db.Update(ctx, func(tx *store.Tx) error { return b.gateway.DeleteWorkspace(tx, name) })
	if err != nil {
		return err
	}
	return b.gateway.Reload(ctx)
}
