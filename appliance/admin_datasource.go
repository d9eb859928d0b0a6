package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"cellgate/gateway"
	"cellgate/internal/fault"
	"cellgate/internal/secret"
	"cellgate/mounts"
	"cellgate/mounts/probe"
	"cellgate/policy"
	"cellgate/policy/identity"
	"cellgate/store"
)

type driverKind = mounts.Driver

func (b *box) datasources(ctx context.Context) []datasourceInfo {
	out := []datasourceInfo{}
	for _, st := range b.gateway.Datasources(ctx) {
		out = append(out, toDatasource(st))
	}
	return out
}

func toDatasource(st gateway.DatasourceStatus) datasourceInfo {
	d := datasourceInfo{
		Name: st.Name, Driver: st.Driver, Options: st.Options, Mode: st.Mode, Fallback: st.Fallback, Credentials: slices.Sorted(maps.Keys(st.Credentials)),
		ReadOnly: st.ReadOnly, Durability: st.Durability, State: st.State, Since: st.Since, Total: st.Space.Total, Free: st.Space.Free,
		Users: st.Users, Age: millis(st.Age), Template: st.Template,
	}
	if st.Err != nil {
		d.Reason = plain(st.Err)
	}
	if st.State != gateway.Down && st.Mode == gateway.Shared {
		d.Features = featureWords(st.Features)
	}
	if st.Report != nil {
		d.Tried = st.Report.Time
		for _, c := range st.Report.Checks {
			d.Guarantees = append(d.Guarantees, guarantee{Name: c.Name, Support: c.Support.String(), Tested: c.Tested, Failed: c.Failed, Detail: c.Detail})
		}
		d.Latency = toLatency(st.Report.Latency)
	}
	if c := st.Calls; c != nil {
		d.Calls = &callsInfo{Calls: c.Calls, Streams: c.Streams, Failures: c.Failures, Timeouts: c.Timeouts, Refused: c.Refused, Mean: millis(c.Latency.Mean)}
		if c.LastError != nil {
			d.Calls.LastError, d.Calls.LastAt = plain(c.LastError), c.LastAt
		}
	}
	for _, p := range st.Pending {
		word := fmt.Sprintf("%s, %s, since %s", p.Name, bytesText(p.Size), stamp(p.Since))
		if p.Err != nil {
			word += fmt.Sprintf(", failed %d times: %s", p.Tries, plain(p.Err))
		}
		d.Pending = append(d.Pending, word)
	}
	return d
}

func toLatency(l probe.Latency) *latencyInfo {
	return &latencyInfo{Stat: millis(l.Stat), List: millis(l.List), Put: millis(l.Put), Get: millis(l.Get), Remove: millis(l.Remove)}
}

// millis is a duration that JSON says in milliseconds.
type millis time.Duration

// Duration returns it as the standard library's.
func (m millis) Duration() time.Duration { return time.Duration(m) }

// MarshalJSON writes milliseconds, with a fraction.
func (m millis) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(m)/1e6, 'f', -1, 64), nil
}

// UnmarshalJSON is the reverse.
func (m *millis) UnmarshalJSON(text []byte) error {
	f, err := strconv.ParseFloat(string(text), 64)
	*m = millis(f * 1e6)
	return err
}

// featureWords is what a datasource guarantees, by name.
func featureWords(f mounts.Features) map[string]string {
	return map[string]string{
		"atomic replace": f.AtomicReplace.String(), "conditional write": f.ConditionalWrite.String(), "rename": f.Rename.String(),
		"modification time": f.ModTime.String(), "hash": f.Hash.String(), "random access": f.RandomAccess.String(),
		"hard link": f.HardLink.String(), "symbolic link": f.Symlink.String(), "extended attributes": f.Xattr.String(),
		"watch": f.Watch.String(), "space": f.Space.String(), "durable": f.Durable.String(), "case-sensitive": strconv.FormatBool(f.CaseSensitive),
	}
}

func optionInfos(all []mounts.Option) []optionInfo {
	out := make([]optionInfo, len(all))
	for i, o := range all {
		out[i] = optionInfo{Name: o.Name, Help: o.Help, Required: o.Required}
	}
	return out
}

func (b *box) datasource(ctx context.Context, name string) (datasourceInfo, error) {
	all := b.datasources(ctx)
	if i := slices.IndexFunc(all, func(d datasourceInfo) bool { return d.Name == name }); i >= 0 {
		return all[i], nil
	}
	return datasourceInfo{}, notThere("datasource", name)
}

// putDatasource makes or changes a datasource. Without credentials those that are stored stay.
func (b *box) putDatasource(ctx context.Context, in datasourcePut) (datasourceInfo, error) {
	d := gateway.Datasource{
		Name: in.Name, Driver: in.Driver, Options: in.Options, Mode: in.Mode, Fallback: in.Fallback, ReadOnly: in.ReadOnly, Durability: in.Durability,
		Credentials: secrets(in.Secrets),
	}
	for _, was := range b.gateway.Datasources(ctx) {
		if was.Name == d.Name && len(d.Credentials) == 0 && was.Driver == d.Driver {
			d.Credentials = was.Credentials
		}
	}
	if errs := b.gateway.CheckDatasource(d); len(errs) > 0 {
		return datasourceInfo{}, invalid(errs)
	}
	err := b.change(ctx, func(tx *store.Tx) error {
		if _, err := b.gateway.PutDatasource(tx, d); err != nil {
			return err
		}
		b.record(tx, localActor, "datasource.put", d.Name)
		return nil
	})
	if err != nil {
		return datasourceInfo{}, err
	}
	return b.datasource(ctx, d.Name)
}

