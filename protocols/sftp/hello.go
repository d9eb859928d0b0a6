package sftp

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/cpu"
)

// The client's order of ciphers wins (RFC 4253 §7.1), and that of OpenSSH begins with chacha20-poly1305, which costs a processor with instructions
// for AES three times what AES-GCM does. So the server looks at what the client offers before it makes its own offer: to who knows AES-GCM it
// offers nothing else. What was read is read again by the library, and the version, which has been sent already, is not sent twice.

const (
	maxLine    = 255             // of a version, RFC 4253 §4.2
	maxLines   = 64              // before it
	maxKexInit = 35000           // RFC 4253 §6.1
	kexWait    = 2 * time.Second // for a client that wants to hear our offer first; nobody is known to
	msgKexInit = 20
)

// preview is a connection whose first bytes have been read already.
type preview struct {
	*conn
	version []byte // sent already
	read    []byte // to be read again
}

func (p *preview) Read(b []byte) (int, error) {
	if len(p.read) == 0 {
		return p.conn.Read(b)
	}
	n := copy(b, p.read)
	if p.read = p.read[n:]; len(p.read) == 0 {
		p.read = nil
	}
	return n, nil
}

func (p *preview) Write(b []byte) (int, error) {
	if p.version != nil {
		v := p.version
		p.version = nil
		if bytes.Equal(b, v) {
			return len(b), nil
		}
	}
	return p.conn.Write(b)
}

// look exchanges versions with the client, and returns the ciphers to offer it. deadline is that of the handshake.
func (c *conn) look(version string, deadline time.Time) (*preview, []string, error) {
	p := &preview{conn: c, version: []byte(version + "\r\n")}
	if _, err := c.Write(p.version); err != nil {
		return nil, nil, err
	}
	all := algorithms().Ciphers
	buf := make([]byte, 0, 4<<10)
	// more reads until the first n bytes are there.
	more := func(n int) error {
		for len(buf) < n {
			buf = slices.Grow(buf, max(n-len(buf), 2<<10))
			k, err := c.Read(buf[len(buf):cap(buf)])
			buf = buf[:len(buf)+k]
			if err != nil && len(buf) < n {
				return err
			}
		}
		return nil
	}
	at := 0
	for line := 0; ; line++ {
		end := bytes.IndexByte(buf[at:], '\n')
		if end < 0 {
			if len(buf)-at > maxLine {
				return nil, nil, errLong
			}
			if err := more(len(buf) + 1); err != nil {
				return nil, nil, err
			}
			line--
			continue
		}
		text := buf[at : at+end]
		at += end + 1
		if bytes.HasPrefix(text, []byte("SSH-")) {
			break
		}
		if line >= maxLines {
			return nil, nil, errLong
		}
	}
	if wait := time.Now().Add(kexWait); wait.Before(deadline) {
		c.SetReadDeadline(wait)
		defer c.SetReadDeadline(deadline)
	}
	// A client that offers nothing yet, or nonsense, is the library's.
	if more(at+5) == nil {
		if n := int64(binary.BigEndian.Uint32(buf[at:])); n >= 2 && n <= maxKexInit && more(at+4+int(n)) == nil {
			if offer := buf[at+5 : at+4+int(n)]; prefersGCM(offer) {
				all = []string{ssh.CipherAES128GCM, ssh.CipherAES256GCM}
			}
		}
	}
	p.read = buf
	return p, all, nil
}

// fastGCM says that this processor has instructions for AES-GCM.
func fastGCM() bool {
	return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM
}

// prefersGCM reports whether a client's offer has AES-GCM both ways and the server is the faster for it.
func prefersGCM(offer []byte) bool {
	in := input{b: offer}
	if !fastGCM() || len(offer) < 17 || offer[0] != msgKexInit {
		return false
	}
	in.b = in.b[17:] // and a cookie
	in.bytes()       // key exchanges
	in.bytes()       // host keys
	for range 2 {    // there and back
		list := strings.Split(in.str(), ",")
		if in.bad || !slices.Contains(list, ssh.CipherAES128GCM) && !slices.Contains(list, ssh.CipherAES256GCM) {
			return false
		}
	}
	return true
}
