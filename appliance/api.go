package appliance

import (
	"strings"
	"time"

	"cellgate/appliance/strict"
)

// The types below are what the admin API takes and gives. Their JSON is what --json prints.

// account is a user. Password is only ever taken; it is given once, when the box made it up.
type account struct {
	Login    string    `json:"login"`
	Name     string    `json:"name"`
	Email    string    `json:"email"`
	Group    string    `json:"group"`
	Profile  string    `json:"profile"`
	Roles    []string  `json:"roles"`
	Disabled bool      `json:"disabled"`
	Created  time.Time `json:"created"`
	Password string    `json:"password,omitempty"`
}

// accountChange is what to change of a user; nil leaves a field as it is.
type accountChange struct {
	Name     *string   `json:"name,omitempty"`
	Email    *string   `json:"email,omitempty"`
	Group    *string   `json:"group,omitempty"`
	Profile  *string   `json:"profile,omitempty"`
	Roles    *[]string `json:"roles,omitempty"`
	Disabled *bool     `json:"disabled,omitempty"`
}

// label is a group (Name is its path) or a role.
type label struct {
	Name  string `json:"name"`
	Label string `json:"label"`
}

// appPassword is a password for one device or program. Password is given once, when it is made.
type appPassword struct {
	ID        string    `json:"id,omitempty"`
	Label     string    `json:"label"`
	Protocols []string  `json:"protocols"`
	Created   time.Time `json:"created,omitzero"`
	Expires   time.Time `json:"expires,omitzero"`
	Password  string    `json:"password,omitempty"`
}

// grantInfo is a grant as it was declared.
type grantInfo struct {
	To      string    `json:"to"`
	On      string    `json:"on,omitempty"`
	Rights  []string  `json:"rights"`
	Expires time.Time `json:"expires,omitzero"`
}

// workspaceInfo is a workspace with how it is doing.
type workspaceInfo struct {
	Slug   string      `json:"slug"`
	Label  string      `json:"label"`
	Roots  []string    `json:"roots"`
	Quota  int64       `json:"quota"`
	Used   int64       `json:"used"`
	State  string      `json:"state"`
	Reason string      `json:"reason,omitempty"`
	Grants []grantInfo `json:"grants"`
}

// datasourceInfo is a datasource with how it is doing. Of its credentials only the names are given.
type datasourceInfo struct {
	Name        string            `json:"name"`
	Driver      string            `json:"driver"`
	Options     map[string]string `json:"options"`
	Mode        string            `json:"mode"`
	Fallback    string            `json:"fallback,omitempty"`
	Credentials []string          `json:"credentials"`
	Template    string            `json:"template,omitempty"`
	ReadOnly    bool              `json:"readOnly"`
	Durability  string            `json:"durability"`
	State       string            `json:"state"`
	Since       time.Time         `json:"since,omitzero"`
	Reason      string            `json:"reason,omitempty"`
	Total       int64             `json:"total"`
	Free        int64             `json:"free"`
	Features    map[string]string `json:"features,omitempty"`
	Users       int               `json:"users,omitempty"`
	Age         millis            `json:"ageMs,omitempty"` // of what listings say, at most
	Guarantees  []guarantee       `json:"guarantees,omitempty"`
	Tried       time.Time         `json:"tried,omitzero"`
	Latency     *latencyInfo      `json:"latencyMs,omitempty"`
	Calls       *callsInfo        `json:"calls,omitempty"`
	Pending     []string          `json:"pending,omitempty"`
}

// datasourcePut makes or changes a datasource.
type datasourcePut struct {
	Name       string            `json:"name"`
	Driver     string            `json:"driver"`
	Options    map[string]string `json:"options"`
	Mode       string            `json:"mode"`
	Fallback   string            `json:"fallback"`
	Secrets    map[string]string `json:"secrets,omitempty"`
	ReadOnly   bool              `json:"readOnly"`
	Durability string            `json:"durability"`
}

// guarantee is a row of the table of what a datasource can be relied on for.
type guarantee struct {
	Name    string `json:"name"`
	Support string `json:"support"`
	Tested  bool   `json:"tested"`
	Failed  bool   `json:"failed"`
	Detail  string `json:"detail,omitempty"`
}

