package webdav

import (
	"errors"
	"net/http"
	"testing"

	"cellgate/internal/fault"
)

// Every kind has a status of its own choosing, and none is a success.
func TestStatusOfEveryKind(t *testing.T) {
	for _, k := range fault.Kinds() {
		status, ok := statuses[k]
		if !ok || status < 400 || status > 599 {
			t.Errorf("kind %v: got status %d, %v", k, status, ok)
		}
		if got := statusOf(fault.New("test", "", k, nil)); got != status {
			t.Errorf("statusOf(%v): got %d, want %d", k, got, status)
		}
	}
	if got := statusOf(errors.New("anything")); got != http.StatusInternalServerError {
		t.Errorf("unclassified error: got %d", got)
	}
}
