package bench

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"time"

	"github.com/cloudsoda/go-smb2"
	sdk "github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox"
	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/oauth2"

	"cellgate/mounts"
	"cellgate/mounts/servertest"
)

// client is one connection's worth of work with files, at the box or at the backend itself. Names are relative to the storage.
type client interface {
	put(name string, size int64) error // of zeros
	get(name string, off, n int64) (int64, error)
	remove(name string) error
	list(dir string) (int, error)
	mkdir(name string) error
	close() error
}

// zeros is a content of so many bytes.
func zeros(size int64) io.Reader { return io.LimitReader(endless{}, size) }

type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// drain reads a content to its end.
func drain(r io.Reader) (int64, error) {
	return io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, make([]byte, bufferSize))
}

// boxClient works through the box's WebDAV door.
type boxClient struct{ *conn }

func (c boxClient) put(name string, size int64) error { return putLarge(c.conn, "/"+name, size) }

func (c boxClient) get(name string, off, n int64) (int64, error) {
	header := ""
	if n >= 0 {
		header = fmt.Sprintf("Range: bytes=%d-%d\r\n", off, off+n-1)
	}
	return c.do(http.MethodGet, "/"+name, header, nil)
}

func (c boxClient) remove(name string) error {
	_, err := c.do(http.MethodDelete, "/"+name, "", nil)
	return err
}

// list does not know how many entries there are, only that the answer has room for them.
func (c boxClient) list(dir string) (int, error) {
	_, size, err := list(c.conn, path.Clean("/"+dir+"/"), named)
	return int(size / 100), err
}

func (c boxClient) mkdir(name string) error {
	_, err := c.do("MKCOL", "/"+name+"/", "", nil)
	return err
}

func (c boxClient) close() error { return c.Close() }

// sftpClient is pkg/sftp as it comes, but for uploads of several packets: as it comes it waits for an answer after each of 32 KiB.
type sftpClient struct {
	*sftp.Client
	over *ssh.Client
	root string
}

func dialSFTP(addr, root, user string, key ssh.Signer) (client, error) {
	conn, err := ssh.Dial("tcp", addr, &ssh.ClientConfig{
		User: user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), Timeout: time.Minute,
	})
	if err != nil {
		return nil, err
	}
	c, err := sftp.NewClient(conn, sftp.UseConcurrentWrites(true))
	return sftpClient{c, conn, root + "/"}, err
}

func (c sftpClient) put(name string, size int64) error {
	f, err := c.Create(c.root + name)
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(zeros(size))
	return errors.Join(err, f.Close())
}

