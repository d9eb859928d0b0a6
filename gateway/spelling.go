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
	if (has(driver.Options, "url") || has(driver.Options, "endpoint")) && !has(driver.Options, "tls") {
		all = append(all, mounts.Option{Name: "tls", Help: "true or false, in place of https or http at the beginning of the URL"})
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
			move("address", "url", address)
		default:
			move("address", "endpoint", address)
		}
	}
	for _, key := range []string{"url", "endpoint"} {
		if options[key] == "" || !has(driver.Options, key) || has(driver.Options, "tls") {
			continue
		}
		options[key] = schemed(options[key], options["tls"])
		// What agrees with the URL says nothing new; what does not is left, so that it is refused.
		if clear := strings.HasPrefix(options[key], "http://"); !clear && options["tls"] == "true" || clear && options["tls"] == "false" {
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
	if has(driver.Options, "tls") && has(driver.Options, "mode") && options["tls"] != "" { // of FTP, which has kinds of it
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
	case tls == "false":
		return "http://" + address
	}
	return "https://" + address
}
