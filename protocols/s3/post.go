package s3

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"time"

	"cellgate/gateway"
)

// form is a POST of a browser ("Browser-Based Uploads Using POST"): fields, of which one is a signed policy, and then the file.
type form struct {
	fields map[string]string // by lower-case name
	file   *multipart.Part
	name   string // of the file, as the browser has it
}

// policy is what the owner of the key allows to be posted.
type postPolicy struct {
	Expiration string `json:"expiration"`
	Conditions []any  `json:"conditions"`
}

// readForm reads the fields up to the file.
func (q *request) readForm() (f form, err error) {
	_, params, err := mime.ParseMediaType(q.r.Header.Get("Content-Type"))
	if err != nil || params["boundary"] == "" || len(params["boundary"]) > 200 {
		return f, refuse(errMalformedPost)
	}
	left := q.h.cfg.Limits.Form
	r := multipart.NewReader(&q.body, params["boundary"])
	f.fields = make(map[string]string)
	for {
		part, err := r.NextRawPart()
		if err != nil {
			return f, refuse(errMalformedPost)
		}
		name := strings.ToLower(part.FormName())
		if name == "file" {
			f.file, f.name = part, part.FileName()
			if kind := part.Header.Get("Content-Type"); kind != "" && f.fields["content-type"] == "" {
				f.fields["\x00content-type"] = kind // the browser's own idea, which the policy says nothing of
			}
			return f, nil
		}
		b, err := io.ReadAll(io.LimitReader(part, left+1))
		if left -= int64(len(b) + len(name)); err != nil {
			return f, refuse(errMalformedPost)
		}
		if left < 0 || len(f.fields) > 200 {
			return f, refuse(answer{http.StatusBadRequest, "MaxPostPreDataLengthExceeded", "Your POST request fields preceding the upload file were too large."})
		}
		if _, twice := f.fields[name]; twice || name == "" {
			return f, refuse(errMalformedPost)
		}
		f.fields[name] = string(b)
	}
}

// postObject takes a file from a form.
func (q *request) postObject() error {
	if q.r.Header.Get("Authorization") != "" || q.query.has("X-Amz-Signature") || q.query.has("Signature") {
		return refuse(errTwoSignatures)
	}
	f, err := q.readForm()
	if err != nil {
		return err
	}
	sig, err := f.signature(q.h)
	if err != nil {
		return err
	}
	if err := q.signIn(sig, []byte(f.fields["policy"])); err != nil {
		return err
	}
	q.pay = payload{size: -1, signature: sig}
	if f.fields["key"] == "" {
		return refuseFor(errArgument, "Bucket POST must contain a field named 'key'.  If it is specified, please check the order of the fields.")
	}
	least, most, err := f.allowed(q.bucket, q.h.now())
	if err != nil {
		return err
	}
	q.key = strings.ReplaceAll(f.fields["key"], "${filename}", baseOf(f.name))
	return q.post(f, least, min(most, q.h.cfg.Limits.Object))
}

