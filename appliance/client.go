package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"

	"cellgate/appliance/strict"
	"cellgate/internal/fault"
)

// client speaks with a running box over its admin socket.
type client struct {
	socket string
	http   *http.Client
}

func newClient(socket string) *client {
	return &client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dialSocket(ctx, socket) },
	}}}
}

// errNoBox says that nobody answers at the socket.
var errNoBox = errors.New("no box is running")

// send makes a request and returns its answer's body. An answer of 4xx or 5xx becomes the error it carries.
func (c *client) send(ctx context.Context, method, path string, in io.Reader) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://cellgate"+path, in)
	if err != nil {
		return nil, err
	}
	res, err := c.http.Do(req)
	if err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("%w on %s; start it with cellgate serve, or name its folder with --data", errNoBox, c.socket)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("%s belongs to another user; run the command as the one who runs the box", c.socket)
		}
		return nil, err
	}
	if res.StatusCode < 400 {
		return res.Body, nil
	}
	defer res.Body.Close()
	var failure apiError
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<20)).Decode(&failure); err != nil {
		return nil, fmt.Errorf("the box answered %s", res.Status)
	}
	if len(failure.Problems) > 0 {
		return nil, failure.Problems
	}
	return nil, &failure
}

// call sends in as JSON, unless it is nil, and decodes the answer into out, unless that is nil.
func (c *client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	res, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer res.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(res).Decode(out)
}

// apiError is a failure as the admin API sends it.
type apiError struct {
	Kind     string          `json:"kind"`
	Text     string          `json:"error"`
	Problems strict.Problems `json:"problems,omitempty"`
}

func (e *apiError) Error() string { return e.Text }

// plain returns an error in words for people: without the names of our functions, which the log has.
func plain(err error) string {
	f, ok := err.(*fault.Error)
	if !ok {
		if !errors.As(err, &f) {
			return err.Error()
		}
		return strings.ReplaceAll(strings.Replace(err.Error(), f.Error(), plain(f), 1), "\n", "; ") // the words round it count, too
	}
	text := f.Kind.String()
	if f.Err != nil {
		var below *fault.Error
		switch cause := plain(f.Err); {
		case errors.As(f.Err, &below):
			text = strings.TrimPrefix(cause, f.Path+": ")
		case f.Kind == fault.Invalid:
			text = cause
		default:
			text += ": " + cause
		}
	}
	if f.Path == "" {
		return text
	}
	return f.Path + ": " + text
}
