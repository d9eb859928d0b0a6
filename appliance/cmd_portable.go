package appliance

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cellgate/gateway"
	"cellgate/mounts"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
)

type portableCmd struct {
	Dir      string `arg:"" help:"Folder to share." type:"path"`
	Address  string `default:"127.0.0.1:0" help:"Address to listen on; :0 shares with the network, in the clear unless --tls is given."`
	TLS      bool   `name:"tls" help:"Serve HTTPS with a certificate made for the occasion."`
	ReadOnly bool   `help:"Let nobody change anything."`
	Login    string `default:"cellgate" help:"Login to make."`
}

// portableSlug is the workspace's name, and so the folder that clients see.
const portableSlug = "files"

func (c *portableCmd) Run(t *term) (err error) {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is no folder", dir)
	}
	login, err := policy.CanonicalLogin(c.Login)
	if err != nil {
		return usagef("%v", err)
	}
	if err := checkAddress(c.Address); err != nil {
		return usagef("--address: %v", err)
	}
	if err := harden(); err != nil {
		return err
	}
	cfg := Default()
	if cfg.Data, err = os.MkdirTemp("", "cellgate-portable-"); err != nil {
		return err
	}
	area := filepath.Join(dir, mounts.Area)
	_, err = os.Lstat(area)
	used := err == nil // by another box: then it stays
	defer func() {
		err = errors.Join(err, os.RemoveAll(cfg.Data))
		if !used {
			err = errors.Join(err, os.RemoveAll(area))
		}
	}()
	host, _, _ := net.SplitHostPort(c.Address)
	free := net.JoinHostPort(host, "0")
	cfg.HTTP, cfg.SFTP, cfg.S3, cfg.Log.Access, cfg.Log.Level = c.Address, free, free, false, "warn"
	if c.TLS {
		cfg.HTTP, cfg.TLS.Mode, cfg.TLS.Address = off, "self-signed", c.Address
	}
	password := strings.ToLower(rand.Text())
	return serve(t.ctx, &cfg, nil, func(s *server) error {
		if err := s.share(t.ctx, dir, login, password, c.ReadOnly); err != nil {
			return err
		}
		key, err := s.identity.AddS3Key(t.ctx, login, "portable", identity.S3Pair{}, time.Time{})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(t.out, s.readyLine()); err != nil {
			return err
		}
		if !c.TLS && !loopback(c.Address) {
			say(t.err, "warning: the password and the files cross the network in the clear; --tls encrypts them\n")
		}
		s.commands(t.out, dir, login, password, key)
		return nil
	}, t.err)
}

// share makes the one workspace and the one user of a portable box.
func (s *server) share(ctx context.Context, dir, login, password string, readOnly bool) error {
	if _, err := s.createUser(ctx, account{Login: login, Group: "/", Profile: policy.Standard.String(), Password: password}, "portable"); err != nil {
		return err
	}
	rights := policy.Read | policy.Write
	if readOnly {
		rights = policy.Read
	}
	err := s.db.Update(ctx, func(tx *store.Tx) error {
		ds := gateway.Datasource{Name: "disk", Driver: "local", Options: map[string]string{"path": dir}, ReadOnly: readOnly}
		if _, err := s.gateway.PutDatasource(tx, ds); err != nil {
			return err
		}
		w := gateway.Workspace{Slug: portableSlug, Label: filepath.Base(dir), Roots: []string{"disk:/"}, Quota: -1}
		if _, err := s.gateway.PutWorkspace(tx, w); err != nil {
			return err
		}
		grant := policy.Grant{To: policy.Principal("user:" + login), On: policy.Place{Datasource: "disk", Path: "."}, Rights: rights}
		_, err := s.engine.ReplaceGrants(tx, "workspace:"+portableSlug, []policy.Grant{grant})
		return err
	})
	if err != nil {
		return err
	}
	if err := s.gateway.Reload(ctx); err != nil {
		return err
	}
	if ds := s.gateway.Datasources(ctx); len(ds) == 1 && ds[0].State != stateUp {
		return ds[0].Err
	}
	return nil
}

// commands prints how to get at the files from the systems people have.
func (s *server) commands(w io.Writer, dir, login, password string, key identity.S3Pair) {
	base := s.url()
	url := base + "/dav/" + portableSlug + "/"
	scheme, rest, _ := strings.Cut(base, "://")
	host, port, _ := net.SplitHostPort(rest)
	sftpHost, sftpPort, _ := net.SplitHostPort(s.address("sftp"))
	insecure, noCheck, noVerify := "", "", ""
	windows := `\\` + host + `@` + port + `\dav\` + portableSlug
	if scheme == "https" {
		insecure, noCheck, noVerify = " --insecure", " --no-check-certificate", " --no-verify-ssl"
		windows = `\\` + host + `@SSL@` + port + `\dav\` + portableSlug
	}
	say(w, `
sharing   %s
address   %s
login     %s
password  %s

curl      curl%s -u %s:%s %s
          curl%s -u %s:%s -T FILE %s
rclone    rclone%s lsf :webdav: --webdav-url %s --webdav-user %s --webdav-pass $(rclone obscure %s)
davfs2    mount -t davfs -o username=%s %s /mnt
sftp      sftp -P %s %s@%s:/%s
S3        AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s aws --endpoint-url %s%s s3 ls s3://%s
Windows   net use * %s /user:%s %s
macOS     Finder, Go, Connect to Server: %s
`, dir, url, login, password, insecure, login, password, url, insecure, login, password, url, noCheck, url, login, password, login, url,
		sftpPort, login, sftpHost, portableSlug, key.ID, key.Secret.Reveal(), s.s3URL(), noVerify, portableSlug, windows, login, password, url)
	if s.cert != nil {
		say(w, "\ncertificate fingerprint (SHA-256) %s\n", fingerprint(s.cert.current))
	}
	say(w, "\nStop with Ctrl-C; nothing is kept but the files.\n")
}