// baseOf is a file's name without the folders some browsers tell.
func baseOf(name string) string {
	return name[strings.LastIndexAny(name, `/\`)+1:]
}

// signature reads how the form is signed: the signed string is the policy as it came.
func (f form) signature(h *handler) (*signature, error) {
	switch {
	case f.fields["policy"] == "" && f.fields["x-amz-signature"] == "" && f.fields["signature"] == "":
		return nil, refuse(errAnonymous)
	case f.fields["x-amz-algorithm"] != algorithm:
		return nil, refuse(errOldSignature)
	}
	s := new(signature)
	var ok, ok2 bool
	s.credential, ok = parseCredential(f.fields["x-amz-credential"])
	s.value, ok2 = parseSignature(f.fields["x-amz-signature"])
	if !ok || !ok2 {
		return nil, refuse(errQueryMalformed)
	}
	if err := s.dated(f.fields["x-amz-date"]); err != nil {
		return nil, err
	}
	// The policy says how long it may be used; it may have been signed long ago.
	now := h.now()
	switch {
	case s.date != s.when.Format("20060102"), s.region != h.cfg.Region:
		return nil, refuse(errQueryMalformed)
	case s.when.After(now.Add(maxSkew)):
		return nil, refuse(errNotYet)
	case now.After(s.when.Add(maxExpires)):
		return nil, refuse(errExpired)
	}
	return s, nil
}

// allowed compares the form with its policy, and returns how long the file may be.
func (f form) allowed(bucket string, now time.Time) (least, most int64, err error) {
	raw, err := base64.StdEncoding.DecodeString(f.fields["policy"])
	if err != nil {
		return 0, 0, refuseFor(errPolicyDocument, "Invalid Policy: it is not base64.")
	}
	var p postPolicy
	if json.Unmarshal(raw, &p) != nil {
		return 0, 0, refuseFor(errPolicyDocument, "Invalid Policy: Invalid JSON.")
	}
	until, err := time.Parse(time.RFC3339, p.Expiration)
	if err != nil {
		return 0, 0, refuseFor(errPolicyDocument, "Invalid Policy: Invalid 'expiration' value")
	}
	if !now.Before(until) {
		return 0, 0, refuseFor(errDenied, "Invalid according to Policy: Policy expired.")
	}
	if p.Conditions == nil {
		return 0, 0, refuseFor(errPolicyDocument, "Invalid Policy: Policy missing conditions.")
	}
	least, most = 0, 1<<63-1
	said := map[string]bool{}
	value := func(name string) string {
		if name == "bucket" {
			return bucket
		}
		return f.fields[name]
	}
	for _, c := range p.Conditions {
		if err := eachCondition(c, func(op, name, want string, low, high int64) error {
			name = strings.ToLower(name)
			said[name] = true
			got, holds := value(name), false
			switch op {
			case "eq":
				holds = got == want
			case "starts-with":
				holds = startsWith(name, got, want)
			case "content-length-range":
				least, most, holds = max(least, low), min(most, high), true
			}
			if !holds {
				return refuseFor(errDenied, `Invalid according to Policy: Policy Condition failed: ["`+op+`", "$`+name+`", "`+want+`"]`)
			}
			return nil
		}); err != nil {
			return 0, 0, err
		}
	}
	for name := range f.fields {
		if !said[name] && !free(name) {
			return 0, 0, refuseFor(errDenied, "Invalid according to Policy: Extra input fields: "+name)
		}
	}
	return least, most, nil
}

// startsWith compares; lists of types are compared each by each.
func startsWith(name, got, want string) bool {
	if name != "content-type" || !strings.Contains(got, ",") {
		return strings.HasPrefix(got, want)
	}
	for v := range strings.SplitSeq(got, ",") {
		if !strings.HasPrefix(strings.TrimSpace(v), want) {
			return false
		}
	}
	return true
}

// free reports whether a field needs no condition.
func free(name string) bool {
	switch name {
	case "policy", "x-amz-signature", "file", "submit", "\x00content-type":
		return true
	}
	return strings.HasPrefix(name, "x-ignore-")
}

var errCondition = refuseFor(errPolicyDocument, "Invalid Policy: a condition is malformed.")

// eachCondition reads a condition: {"name": "value"} or ["op", "$name", "value"] or ["content-length-range", least, most].
func eachCondition(c any, check func(op, name, want string, low, high int64) error) error {
	switch c := c.(type) {
	case map[string]any:
		if len(c) != 1 {
			return errCondition
		}
		for name, v := range c {
			want, ok := v.(string)
			if !ok {
				return errCondition
			}
			return check("eq", name, want, 0, 0)
		}
	case []any:
		if len(c) != 3 {
			return errCondition
		}
		op, _ := c[0].(string)
		switch op = strings.ToLower(op); op {
		case "eq", "starts-with":
			name, ok := c[1].(string)
			want, ok2 := c[2].(string)
			name, ok3 := strings.CutPrefix(name, "$")
			if !ok || !ok2 || !ok3 {
				return errCondition
			}
			return check(op, name, want, 0, 0)
		case "content-length-range":
			low, ok := number(c[1])
			high, ok2 := number(c[2])
			if !ok || !ok2 || low > high {
				return errCondition
			}
			return check(op, op, "", low, high)
		}
	}
	return errCondition
}

// number reads one that JSON brings as a number or a string.
func number(v any) (int64, bool) {
	switch v := v.(type) {
	case float64:
		return int64(v), v >= 0 && v <= 1<<53 && v == float64(int64(v))
	case string:
		return parseDigits(v)
	}
	return 0, false
}

// post publishes the file of a form.
func (q *request) post(f form, least, most int64) error {
	p, folder, err := q.target()
	if err == nil && folder {
		err = refuse(errObjectName)
	}
	if err != nil {
		return err
	}
	// What a PUT says in headers, a form says in fields.
	hd := make(http.Header)
	for name, v := range f.fields {
		if !strings.HasPrefix(name, "\x00") && name != "content-length" {
			hd.Set(textproto.CanonicalMIMEHeaderKey(name), v)
		}
	}
	if hd.Get("Content-Type") == "" && f.fields["\x00content-type"] != "" {
		hd.Set("Content-Type", f.fields["\x00content-type"])
	}
	asPut := *q.r
	asPut.Header = hd
	q.r = &asPut
	if acl := hd.Get("Acl"); acl != "" {
		if err := cannedACL(acl); err != nil {
			return err
		}
	}
	if err := q.plain(); err != nil {
		return err
	}
	var d described
	if d.Meta, err = metaOf(hd, p.Base()); err != nil {
		return err
	}
	if d.Tags, err = tagsIn(f.fields["tagging"]); err != nil {
		return err
	}
	declared, err := declaredSums(hd)
	if err != nil {
		return err
	}
	id := newID()
	o := gateway.CreateOptions{Size: -1, Checksum: asChecksum(declared), Compute: []string{"MD5"}, Note: wordID + ":" + id, Props: d.props(id)}
	if o.Cond, err = q.writeCond(p); err != nil {
		return err
	}
	info, err := q.storeLarge(p, o, &content{r: f.file, size: -1, limit: most, least: least})
	if err != nil {
		return err
	}
	return q.posted(f, `"`+etag(info)+`"`)
}

// posted answers as the form asks.
func (q *request) posted(f form, tag string) error {
	hd := q.w.Header()
	hd["Etag"] = []string{tag}
	hd["Location"] = []string{q.location(q.key)}
	to := f.fields["success_action_redirect"]
	if to == "" {
		to = f.fields["redirect"]
	}
	if u, err := url.Parse(to); to != "" && err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" {
		// What follows is in the order of Amazon's answer.
		extra := "bucket=" + url.QueryEscape(q.bucket) + "&key=" + url.QueryEscape(q.key) + "&etag=" + url.QueryEscape(tag)
		if u.RawQuery != "" {
			extra = u.RawQuery + "&" + extra
		}
		u.RawQuery = extra
		hd["Location"] = []string{u.String()}
		return q.done(http.StatusSeeOther)
	}
	switch status, _ := strconv.Atoi(f.fields["success_action_status"]); status {
	case http.StatusOK:
		return q.done(status)
	case http.StatusCreated:
		b := append([]byte(xmlHeader), "<PostResponse>"...)
		b = elem(elem(elem(elem(b, "Location", hd["Location"][0]), "Bucket", q.bucket), "Key", q.key), "ETag", tag)
		return q.reply(status, append(b, "</PostResponse>"...))
	}
	return q.done(http.StatusNoContent)
}
