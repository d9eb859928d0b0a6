package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/minio/minio-go/v7"

	"cellgate/internal/dial"
	"cellgate/internal/fault"
	"cellgate/internal/trust"
)

var (
	errClosed    = errors.New("closed")
	errReadOnly  = errors.New("the datasource is read-only")
	errRoot      = errors.New("the root stays where it is")
	errLength    = errors.New("the source has another length than declared")
	errBelow     = errors.New("a folder cannot move below itself")
	errLongKey   = errors.New("the path is too long for S3, whose keys have at most 1024 bytes")
	errBlank     = errors.New("an S3 key cannot be made of spaces only")
	errOffset    = errors.New("a negative offset")
	errShort     = errors.New("the server ended the file before its end")
	errRange     = errors.New("the server sends another part of the file than asked for")
	errStalled   = errors.New("nothing moved for the time of the option timeout")
	errNoSlot    = errors.New("all connections are in use, see the option connections")
	errFlood     = errors.New("the server's answer does not end")
	errEndless   = errors.New("the server's listing goes on without bringing anything")
	errGarbage   = errors.New("the server's answer makes no sense; does the endpoint speak S3?")
	errGone      = errors.New("the server closed the connection")
	errStopped   = errors.New("the upload is over")
	errNoIf      = errors.New("the server does not honour If-Match")
	errNoDigest  = errors.New("the server keeps no such digest of this file")
	errTooMany   = errors.New("too long for an upload of unknown length; declare the length, or raise the option partSize")
	errUndeleted = errors.New("the server did not say that it removed everything")
	errUpload    = errors.New("no such upload")
	errNoCopy    = errors.New("the server did not say what it copied")
)

// verdict is what an error code of a server comes to, with what to do about it.
type verdict struct {
	kind fault.Kind
	hint string
}

const (
	badKey   = "the access key or its secret is wrong or disabled: correct the credentials accessKey and secretKey"
	badToken = "the session token is wrong or has expired: give the datasource a new one"
	noRights = "the access key has no right to do this: grant it in the bucket's policy"
	badTime  = "this machine's clock and the server's differ too much: set the clock"
	elsewere = "the server says the bucket is reached at another address, which is not followed: correct the options endpoint and region"
	badArea  = "the server wants another region: correct the option region"
)

// verdicts are by the code in the server's answer. Sources: Amazon's list of error codes, and what MinIO, Ceph and versitygw add.
var verdicts = map[string]verdict{
	"NoSuchKey": {fault.NotExist, ""}, "NoSuchVersion": {fault.NotExist, ""}, "NoSuchUpload": {fault.NotExist, "the upload has ended"},
	"NoSuchBucket": {fault.Unavailable, "there is no such bucket: correct the option bucket"},
	"AccessDenied": {fault.Denied, noRights}, "AllAccessDisabled": {fault.Denied, noRights}, "AccountProblem": {fault.Denied, "there is a problem with the account at the provider"},
	"InvalidAccessKeyId": {fault.Unauthenticated, badKey}, "SignatureDoesNotMatch": {fault.Unauthenticated, badKey},
	"XAmzContentSHA256Mismatch": {fault.Unavailable, ""}, "InvalidSecurity": {fault.Unauthenticated, badKey}, "NotSignedUp": {fault.Unauthenticated, badKey},
	"ExpiredToken": {fault.Unauthenticated, badToken}, "ExpiredTokenException": {fault.Unauthenticated, badToken}, "InvalidToken": {fault.Unauthenticated, badToken},
	"InvalidTokenId": {fault.Unauthenticated, badToken}, "TokenRefreshRequired": {fault.Unauthenticated, badToken},
	"RequestTimeTooSkewed": {fault.Unauthenticated, badTime}, "RequestExpired": {fault.Unauthenticated, badTime},
	"AuthorizationHeaderMalformed": {fault.Invalid, badArea}, "InvalidRegion": {fault.Invalid, badArea},
	"IllegalLocationConstraintException": {fault.Invalid, badArea},
	"PermanentRedirect":                  {fault.Unavailable, elsewere}, "TemporaryRedirect": {fault.Unavailable, elsewere}, "Redirect": {fault.Unavailable, elsewere},
	"SlowDown": {fault.Busy, ""}, "SlowDownRead": {fault.Busy, ""}, "SlowDownWrite": {fault.Busy, ""}, "ServiceUnavailable": {fault.Busy, ""},
	"Throttling": {fault.Busy, ""}, "ThrottlingException": {fault.Busy, ""}, "RequestLimitExceeded": {fault.Busy, ""}, "RequestThrottled": {fault.Busy, ""},
	"TooManyRequests": {fault.Busy, ""}, "BandwidthLimitExceeded": {fault.Busy, ""}, "OperationAborted": {fault.Busy, ""}, "ConditionalRequestConflict": {fault.Busy, ""},
	"QuotaExceeded": {fault.Quota, "the quota of the bucket is used up"}, "XMinioAdminBucketQuotaExceeded": {fault.Quota, "the quota of the bucket is used up"},
	"InsufficientStorage": {fault.NoSpace, ""}, "InsufficientCapacity": {fault.NoSpace, ""}, "XMinioStorageFull": {fault.NoSpace, ""}, "StorageFull": {fault.NoSpace, ""},
	"PreconditionFailed": {fault.Precondition, ""}, "EntityTooLarge": {fault.TooLarge, ""}, "MaxMessageLengthExceeded": {fault.TooLarge, ""},
	"EntityTooSmall": {fault.Invalid, "a part that is not the last is smaller than 5 MiB"}, "InvalidPart": {fault.Invalid, ""}, "InvalidPartOrder": {fault.Invalid, ""},
	"KeyTooLongError": {fault.Invalid, ""}, "KeyTooLong": {fault.Invalid, ""}, "InvalidURI": {fault.Invalid, ""}, "XMinioInvalidObjectName": {fault.Invalid, ""},
	"IncompleteBody": {fault.Unavailable, ""}, "BadDigest": {fault.Unavailable, "the content was damaged on the way"}, "RequestTimeout": {fault.Timeout, ""},
	"InternalError": {fault.Unavailable, ""}, "NotImplemented": {fault.Unsupported, ""}, "MethodNotAllowed": {fault.Unsupported, ""},
	"InvalidObjectState": {fault.Unsupported, "the object is archived: restore it at the provider first"},
	"ObjectParentIsFile": {fault.NotDir, ""}, "XMinioParentIsObject": {fault.NotDir, ""},
	"ExistingObjectIsDirectory": {fault.IsDir, ""}, "XMinioObjectExistsAsDirectory": {fault.IsDir, ""}, "DirectoryNotEmpty": {fault.NotEmpty, ""},
	"ObjectExistsAsDirectory": {fault.IsDir, ""}, "ErrDirectoryNotEmpty": {fault.NotEmpty, ""},
}

