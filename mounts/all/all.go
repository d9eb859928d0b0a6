// Package all is the table of drivers.
package all

import (
	"cellgate/mounts"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
)

// Drivers returns every driver there is, by name.
func Drivers() []mounts.Driver {
	return []mounts.Driver{local.Driver(), mem.Driver()}
}
