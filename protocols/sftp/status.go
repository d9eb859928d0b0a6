package sftp

import (
	"cellgate/internal/fault"
)

// Codes of a status, draft-ietf-secsh-filexfer-02 §7. Of the others, no connection and connection lost are for clients to tell themselves.
const (
	statusOK          = 0
	statusEOF         = 1
	statusNoFile      = 2
	statusDenied      = 3
	statusFailure     = 4
	statusBadMessage  = 5
	statusUnsupported = 8
)

// statuses is the one table from kinds to codes. It follows OpenSSH, which tells ENOTDIR as no such file and EINVAL as a bad message: clients
// turn the codes back into errors of their system, and show people little else.
var statuses = map[fault.Kind]uint32{
	fault.Internal:        statusFailure,
	fault.NotExist:        statusNoFile,
	fault.Exist:           statusFailure,
	fault.Denied:          statusDenied,
	fault.Unauthenticated: statusDenied,
	fault.Invalid:         statusBadMessage,
	fault.IsDir:           statusFailure,
	fault.NotDir:          statusNoFile,
	fault.NotEmpty:        statusFailure,
	fault.Locked:          statusDenied,
	fault.Precondition:    statusFailure,
	fault.TooLarge:        statusFailure,
	fault.Quota:           statusFailure,
	fault.NoSpace:         statusFailure,
	fault.Unsupported:     statusUnsupported,
	fault.Busy:            statusFailure,
	fault.Timeout:         statusFailure,
	fault.Unavailable:     statusFailure,
	fault.Corrupt:         statusFailure,
	fault.Canceled:        statusFailure,
}

// troubles are the kinds that are the house's own failures: they go to the log.
var troubles = map[fault.Kind]bool{fault.Internal: true, fault.Corrupt: true, fault.Unavailable: true, fault.Timeout: true}

// status appends a status with its words.
func (p reply) status(err error) reply {
	switch err {
	case nil:
		return p.u32(statusOK).str("Success").str("")
	case errEOF:
		return p.u32(statusEOF).str("End of file").str("")
	}
	kind := fault.KindOf(err)
	code, ok := statuses[kind]
	if !ok {
		code = statusFailure
	}
	return p.u32(code).str(kind.String()).str("")
}
