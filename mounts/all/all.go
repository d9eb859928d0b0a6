// Package all is the table of drivers.
package all

import (
	"cellgate/mounts"
	"cellgate/mounts/dropbox"
	"cellgate/mounts/ftp"
	"cellgate/mounts/local"
	"cellgate/mounts/mem"
	"cellgate/mounts/s3"
	"cellgate/mounts/sftp"
	"cellgate/mounts/smb"
	"cellgate/mounts/webdav"
)

// Drivers returns every driver there is, by name.
func Drivers() []mounts.Driver {
	return []mounts.Driver{
		dropbox.Driver(), ftp.Driver(), local.Driver(), mem.Driver(), s3.Driver(), sftp.Driver(), smb.Driver(), webdav.Driver(),
	}
}
