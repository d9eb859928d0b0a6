package gateway

import (
	"maps"
	"net"
	"strings"

	"cellgate/mounts"
)

// Spellings are options that stand for those of drivers: what a declared state may say for all of them alike.
func Spellings(driver mounts.Driver) []mounts.Option {
	var all []mounts.Option
	if !has(driver.Options, "address") && (has(driver.Options, "host") || has(driver.Options, "url") || has(driver.Options, "endpoint")) {
		all = append(all, mounts.Option{Name: "address", Help: "where the server is, HOST or HOST:PORT, in place of " + strings.Join(standsFor(driver), " and ")})
	}
	if has(driver.Options, "mode") && !has(driver.Options, "passive") {
		all = append(all, mounts.Option{Name: "passive", Help: "true or false, in place of mode"})
	}
	return all
}

func standsFor(driver mounts.Driver) (all []string) {
	for _, name := range []string{"host", "port", "url", "endpoint"} {
		if has(driver.Options, name) {
			all = append(all, name)
		}
	}
	return all
}

// spelled returns d with the driver's own options for those that stand for them. What is said twice is left, so that it is refused.
func (d Datasource) spelled(driver mounts.Driver) Datasource {
	options := maps.Clone(d.Options)
	move := func(from, to, value string) {
		if options[to] == "" && value != "" {
			options[to] = value
			delete(options, from)
		}
	}
	if address := options["address"]; address != "" && has(Spellings(driver), "address") {
		switch {
		case has(driver.Options, "host"):
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				host, port = strings.Trim(address, "[]"), ""
			}
			move("address", "host", host)
			if port != "" && options["port"] == "" {
				options["port"] = port
			}
		case has(driver.Options, "url"):
			move("address", "url", schemed(address, options["tls"]))
		default:
			move("address", "endpoint", schemed(address, options["tls"]))
		}
		if !has(driver.Options, "tls") {
			delete(options, "tls")
		}
	}
	if passive := options["passive"]; has(Spellings(driver), "passive") {
		switch passive {
		case "true":
			move("passive", "mode", "passive")
		case "false":
			move("passive", "mode", "active")
		}
	}
	if has(driver.Options, "tls") && has(driver.Options, "mode") { // of FTP, which has kinds of it
		switch options["tls"] {
		case "true":
			options["tls"] = "explicit"
		case "false":
			options["tls"] = "off"
		}
	}
	d.Options = options
	return d
}

// schemed returns address as a URL.
func schemed(address, tls string) string {
	switch {
	case strings.Contains(address, "://"):
		return address
	case tls == "false" || tls == "off":
		return "http://" + address
	}
	return "https://" + address
}
