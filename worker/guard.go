package worker

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"syscall"

	"github.com/musterhq/muster/job"
)

// guard keeps requests away from where a document has no business: the worker's own machine and network, which trust
// whoever can reach them. Names are judged by the addresses they resolve to.
type guard struct {
	private  bool
	hosts    map[string]bool // "name", ".suffix", each maybe with ":port"
	prefixes []netip.Prefix
}

func newGuard(private bool, allow []string) (*guard, error) {
	g := &guard{private: private, hosts: map[string]bool{}}
	for _, h := range allow {
		if p, err := netip.ParsePrefix(h); err == nil {
			g.prefixes = append(g.prefixes, p.Masked())
			continue
		}
		if ip, ok := ipOf(strings.Trim(h, "[]")); ok {
			g.prefixes = append(g.prefixes, netip.PrefixFrom(ip.Unmap(), ip.Unmap().BitLen()))
			continue
		}
		name := strings.ToLower(strings.TrimSuffix(h, "."))
		if suffix, ok := strings.CutPrefix(name, "*."); ok {
			name = "." + suffix
		}
		if strings.Trim(name, ".") == "" || strings.ContainsAny(name, "*/@ ") {
			return nil, job.InvalidField("AllowHosts", `%q is not a host, "*.suffix", address or prefix`, h)
		}
		g.hosts[name] = true
	}
	return g, nil
}

// allowsHost tells whether addr (host:port) is excepted by name.
func (g *guard) allowsHost(addr string) bool {
	if len(g.hosts) == 0 {
		return false
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, ok := ipOf(host); ok { // with a port, such as 127.0.0.1:8080
		return g.hosts[net.JoinHostPort(ip.Unmap().String(), port)]
	}
	for name := host; ; {
		if g.hosts[name] || g.hosts[name+":"+port] {
			return true
		}
		i := strings.IndexByte(strings.TrimPrefix(name, "."), '.')
		if i < 0 {
			return false
		}
		name = strings.TrimPrefix(name, ".")[i:]
	}
}

// control is net.Dialer.ControlContext: address is what the socket is about to connect to.
func (g *guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return notPermitted("this worker may not connect to %s", address)
	}
	return g.checkAddress(ap.Addr())
}

func (g *guard) checkAddress(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	for _, p := range g.prefixes {
		if p.Contains(ip) {
			return nil
		}
	}
	if kind := g.refused(ip); kind != "" {
		return notPermitted("this worker may not send requests to %s, a %s address; its --allow-http-host must name the host", ip, kind)
	}
	return nil
}

// checkURL refuses what can be seen without resolving anything.
func (g *guard) checkURL(u *url.URL) *refusal {
	if u.Scheme != "http" && u.Scheme != "https" {
		return neverStarts("the URL's scheme %.16q is neither http nor https", u.Scheme)
	}
	host := u.Hostname()
	if host == "" || u.Opaque != "" {
		return neverStarts("the URL names no host")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if g.allowsHost(net.JoinHostPort(host, port)) {
		return nil
	}
	if ip, ok := ipOf(host); ok {
		if err := g.checkAddress(ip); err != nil {
			return err.(*refusal)
		}
		return nil
	}
	// 127.1, 2130706433, 0177.0.0.1 and 0x7f.1 are addresses to some resolvers and names to others: to nobody's good.
	if looksNumeric(host) {
		return notPermitted("%.64q is not a usual way to write an address, and is not followed", host)
	}
	return nil
}

// looksNumeric tells whether a host would be read as an IPv4 address by inet_aton: its last label is a number.
func looksNumeric(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := host[strings.LastIndexByte(host, '.')+1:]
	if last == "" {
		return true
	}
	if hex, ok := strings.CutPrefix(strings.ToLower(last), "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// ranges that have no method in netip.
var (
	sharedNAT    = netip.MustParsePrefix("100.64.0.0/10") // carrier-grade NAT
	thisNetwork  = netip.MustParsePrefix("0.0.0.0/8")
	ietf         = netip.MustParsePrefix("192.0.0.0/24")
	benchmarking = netip.MustParsePrefix("198.18.0.0/15")
	reserved     = netip.MustParsePrefix("240.0.0.0/4")
	siteLocal    = netip.MustParsePrefix("fec0::/10")
	compatible   = netip.MustParsePrefix("::/96")
	translated   = netip.MustParsePrefix("::ffff:0:0:0/96") // SIIT
	nat64        = netip.MustParsePrefix("64:ff9b::/96")
	nat64Local   = netip.MustParsePrefix("64:ff9b:1::/48")
	teredo       = netip.MustParsePrefix("2001::/32")
	sixToFour    = netip.MustParsePrefix("2002::/16")
	metadata     = []netip.Addr{ // of clouds that keep it outside link-local
		netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200"), netip.MustParseAddr("192.0.0.192"),
		netip.MustParseAddr("168.63.129.16"),
	}
)

// refused names the kind of an address that is refused, "" for one that is not. ip has no zone and is not IPv4-mapped.
func (g *guard) refused(ip netip.Addr) string {
	for _, m := range metadata {
		if ip == m {
			return "cloud metadata"
		}
	}
	switch {
	case !ip.IsValid(), ip.IsUnspecified(), thisNetwork.Contains(ip):
		return "unspecified"
	case ip.IsMulticast():
		return "multicast"
	case ip.IsLinkLocalUnicast():
		return "link-local"
	case reserved.Contains(ip), ietf.Contains(ip):
		return "reserved"
	case nat64Local.Contains(ip), teredo.Contains(ip):
		return "translated"
	}
	if !g.private {
		switch {
		case ip.IsLoopback():
			return "loopback"
		case ip.IsPrivate(), siteLocal.Contains(ip), benchmarking.Contains(ip):
			return "private"
		case sharedNAT.Contains(ip):
			return "carrier-grade NAT"
		}
	}
	// An IPv6 address that carries an IPv4 one leads there. On networks with NAT64 every IPv4 host looks like this.
	if b := ip.As16(); ip.Is6() && !ip.IsLoopback() {
		var inner netip.Addr
		switch {
		case nat64.Contains(ip), compatible.Contains(ip), translated.Contains(ip):
			inner = netip.AddrFrom4([4]byte(b[12:]))
		case sixToFour.Contains(ip):
			inner = netip.AddrFrom4([4]byte(b[2:6]))
		default:
			return ""
		}
		if kind := g.refused(inner); kind != "" {
			return "translated " + kind
		}
	}
	return ""
}
