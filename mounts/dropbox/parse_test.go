package dropbox

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/dropbox/dropbox-sdk-go-unofficial/v6/dropbox/files"

	"cellgate/internal/fault"
	"cellgate/mounts"
)

func TestParseRefusal(t *testing.T) {
	for _, test := range []struct {
		body   string
		tags   []string
		offset int64
	}{
		{`{"error_summary":"path/conflict/folder/..","error":{".tag":"path","path":{".tag":"conflict","conflict":{".tag":"folder"}}}}`, []string{"path", "conflict", "folder"}, -1},
		{`{"error_summary":"x","error":{".tag":"path","reason":{".tag":"insufficient_space"},"upload_session_id":"y"}}`, []string{"path", "insufficient_space"}, -1},
		{`{"error_summary":"to/malformed_path/..","error":{".tag":"to","to":{".tag":"malformed_path","malformed_path":"a text"}}}`, []string{"to", "malformed_path"}, -1},
		{`{"error_summary":"lookup_failed/incorrect_offset/...","error":{".tag":"lookup_failed","lookup_failed":{".tag":"incorrect_offset","correct_offset":42}}}`, []string{"lookup_failed", "incorrect_offset"}, 42},
		{`{"error_summary":"path/not_found/.."}`, []string{"path", "not_found"}, -1},
		{`{"error_summary":"path/not_found/..","error":"odd"}`, []string{"path", "not_found"}, -1},
		{`{"error":{".tag":"<script>"}}`, nil, -1},
		{`[]`, nil, -1},
		{``, nil, -1},
	} {
		got := parseRefusal(http.StatusConflict, []byte(test.body))
		if !slices.Equal(got.tags, test.tags) || got.offset != test.offset {
			t.Errorf("%s: %q, %d; want %q, %d", test.body, got.tags, got.offset, test.tags, test.offset)
		}
	}
}

func FuzzParseRefusal(f *testing.F) {
	f.Add(409, []byte(`{"error_summary":"path/conflict/folder/..","error":{".tag":"path","path":{".tag":"conflict","conflict":{".tag":"folder"}}}}`))
	f.Add(429, []byte(`{"error":{"reason":{".tag":"too_many_requests"},"retry_after":5}}`))
	f.Add(401, []byte(`{"error":{".tag":"missing_scope","required_scope":"files.content.write"}}`))
	f.Add(400, []byte("Error in call to API function \"x\": \x00\xff"))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		no := parseRefusal(status, body)
		text := no.Error()
		if len(text) > 1200 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q", text)
		}
		if no.wait < 0 || no.offset < -1 || len(no.tags) > 8 || no.kind() == fault.Internal {
			t.Errorf("%+v", no)
		}
	})
}

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		`{"path":"/plain"}`: `{"path":"/plain"}`, `{"path":"/ünï"}`: `{"path":"/\u00fcn\u00ef"}`, `"😀"`: `"\ud83d\ude00"`, "\"\x7f\"": `"\u007f"`,
	} {
		if got := escape(in); got != want {
			t.Errorf("escape(%s) = %s, want %s", in, got, want)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("ünï 日本語 😀 \u2028 \x7f \"quoted\" \\")
	f.Fuzz(func(t *testing.T, name string) {
		if !utf8.ValidString(name) {
			return
		}
		arg, err := json.Marshal(map[string]string{"path": name})
		if err != nil {
			t.Fatal(err)
		}
		got := escape(string(arg))
		if strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
			t.Errorf("%q is not fit for a header", got)
		}
		var back map[string]string
		if err := json.Unmarshal([]byte(got), &back); err != nil || back["path"] != name {
			t.Errorf("%q comes back as %q, %v", name, back["path"], err)
		}
	})
}

// FuzzPage: whatever a page of a listing holds, only possible names come out of it.
func FuzzPage(f *testing.F) {
	f.Add([]byte(`{"entries":[{".tag":"file","name":"f","path_display":"/Team/F","size":1,"client_modified":"2020-01-01T00:00:00Z"},null,{".tag":"deleted","path_lower":"/team"}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var page files.ListFolderResult
		if json.Unmarshal(body, &page) != nil {
			return
		}
		b := &Backend{root: "/team", depth: 1}
		for _, m := range page.Entries {
			if info, ok := describe(m); ok && (mounts.ValidName(info.Name) != nil || info.Size < 0) {
				t.Errorf("%+v", info)
			}
			if name, ok := b.changed(m); ok && mounts.ValidPath(name) != nil {
				t.Errorf("%q", name)
			}
		}
	})
}
