package appliance

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLoadOrder(t *testing.T) {
	dir := t.TempDir()
	file, secretFile := filepath.Join(dir, "c.yaml"), filepath.Join(dir, "url")
	write(t, file, "http: 127.0.0.1:1\nlog: {level: warn, format: json}\nlimits: {idleTimeout: 5m}\ntrustedProxies: [10.0.0.0/8]\n")
	write(t, secretFile, "postgres://u:p@h/db\n")
	l, err := Load(file, []string{
		"CELLGATE_LOG_LEVEL=error", "CELLGATE_HTTP=127.0.0.1:2", "CELLGATE_DATABASE_FILE=" + secretFile, "CELLGATE_TLS_DOMAINS=a.example, b.example",
		"CELLGATE_METRICS_ALLOW=127.0.0.1,10.0.0.0/8", "CELLGATE_SERVICE_HOST=10.0.0.1", "OTHER=1",
	}, map[string]string{"http": "127.0.0.1:3"})
	if err != nil {
		t.Fatal(err)
	}
	got := []any{l.HTTP, l.Log.Level, l.Log.Format, l.Limits.IdleTimeout, l.Database.Reveal(), l.TLS.Domains, l.Metrics.Allow[0].String(), l.TrustedProxies[0].String(), l.SFTP}
	want := []any{"127.0.0.1:3", "error", "json", 5 * time.Minute, "postgres://u:p@h/db", []string{"a.example", "b.example"}, "127.0.0.1/32", "10.0.0.0/8", "127.0.0.1:2022"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"environment: CELLGATE_SERVICE_HOST is no setting"}, l.Warnings); diff != "" {
		t.Error(diff)
	}
}

func TestLoadRefusesValueAndFile(t *testing.T) {
	_, err := Load("", []string{"CELLGATE_DATABASE=postgres://a", "CELLGATE_DATABASE_FILE=/x"}, nil)
	if err == nil || !strings.Contains(err.Error(), "CELLGATE_DATABASE_FILE: given together with CELLGATE_DATABASE") {
		t.Errorf("error is %v", err)
	}
}

func TestValidate(t *testing.T) {
	if ps := new(Config).Validate(); len(ps) < 8 {
		t.Errorf("an empty configuration has %d problems: %v", len(ps), ps)
	}
	c := Default()
	if ps := c.Validate(); len(ps) > 0 {
		t.Errorf("the default has problems: %v", ps)
	}
	c.HTTP = off
	c.Services = []string{"webdav", "gopher"}
	c.TLS = TLS{Mode: "files"}
	if got := c.Validate().Error(); strings.Count(got, "\n") != 2 {
		t.Errorf("problems are\n%s", got)
	}
}

// TestExample keeps the example file what the code says. Run go generate when it fails.
func TestExample(t *testing.T) {
	file, err := os.ReadFile("config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Example(), string(file)); diff != "" {
		t.Error("config.example.yaml is stale, run go generate ./appliance\n" + diff)
	}
	l, err := Load("config.example.yaml", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := Default()
	got, want := leavesOf(reflect.ValueOf(&l.Config).Elem(), ""), leavesOf(reflect.ValueOf(&d).Elem(), "")
	for i := range want {
		g, w := got[i].value, want[i].value
		if g.Kind() == reflect.Slice && g.Len() == 0 && w.Len() == 0 {
			continue
		}
		if !reflect.DeepEqual(g.Interface(), w.Interface()) {
			t.Errorf("the example has %s = %v, the default is %v", want[i].key, g.Interface(), w.Interface())
		}
	}
}

func TestSize(t *testing.T) {
	for in, want := range map[string]size{"0": 0, "-1": -1, "1048576": 1 << 20, "10MiB": 10 << 20, "1 GB": 1e9, "5B": 5} {
		var s size
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want {
			t.Errorf("%q is %d, %v, want %d", in, s, err, want)
		}
	}
	for _, in := range []string{"", "x", "-2", "-1MiB", "10000000PiB", "1.5GB", "GiB"} {
		var s size
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is taken for %d", in, s)
		}
	}
	for in, want := range map[int64]string{-1: "-", 0: "0 B", 1023: "1023 B", 1 << 20: "1.0 MiB", 5 << 39: "2.5 TiB"} {
		if got := bytesText(in); got != want {
			t.Errorf("bytesText(%d) = %s, want %s", in, got, want)
		}
	}
}

func TestCell(t *testing.T) {
	for in, want := range map[string]string{"": "", "a": "a", "=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@x": "'@x", "a\r\nb\tc": "a b c", "\t=1": "' =1", "＝1": "'＝1"} {
		if got := cell(in); got != want {
			t.Errorf("cell(%q) = %q, want %q", in, got, want)
		}
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