func (c sftpClient) get(name string, off, n int64) (int64, error) {
	f, err := c.Open(c.root + name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if n < 0 {
		return f.WriteTo(io.Discard)
	}
	k, err := f.ReadAt(make([]byte, n), off)
	return int64(k), err
}

func (c sftpClient) remove(name string) error { return c.Client.Remove(c.root + name) }
func (c sftpClient) mkdir(name string) error  { return c.Mkdir(c.root + name) }

func (c sftpClient) list(dir string) (int, error) {
	all, err := c.ReadDir(c.root + dir)
	return len(all), err
}

func (c sftpClient) close() error { return errors.Join(c.Client.Close(), c.over.Close()) }

// davClient is net/http.
type davClient struct {
	http *http.Client
	base string
}

func newDAV(base string) client { return davClient{&http.Client{Transport: &http.Transport{}}, base} }

func (c davClient) do(method, name, header, value string, body io.Reader, size int64) (*http.Response, error) {
	r, err := http.NewRequest(method, c.base+name, body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = size
	if header != "" {
		r.Header.Set(header, value)
	}
	resp, err := c.http.Do(r)
	if err == nil && resp.StatusCode > 299 {
		resp.Body.Close()
		err = fmt.Errorf("%s %s: %s", method, name, resp.Status)
	}
	return resp, err
}

func (c davClient) done(method, name string, body io.Reader, size int64) error {
	resp, err := c.do(method, name, "", "", body, size)
	if err != nil {
		return err
	}
	_, err = drain(resp.Body)
	return errors.Join(err, resp.Body.Close())
}

func (c davClient) put(name string, size int64) error { return c.done("PUT", name, zeros(size), size) }
func (c davClient) remove(name string) error          { return c.done("DELETE", name, nil, 0) }
func (c davClient) mkdir(name string) error           { return c.done("MKCOL", name+"/", nil, 0) }

func (c davClient) get(name string, off, n int64) (int64, error) {
	key, value := "", ""
	if n >= 0 {
		key, value = "Range", fmt.Sprintf("bytes=%d-%d", off, off+n-1)
	}
	resp, err := c.do("GET", name, key, value, nil, 0)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	return drain(resp.Body)
}

func (c davClient) list(dir string) (int, error) {
	resp, err := c.do("PROPFIND", dir+"/", "Depth", "1", strings.NewReader(named), int64(len(named)))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var all struct {
		Responses []struct {
			Href string `xml:"href"`
			Size int64  `xml:"propstat>prop>getcontentlength"`
			Time string `xml:"propstat>prop>getlastmodified"`
		} `xml:"response"`
	}
	err = xml.NewDecoder(resp.Body).Decode(&all)
	return len(all.Responses) - 1, err
}

func (c davClient) close() error { c.http.CloseIdleConnections(); return nil }

// s3Client is minio-go as it comes.
type s3Client struct {
	*minio.Client
	over *http.Transport
}

func newS3(addr, access, key string) (client, error) {
	over := &http.Transport{}
	c, err := minio.New(addr, &minio.Options{Creds: credentials.NewStaticV4(access, key, ""), Region: "us-east-1", Transport: over})
	return s3Client{c, over}, err
}

func (c s3Client) put(name string, size int64) error {
	_, err := c.PutObject(context.Background(), servertest.S3Bucket, name, zeros(size), size, minio.PutObjectOptions{})
	return err
}

func (c s3Client) get(name string, off, n int64) (int64, error) {
	var opt minio.GetObjectOptions
	if n >= 0 {
		if err := opt.SetRange(off, off+n-1); err != nil {
			return 0, err
		}
	}
	o, err := c.GetObject(context.Background(), servertest.S3Bucket, name, opt)
	if err != nil {
		return 0, err
	}
	defer o.Close()
	return drain(o)
}

func (c s3Client) remove(name string) error {
	return c.RemoveObject(context.Background(), servertest.S3Bucket, name, minio.RemoveObjectOptions{})
}

func (c s3Client) mkdir(string) error { return nil } // there are no folders

func (c s3Client) list(dir string) (n int, err error) {
	for o := range c.ListObjects(context.Background(), servertest.S3Bucket, minio.ListObjectsOptions{Prefix: dir + "/"}) {
		if o.Err != nil {
			return n, o.Err
		}
		n++
	}
	return n, nil
}

func (c s3Client) close() error { c.over.CloseIdleConnections(); return nil }

// smbClient is go-smb2 as it comes.
type smbClient struct {
	*smb2.Share
	session *smb2.Session
}

func dialSMB(addr, user, password string) (client, error) {
	d := smb2.Dialer{Initiator: &smb2.NTLMInitiator{User: user, Password: password}}
	s, err := d.Dial(context.Background(), addr)
	if err != nil {
		return nil, err
	}
	share, err := s.Mount("data")
	return smbClient{share, s}, err
}

func (c smbClient) put(name string, size int64) error {
	f, err := c.Create(name)
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(zeros(size))
	return errors.Join(err, f.Close())
}

func (c smbClient) get(name string, off, n int64) (int64, error) {
	f, err := c.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if n < 0 {
		return f.WriteTo(io.Discard)
	}
	k, err := f.ReadAt(make([]byte, n), off)
	return int64(k), err
}

func (c smbClient) remove(name string) error { return c.Share.Remove(name) }
func (c smbClient) mkdir(name string) error  { return c.Mkdir(name, os.ModePerm) }

func (c smbClient) list(dir string) (int, error) {
	all, err := c.ReadDir(dir)
	return len(all), err
}

func (c smbClient) close() error { return errors.Join(c.Umount(), c.session.Logoff()) }

// driverClient is one of our drivers alone, where there is no library to compare with.
type driverClient struct{ mounts.Backend }

func (c driverClient) put(name string, size int64) error {
	_, err := c.Put(context.Background(), name, zeros(size), mounts.PutOptions{Size: size})
	return err
}

func (c driverClient) get(name string, off, n int64) (int64, error) {
	r, err := c.Open(context.Background(), name, off, n)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return drain(r)
}

func (c driverClient) remove(name string) error { return c.Remove(context.Background(), name) }
func (c driverClient) mkdir(name string) error  { return c.Mkdir(context.Background(), name) }

func (c driverClient) list(dir string) (n int, err error) {
	for _, err := range c.List(context.Background(), dir) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (c driverClient) close() error { return nil } // all share it

// dropboxClient is Dropbox's SDK as it comes.
type dropboxClient struct {
	files.Client
	over *http.Transport
}

func newDropbox(base, token string) client {
	over := &http.Transport{}
	return dropboxClient{files.New(sdk.Config{
		Client:       &http.Client{Transport: &oauth2.Transport{Source: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token}), Base: over}},
		URLGenerator: func(_, namespace, route string) string { return base + "/2/" + namespace + "/" + route },
	}), over}
}

// dropboxPart is how much one request carries; Dropbox takes 150 MB at most.
const dropboxPart = 64 << 20

func (c dropboxClient) put(name string, size int64) error {
	over := &files.WriteMode{Tagged: sdk.Tagged{Tag: files.WriteModeOverwrite}}
	if size <= dropboxPart {
		arg := files.NewUploadArg("/" + name)
		arg.Mode = over
		_, err := c.Upload(arg, zeros(size))
		return err
	}
	s, err := c.UploadSessionStart(files.NewUploadSessionStartArg(), nil)
	if err != nil {
		return err
	}
	done := int64(0)
	for ; size-done > dropboxPart; done += dropboxPart {
		arg := files.NewUploadSessionAppendArg(files.NewUploadSessionCursor(s.SessionId, uint64(done)))
		if err := c.UploadSessionAppendV2(arg, zeros(dropboxPart)); err != nil {
			return err
		}
	}
	commit := files.NewCommitInfo("/" + name)
	commit.Mode = over
	end := files.NewUploadSessionFinishArg(files.NewUploadSessionCursor(s.SessionId, uint64(done)), commit)
	_, err = c.UploadSessionFinish(end, zeros(size-done))
	return err
}

func (c dropboxClient) get(name string, off, n int64) (int64, error) {
	arg := files.NewDownloadArg("/" + name)
	if n >= 0 {
		arg.ExtraHeaders = map[string]string{"Range": fmt.Sprintf("bytes=%d-%d", off, off+n-1)}
	}
	_, r, err := c.Download(arg)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return drain(r)
}

func (c dropboxClient) remove(name string) error {
	_, err := c.DeleteV2(files.NewDeleteArg("/" + name))
	return err
}

func (c dropboxClient) mkdir(name string) error {
	_, err := c.CreateFolderV2(files.NewCreateFolderArg("/" + name))
	return err
}

func (c dropboxClient) list(dir string) (n int, err error) {
	page, err := c.ListFolder(files.NewListFolderArg("/" + dir))
	for err == nil {
		n += len(page.Entries)
		if !page.HasMore {
			break
		}
		page, err = c.ListFolderContinue(files.NewListFolderContinueArg(page.Cursor))
	}
	return n, err
}

func (c dropboxClient) close() error { c.over.CloseIdleConnections(); return nil }
