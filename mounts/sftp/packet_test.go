package sftp

import (
	"strings"
	"testing"
)

// FuzzReply: no answer makes the readers of packets panic or remember more than was sent, and what is sound is so again.
func FuzzReply(f *testing.F) {
	f.Add(byte(typeStatus), []byte{0, 0, 0, 4})
	f.Add(byte(typeName), append([]byte{0, 0, 0, 1, 0, 0, 0, 1, 'a', 0, 0, 0, 0}, 0, 0, 0, 4, 0, 0, 0x81, 0xa4))
	f.Add(byte(typeAttrs), []byte{0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(byte(typeData), []byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, typ byte, b []byte) {
		full, ok := sound(typ, b)
		if !ok {
			return
		}
		if again, ok := sound(typ, full); !ok || len(again) != len(full) {
			t.Errorf("type %d: %x is sound, %x is not", typ, b, full)
		}
		in := input{b: full}
		switch typ {
		case typeName:
			for _, e := range in.entries() {
				if len(e.name) > len(b) {
					t.Error("a name longer than its packet")
				}
				if i := e.attrs.info(e.name); i.Size < -1 {
					t.Errorf("size %d", i.Size)
				}
			}
		case typeAttrs:
			in.attrs()
		default:
			in.bytes()
		}
	})
}

// FuzzHostKeys: what an admin or the past wrote is understood or refused.
func FuzzHostKeys(f *testing.F) {
	f.Add("SHA256:" + strings.Repeat("A", 43))
	f.Add("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG9/RdqY49wRQ6aCf0vqp+nOuTYAazcdCHHgz8LR018q host\n# nothing")
	f.Fuzz(func(t *testing.T, text string) {
		keys, prints, err := parseHostKeys(text)
		if err != nil && len(keys)+len(prints) > 0 {
			t.Error("an error and keys")
		}
	})
}