// statuses are for answers without a known code, such as those to HEAD, which have no body.
var statuses = map[int]verdict{
	http.StatusUnauthorized: {fault.Unauthenticated, badKey}, http.StatusForbidden: {fault.Denied, noRights}, http.StatusNotFound: {fault.NotExist, ""},
	http.StatusMethodNotAllowed: {fault.Unsupported, ""}, http.StatusRequestTimeout: {fault.Timeout, ""}, http.StatusGatewayTimeout: {fault.Timeout, ""},
	http.StatusConflict: {fault.Busy, ""}, http.StatusPreconditionFailed: {fault.Precondition, ""}, http.StatusRequestEntityTooLarge: {fault.TooLarge, ""},
	http.StatusRequestURITooLong: {fault.Invalid, ""}, http.StatusTooManyRequests: {fault.Busy, ""}, http.StatusNotImplemented: {fault.Unsupported, ""},
	http.StatusServiceUnavailable: {fault.Busy, ""}, http.StatusInsufficientStorage: {fault.NoSpace, ""},
	http.StatusMovedPermanently: {fault.Unavailable, elsewere}, http.StatusFound: {fault.Unavailable, elsewere}, http.StatusSeeOther: {fault.Unavailable, elsewere},
	http.StatusTemporaryRedirect: {fault.Unavailable, elsewere}, http.StatusPermanentRedirect: {fault.Unavailable, elsewere},
}

// fail translates an error of the server, of the way to it or of our own.
func (b *Backend) fail(ctx context.Context, op, name string, err error) error {
	if err == nil {
		return nil
	}
	op = "mounts/s3." + op
	if ctxErr := ctx.Err(); ctxErr != nil {
		return fault.Wrap(op, name, ctxErr)
	}
	var own *fault.Error
	if errors.As(err, &own) {
		return fault.Wrap(op, name, err)
	}
	kind, cause := b.judge(err)
	return fault.New(op, name, kind, cause)
}

// failOpen is fail for Open: what is missing is the bucket.
func (b *Backend) failOpen(ctx context.Context, op, name string, err error) error {
	if codeOf(err) == "NoSuchBucket" {
		return fault.New(op, name, fault.NotExist, fmt.Errorf("the server has no bucket %s: make it, or correct the option bucket", b.bucket))
	}
	return b.fail(ctx, strings.TrimPrefix(op, "mounts/s3."), name, err)
}

func (b *Backend) judge(err error) (fault.Kind, error) {
	for own, kind := range map[error]fault.Kind{
		errClosed: fault.Unavailable, errStalled: fault.Timeout, errNoSlot: fault.Busy, errFlood: fault.Unavailable, errEndless: fault.Unavailable,
		errGarbage: fault.Unavailable, errShort: fault.Unavailable, errRange: fault.Unavailable, errLength: fault.Invalid, errTooMany: fault.TooLarge,
		errUndeleted: fault.Unavailable, errStopped: fault.Internal, errNoCopy: fault.Unavailable,
	} {
		if errors.Is(err, own) {
			return kind, own
		}
	}
	var res minio.ErrorResponse
	if errors.As(err, &res) {
		return b.judgeAnswer(res)
	}
	return judgeWay(err)
}

