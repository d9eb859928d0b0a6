package guard

// Shipped returns the policies that come with the box, as data to save, edit and bind. None is in force until somebody saves it.
func Shipped() []Policy {
	all := func(effect, who string, when When) Rule {
		return Rule{Effect: effect, Principals: List{who}, Actions: List{"*"}, When: when}
	}
	return []Policy{
		{Name: "public-access", Label: "Everybody, always", Kind: ACL, Rules: []Rule{all("allow", "everyone", When{})}},
		{Name: "read-only", Label: "Look and download, change nothing", Kind: ACL, Rules: []Rule{
			{Effect: "allow", Principals: List{"everyone"}, Actions: List{"read"}}}},
		{Name: "preview-only", Label: "Look, download nothing", Kind: ACL, Rules: []Rule{
			{Effect: "allow", Principals: List{"everyone"}, Actions: List{"list", "preview"}}}},
		{Name: "office-hours", Label: "Monday to Friday from 9:00 to 18:30", Kind: ACL, Rules: []Rule{
			all("allow", "everyone", When{Hours: &Hours{Days: "Mon-Fri", From: "09:00", To: "18:30", Zone: "Europe/Paris"}})}},
		{Name: "no-external-access", Label: "Nobody from outside", Kind: ACL, Rules: []Rule{
			all("allow", "everyone", When{IP: List{"private"}}),
			all("deny", "profile:external", When{}), all("deny", "profile:anonymous", When{})}},
		{Name: "limited-period", Label: "For the time of a project", Kind: ACL, Rules: []Rule{
			all("allow", "everyone", When{Period: &Period{From: "2027-01-01T00:00:00Z", To: "2028-01-01T00:00:00Z"}})}},
		{Name: "login-default", Label: "Every account signs in by every protocol", Kind: Login, Rules: []Rule{all("allow", "everyone", When{})}},
		{Name: "protocol-default", Label: "Every door is open to every account", Kind: Protocol, Rules: []Rule{all("allow", "everyone", When{})}},
		{Name: "rest-admin", Label: "Administration for admins, the rest for accounts", Kind: REST, Rules: []Rule{
			all("allow", "profile:admin", When{}),
			all("allow", "profile:standard", When{}), all("deny", "profile:standard", When{Path: List{"/api/v1/admin/**"}}),
			all("allow", "profile:external", When{}),
			all("deny", "profile:external", When{Path: List{"/api/v1/admin/**"}}),
		}},
	}
}

// Locations returns the named lists of networks that always exist.
func Locations() map[string][]string {
	return map[string][]string{
		"loopback": {"127.0.0.0/8", "::1"},
		"private":  {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10", "::1"},
	}
}
