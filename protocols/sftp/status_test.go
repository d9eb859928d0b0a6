package sftp

import (
	"testing"

	"cellgate/internal/fault"
)

func TestStatuses(t *testing.T) {
	for _, kind := range fault.Kinds() {
		code, ok := statuses[kind]
		if !ok {
			t.Errorf("%v has no status", kind)
		}
		in := input{b: answer(typeStatus, 7, 0).status(fault.New("op", "/p", kind, nil)).done()[9:]}
		if got, words := in.u32(), in.str(); got != code || words != kind.String() || code == statusOK || code == statusEOF {
			t.Errorf("%v is told as %d %q", kind, got, words)
		}
	}
	if len(statuses) != len(fault.Kinds()) {
		t.Errorf("%d statuses for %d kinds", len(statuses), len(fault.Kinds()))
	}
}