// latencyInfo are the times of single requests, as they were tried.
type latencyInfo struct {
	Stat   millis `json:"stat"`
	List   millis `json:"list"`
	Put    millis `json:"put"`
	Get    millis `json:"get"`
	Remove millis `json:"remove"`
}

// callsInfo is how a backend across a network fares.
type callsInfo struct {
	Calls     int       `json:"calls"`
	Streams   int       `json:"streams"`
	Failures  uint64    `json:"failures"`
	Timeouts  uint64    `json:"timeouts"`
	Refused   uint64    `json:"refused"`
	Mean      millis    `json:"meanMs"`
	LastError string    `json:"lastError,omitempty"`
	LastAt    time.Time `json:"lastAt,omitzero"`
}

// credentialInfo is a user's entry of secrets: they go in and never come out.
type credentialInfo struct {
	User    string            `json:"user"`
	Changed time.Time         `json:"changed,omitzero"`
	Secrets map[string]string `json:"secrets,omitempty"`
}

// templateInfo is a datasource that users complete.
type templateInfo struct {
	Name    string            `json:"name"`
	Label   string            `json:"label"`
	Driver  string            `json:"driver"`
	Options map[string]string `json:"options"`
	Asks    []string          `json:"asks"`
	To      []string          `json:"to"`
}

// completedInfo is what completing a template made.
type completedInfo struct {
	Datasource string `json:"datasource"`
	Workspace  string `json:"workspace"`
	Created    bool   `json:"created"`
	State      string `json:"state"`
	Reason     string `json:"reason,omitempty"`
}

// driverInfo is what a driver can be told.
type driverInfo struct {
	Driver      string       `json:"driver"`
	Options     []optionInfo `json:"options"`
	Credentials []optionInfo `json:"credentials,omitempty"`
}

type optionInfo struct {
	Name     string `json:"name"`
	Help     string `json:"help"`
	Required bool   `json:"required,omitempty"`
}

// question asks whether somebody may do something.
type question struct {
	User     string    `json:"user"`
	Action   string    `json:"action"`
	Path     string    `json:"path"`
	Protocol string    `json:"protocol,omitempty"`
	Addr     string    `json:"addr,omitempty"`
	Client   string    `json:"client,omitempty"`
	Method   string    `json:"method,omitempty"`
	At       time.Time `json:"at,omitzero"`
}

// answer says so, and why.
type answer struct {
	Allowed bool     `json:"allowed"`
	Known   bool     `json:"known"`
	Rule    string   `json:"rule"`
	Trace   []string `json:"trace"`
}

// policyInfo is a security policy as it was declared.
type policyInfo struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"`
	Rules  any      `json:"rules"`
	Guards []string `json:"guards,omitempty"`
}

// finding is something fsck found.
type finding struct {
	Place    string `json:"place,omitempty"`
	Text     string `json:"text"`
	Fatal    bool   `json:"fatal"`   // something is lost or was tampered with
	Outside  bool   `json:"outside"` // other tools changed a file, as they may
	Repaired bool   `json:"repaired"`
}

// check is a line of doctor: what was looked at, how it is, and what to do.
type check struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok, warn or fail
	Text  string `json:"text"`
}

// applied is what apply did.
type applied struct {
	Changes  []change        `json:"changes"`
	Warnings strict.Problems `json:"warnings,omitempty"`
}

// change is one thing that apply made ("+") or changed ("~").
type change struct {
	Sign string `json:"sign"`
	Kind string `json:"kind"`
	Name string `json:"name"`
	What diff   `json:"what,omitempty"` // of a "~": what differs now
}

// String returns "~ user alice: profile admin -> standard".
func (c change) String() string {
	s := c.Sign + " " + c.Kind + " " + clean(c.Name)
	if len(c.What) > 0 {
		s += ": " + strings.Join(c.What, ", ")
	}
	return s
}

// version is what runs.
type version struct {
	Version  string   `json:"version"`
	Revision string   `json:"revision"`
	Go       string   `json:"go"`
	Doors    []string `json:"doors"`
	Drivers  []string `json:"drivers"`
}