func (b *Backend) judgeAnswer(res minio.ErrorResponse) (fault.Kind, error) {
	v, known := verdicts[res.Code]
	if !known {
		v, known = statuses[res.StatusCode]
	}
	message := b.secrets.Replace(clean(res.Message))
	switch {
	case !known && res.StatusCode == http.StatusBadRequest && strings.Contains(res.Message, "HTTPS"):
		return fault.Unavailable, errors.New("the server speaks TLS: the option endpoint must begin with https://")
	case !known && res.StatusCode >= 400 && res.StatusCode < 500 && res.Code != "":
		v = verdict{fault.Invalid, ""}
	case !known:
		v = verdict{fault.Unavailable, ""}
	}
	text := b.secrets.Replace(clean(res.Code))
	if message != "" && message != text {
		text += ": " + message
	}
	if v.hint != "" {
		text = v.hint + " (" + text + ")"
	}
	return v.kind, errors.New(text)
}

// judgeWay is about errors of connections and of answers that are no S3.
func judgeWay(err error) (fault.Kind, error) {
	var outer *url.Error
	if errors.As(err, &outer) {
		err = outer.Err // without the address
	}
	var syntax *xml.SyntaxError
	var unmarshal xml.UnmarshalError
	var name *net.DNSError
	var way *net.OpError
	var timeout net.Error
	switch {
	case trust.Is(err):
		return fault.Unavailable, trust.Explain(err)
	case errors.Is(err, dial.ErrRefused):
		return fault.Denied, err
	case errors.As(err, &syntax), errors.As(err, &unmarshal), strings.Contains(err.Error(), "malformed HTTP"):
		return fault.Unavailable, errGarbage
	case strings.Contains(err.Error(), "HTTP response to HTTPS client"):
		return fault.Unavailable, errors.New("the server does not speak TLS: the option endpoint must begin with http://")
	case errors.As(err, &name):
		return fault.Unavailable, fmt.Errorf("the name %s of the option endpoint (or of the bucket in it) is not known: %s", clean(name.Name), clean(name.Err))
	case errors.As(err, &way) && way.Op == "dial":
		return fault.Unavailable, fmt.Errorf("the server cannot be reached: correct the option endpoint, or start the server: %w", err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return fault.Timeout, err
	case strings.HasPrefix(err.Error(), "Connection closed by foreign host"), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return fault.Unavailable, errGone // minio-go puts the address into its text
	}
	return fault.Unavailable, errors.New(clean(err.Error()))
}

// clean bounds what a server says and takes out what would not stay on a line.
func clean(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// codeOf returns the code of a server's answer, "" where err is none.
func codeOf(err error) string {
	var res minio.ErrorResponse
	errors.As(err, &res)
	return res.Code
}

// regionOf returns the region a server asks for when requests are signed for another.
func regionOf(err error) string {
	var res minio.ErrorResponse
	if errors.As(err, &res) && (res.Code == "AuthorizationHeaderMalformed" || res.Code == "InvalidRegion" || res.Code == "PermanentRedirect" || res.StatusCode == http.StatusMovedPermanently) {
		if len(res.Region) < 64 && strings.Trim(strings.ToLower(res.Region), "abcdefghijklmnopqrstuvwxyz0123456789-") == "" {
			return res.Region
		}
	}
	return ""
}

// missing reports whether err says that there is no such object.
func missing(err error) bool {
	var res minio.ErrorResponse
	return errors.As(err, &res) && (res.Code == "NoSuchKey" || res.StatusCode == http.StatusNotFound && res.Code != "NoSuchBucket" && res.Code != "NoSuchUpload") ||
		codeOf(err) == "NoSuchKey"
}

// conflicting reports whether err says that a condition of a request did not hold.
func conflicting(err error) bool {
	var res minio.ErrorResponse
	return errors.As(err, &res) && (res.Code == "PreconditionFailed" || res.StatusCode == http.StatusPreconditionFailed)
}

// passing reports whether the same request may succeed a moment later. What an answer was lost to is worth another try only where doing it
// twice does no harm.
func passing(err error, twice bool) bool {
	var res minio.ErrorResponse
	if errors.As(err, &res) {
		switch res.StatusCode {
		case http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout, http.StatusTooManyRequests:
			return true
		}
		v, ok := verdicts[res.Code]
		return ok && v.kind == fault.Busy || res.Code == "InternalError" || res.Code == "RequestTimeout"
	}
	for _, final := range []error{errClosed, errStalled, errNoSlot, errFlood, errEndless, errGarbage, errLength, errStopped, dial.ErrRefused, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, final) {
			return false
		}
	}
	var outer *url.Error
	return twice && errors.As(err, &outer) && !trust.Is(err)
}