func secrets(plain map[string]string) map[string]secret.String {
	if len(plain) == 0 {
		return nil
	}
	out := make(map[string]secret.String, len(plain))
	for k, v := range plain {
		out[k] = secret.New(v)
	}
	return out
}

// testDatasource tries what a datasource can do. That it is down is an answer, not a failure.
func (b *box) testDatasource(ctx context.Context, name string) (datasourceInfo, error) {
	if _, err := b.gateway.Probe(ctx, name); err != nil {
		if d, derr := b.datasource(ctx, name); derr == nil && d.State == gateway.Down {
			return d, nil
		}
		return datasourceInfo{}, err
	}
	return b.datasource(ctx, name)
}

// forgetDatasource forgets what was learnt of a datasource's server and opens it anew.
func (b *box) forgetDatasource(ctx context.Context, name string) (datasourceInfo, error) {
	if _, err := b.datasource(ctx, name); err != nil {
		return datasourceInfo{}, err
	}
	err := b.change(ctx, func(tx *store.Tx) error {
		b.record(tx, localActor, "datasource.forget", name)
		return b.gateway.Forget(tx, name)
	})
	if err != nil {
		return datasourceInfo{}, err
	}
	b.gateway.Retry(ctx, name)
	return b.datasource(ctx, name)
}

func (b *box) deleteDatasource(ctx context.Context, name string) error {
	err := b.named("datasource", name, b.change(ctx, func(tx *store.Tx) error {
		if err := b.gateway.DeleteDatasource(tx, name); err != nil {
			return err
		}
		b.record(tx, localActor, "datasource.delete", name)
		return nil
	}))
	var f *fault.Error
	if errors.As(err, &f) && f.Kind == fault.Exist {
		return fault.New("appliance.admin", name, fault.Invalid, fmt.Errorf("it is in use: %w", f.Err))
	}
	return err
}

func (b *box) credentialHolders(ctx context.Context, name string) ([]credentialInfo, error) {
	if _, err := b.datasource(ctx, name); err != nil {
		return nil, err
	}
	holders, err := b.gateway.CredentialHolders(ctx, name)
	if err != nil {
		return nil, err
	}
	users, err := b.identity.Users(ctx, identity.UserFilter{})
	if err != nil {
		return nil, err
	}
	out := []credentialInfo{}
	for _, u := range users {
		if changed, ok := holders[u.ID]; ok {
			out = append(out, credentialInfo{User: u.Login, Changed: changed})
		}
	}
	slices.SortFunc(out, func(a, b credentialInfo) int { return a.Changed.Compare(b.Changed) })
	return out, nil
}

func (b *box) putCredentials(ctx context.Context, name string, in credentialInfo) error {
	sub, err := b.subject(ctx, in.User)
	if err != nil {
		return err
	}
	return b.db.Update(ctx, func(tx *store.Tx) error {
		changed, err := b.gateway.PutCredentials(tx, name, sub.ID, secrets(in.Secrets))
		if err == nil && changed {
			b.record(tx, localActor, "credentials.put", name+" "+sub.Login)
		}
		return err
	})
}

func (b *box) templates(ctx context.Context, user string) ([]templateInfo, error) {
	var sub *policy.Subject
	if user != "" {
		var err error
		if sub, err = b.subject(ctx, user); err != nil {
			return nil, err
		}
	}
	all, err := b.gateway.Templates(ctx, sub)
	if err != nil {
		return nil, err
	}
	out := []templateInfo{}
	for _, t := range all {
		info := templateInfo{Name: t.Name, Label: t.Label, Driver: t.Driver, Options: t.Options, Asks: t.Asks}
		for _, p := range t.To {
			info.To = append(info.To, string(p))
		}
		out = append(out, info)
	}
	return out, nil
}

func (b *box) completeTemplate(ctx context.Context, name string, in credentialInfo) (out completedInfo, err error) {
	sub, err := b.subject(ctx, in.User)
	if err != nil {
		return out, err
	}
	var done gateway.Completed
	err = b.change(ctx, func(tx *store.Tx) (err error) {
		if done, err = b.gateway.CompleteTemplate(tx, sub, name, in.Secrets); err == nil {
			b.record(tx, localActor, "template.complete", name+" "+sub.Login)
		}
		return err
	})
	if err != nil {
		return out, err
	}
	d, err := b.datasource(ctx, done.Datasource)
	return completedInfo{Datasource: done.Datasource, Workspace: done.Workspace, Created: done.Created, State: d.State, Reason: d.Reason}, err
}

func (b *box) deleteTemplate(ctx context.Context, name string) error {
	return b.named("template", name, b.db.Update(ctx, func(tx *store.Tx) error {
		b.record(tx, localActor, "template.delete", name)
		return b.gateway.DeleteTemplate(tx, name)
	}))
}
