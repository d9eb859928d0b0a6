// Package dial opens outgoing connections to nowhere but where an admin meant them to go.
//
// A name is resolved once and the address that was judged is the one dialled, so that a name server which changes its mind (DNS rebinding)
// gains nothing. Whatever leads there, a redirect or a reply of a hostile server, is judged alike.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Dialer dials what it may. The zero value dials public addresses only. It is safe for concurrent use.
type Dialer struct {
	// Host is the one the admin named: a literal address, or a name. It may lie in a private network. Only where it is written as a literal
	// address or as "localhost" may it also be this machine or link-local: no name server decides that.
	Host string
	// Allow are networks an admin allowed, whatever they are.
	Allow []netip.Prefix
	// Timeout for one address; 0 is 10 s.
	Timeout time.Duration
	// Resolver is net.DefaultResolver when nil.
	Resolver *net.Resolver
}

// ErrRefused is in the chain of the error of an address that may not be dialled.
var ErrRefused = errors.New("this address may not be dialled")

// DialContext connects to address, a host and a port, on network "tcp", "tcp4" or "tcp6". It tries the addresses of a name in turn. The error
// of one that is refused says so and how it would be allowed.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := d.lookup(ctx, network, host)
	if err != nil {
		return nil, err
	}
	timeout := d.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	var errs []error
	for _, a := range addrs {
		if err := d.judge(host, a); err != nil {
			errs = append(errs, err)
			continue
		}
		inner := net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
		conn, err := inner.DialContext(ctx, network, net.JoinHostPort(a.String(), port))
		if err == nil {
			return conn, nil
		}
		if errs = append(errs, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

func (d *Dialer) lookup(ctx context.Context, network, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	resolver := d.Resolver
	if resolver == nil {
		resolver = net.DefaultResolver
	}
	kind := "ip"
	switch network {
	case "tcp4":
		kind = "ip4"
	case "tcp6":
		kind = "ip6"
	}
	return resolver.LookupNetIP(ctx, kind, host)
}

// judge says why an address that host stands for may not be dialled.
func (d *Dialer) judge(host string, a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if nested, ok := embedded(a); ok {
		a = nested
	}
	for _, p := range d.Allow {
		if p.Contains(a) {
			return nil
		}
	}
	named := strings.EqualFold(strings.TrimSuffix(host, "."), strings.TrimSuffix(d.Host, "."))
	_, perr := netip.ParseAddr(host)
	literal := perr == nil || strings.EqualFold(host, "localhost")
	switch {
	case named && literal && !a.IsUnspecified() && !a.IsMulticast():
		return nil
	case a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsInterfaceLocalMulticast() || special(a):
		return fmt.Errorf("%w: %s is this machine's own, link-local or of no host, and is neither named as such by an admin nor allowed (outbound.allow)", ErrRefused, host)
	case a.IsPrivate() || shared.Contains(a):
		if named {
			return nil
		}
		return fmt.Errorf("%w: %s lies in a private network, and is not among the networks an admin allowed (outbound.allow)", ErrRefused, host)
	}
	return nil
}

var (
	shared = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598
	// Of no host: RFC 1122, RFC 5737, RFC 2544, RFC 1112, RFC 6666.
	nowhere = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("192.0.0.0/24"), netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
		netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("100::/64"),
		netip.MustParsePrefix("fec0::/10"), netip.MustParsePrefix("64:ff9b:1::/48"),
	}
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixFour = netip.MustParsePrefix("2002::/16")
)

func special(a netip.Addr) bool {
	for _, p := range nowhere {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// embedded returns the IPv4 address that an IPv6 one leads to through NAT64 (RFC 6052) or 6to4 (RFC 3056), or as an IPv4-compatible one.
func embedded(a netip.Addr) (netip.Addr, bool) {
	if !a.Is6() {
		return a, false
	}
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	case a != netip.IPv6Loopback() && !a.IsUnspecified() && [12]byte(b[:12]) == [12]byte{}:
		return netip.AddrFrom4([4]byte(b[12:16])), true
	}
	return a, false
}
