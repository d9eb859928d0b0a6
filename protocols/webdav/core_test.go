package webdav

import (
	"testing"

	"cellgate/gateway/gatewaytest"
)

const password = gatewaytest.Password

// openCore returns what a handler needs, on mem mounts. Both alice and bob may write in /docs.
func openCore(t testing.TB) Config {
	house := gatewaytest.New(t, gatewaytest.Config{})
	house.Grant("user:bob", "docs:/", "read", "write")
	return Config{Gateway: house.Gateway, Identity: house.Identity, Clock: house.Clock}
}
