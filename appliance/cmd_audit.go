package appliance

import (
	"encoding/csv"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// auditRecord is a record of the audit log.
type auditRecord struct {
	Seq       int64     `json:"seq"`
	Time      time.Time `json:"time"`
	Actor     string    `json:"actor"`
	Action    string    `json:"action"`
	Outcome   string    `json:"outcome"`
	Place     string    `json:"place"`
	Path      string    `json:"path"`
	Protocol  string    `json:"protocol"`
	Addr      string    `json:"addr"`
	RequestID string    `json:"requestId"`
	Detail    string    `json:"detail"`
}

// auditReport is what verifying the log found.
type auditReport struct {
	Records int64  `json:"records"`
	OK      bool   `json:"ok"`
	Head    string `json:"head"`             // hash of the last record, to note outside
	Broken  int64  `json:"broken,omitempty"` // the first record that does not fit
	Text    string `json:"text,omitempty"`
}

type auditCmd struct {
	List   auditListCmd   `cmd:"" help:"List records, the latest last; with --json one array of them."`
	Verify auditVerifyCmd `cmd:"" help:"Verify that no record was changed, removed or put in."`
	Export auditExportCmd `cmd:"" help:"Write all records as CSV; with --json one object a line (NDJSON)."`
}

type auditFilter struct {
	User   string    `help:"Only what this user did."`
	Action string    `help:"Only this action."`
	Since  time.Time `help:"Only from this time on, such as 2026-12-01T00:00:00Z." format:"2006-01-02T15:04:05Z07:00"`
	Until  time.Time `help:"Only before this time." format:"2006-01-02T15:04:05Z07:00"`
}

func (f auditFilter) query(limit int) string {
	q := url.Values{}
	for key, v := range map[string]string{"user": f.User, "action": f.Action} {
		if v != "" {
			q.Set(key, v)
		}
	}
	for key, v := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !v.IsZero() {
			q.Set(key, v.UTC().Format(time.RFC3339Nano))
		}
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q.Encode()
}

// records streams the records that the filter passes.
func (f auditFilter) records(t *term, limit int, each func(auditRecord) error) error {
	box, err := t.local()
	if err != nil {
		return err
	}
	res, err := box.send(t.ctx, http.MethodGet, "/v1/audit?"+f.query(limit), nil)
	if err != nil {
		return err
	}
	defer res.Close()
	for dec := json.NewDecoder(res); ; {
		var r auditRecord
		if err := dec.Decode(&r); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := each(r); err != nil {
			return err
		}
	}
}

type auditListCmd struct {
	auditFilter
	Limit int `default:"100" help:"Most records, the latest ones; 0 for all."`
}

func (c *auditListCmd) Run(t *term) error {
	if t.cli.JSON {
		return c.array(t)
	}
	var failure error
	err := t.show(nil, func(w io.Writer) {
		say(w, "SEQ\tTIME\tACTOR\tACTION\tOUTCOME\tPATH\tPROTOCOL\tADDRESS\n")
		failure = c.records(t, c.Limit, func(r auditRecord) error {
			path := r.Path
			if path == "" {
				path = r.Place
			}
			say(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Seq, r.Time.Format(time.RFC3339), orDash(r.Actor), r.Action, r.Outcome, orDash(path),
				orDash(r.Protocol), orDash(r.Addr))
			return nil
		})
	})
	return errors.Join(failure, err)
}

// array prints the records as one array, a record a line, as they come: a log may be long.
func (c *auditListCmd) array(t *term) error {
	before := "["
	err := c.records(t, c.Limit, func(r auditRecord) error {
		_, err := io.WriteString(t.out, before+"\n")
		before = ","
		return errors.Join(err, encodeLine(t.out, r))
	})
	if err != nil {
		return err
	}
	if before == "[" {
		_, err = io.WriteString(t.out, "[]\n")
	} else {
		_, err = io.WriteString(t.out, "]\n")
	}
	return err
}

// encodeLine writes v as a line of JSON.
func encodeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

type auditVerifyCmd struct{}

func (c *auditVerifyCmd) Run(t *term) error {
	var out auditReport
	if err := t.call(http.MethodPost, at("audit", "verify"), nil, &out); err != nil {
		return err
	}
	if err := t.show(out, func(w io.Writer) {
		if out.OK {
			say(w, "%s, all in order\n", count(int(out.Records), "record"))
		} else {
			say(w, "record %d: %s\n", out.Broken, out.Text)
		}
	}); err != nil {
		return err
	}
	if !out.OK {
		return errReported
	}
	return nil
}

type auditExportCmd struct {
	auditFilter
}

func (c *auditExportCmd) Run(t *term) error {
	if t.cli.JSON {
		return c.records(t, 0, func(r auditRecord) error { return encodeLine(t.out, r) })
	}
	w := csv.NewWriter(t.out)
	w.UseCRLF = true // RFC 4180 §2
	_ = w.Write([]string{"seq", "time", "actor", "action", "outcome", "place", "path", "protocol", "address", "request", "detail"})
	err := c.records(t, 0, func(r auditRecord) error {
		row := []string{strconv.FormatInt(r.Seq, 10), r.Time.Format(time.RFC3339Nano), r.Actor, r.Action, r.Outcome, r.Place, r.Path, r.Protocol, r.Addr, r.RequestID, r.Detail}
		for i := range row {
			row[i] = cell(row[i])
		}
		return w.Write(row)
	})
	w.Flush()
	return errors.Join(err, w.Error())
}

// cell keeps a spreadsheet from taking what a client sent for a formula: what begins like one gets an apostrophe in front, and a cell has
// one line.
func cell(s string) string {
	s = strings.NewReplacer("\r\n", " ", "\r", " ", "\n", " ", "\t", " ", "\x00", "").Replace(s)
	if first := strings.TrimLeft(s, " "); first != "" && strings.ContainsRune("=+-@＝＋－＠", []rune(first)[0]) {
		return "'" + s
	}
	return s
}
