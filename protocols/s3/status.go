package s3

import (
	"errors"
	"net/http"
	"strconv"
	"time"

	"cellgate/internal/fault"
	"cellgate/policy/identity"
)

// statusClientGone is nginx's word for a client that did not wait.
const statusClientGone = 499

// answer is how S3 says that something failed: a status, a code that programs know, and words.
type answer struct {
	status int
	code   string
	words  string
}

// answers is the one table from kinds to S3. Operations for which S3 has another word turn the error into a *refusal themselves.
var answers = map[fault.Kind]answer{
	fault.Internal:        {http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again."},
	fault.NotExist:        {http.StatusNotFound, "NoSuchKey", "The specified key does not exist."},
	fault.Exist:           {http.StatusConflict, "OperationAborted", "The name is taken."},
	fault.Denied:          {http.StatusForbidden, "AccessDenied", "Access Denied"},
	fault.Unauthenticated: {http.StatusForbidden, "AccessDenied", "Access Denied"},
	fault.Invalid:         {http.StatusBadRequest, "InvalidArgument", "Invalid Argument"},
	fault.IsDir:           {http.StatusConflict, "ExistingObjectIsDirectory", "The key is that of a folder, so it cannot be that of an object."},
	fault.NotDir:          {http.StatusConflict, "ObjectParentIsFile", "A part of the key is an object, so nothing can be below it."},
	fault.NotEmpty:        {http.StatusConflict, "BucketNotEmpty", "The bucket you tried to delete is not empty."},
	fault.Locked:          {http.StatusConflict, "OperationAborted", "The object is locked by somebody else."},
	fault.Precondition:    {http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"},
	fault.TooLarge:        {http.StatusBadRequest, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size"},
	fault.Quota:           {http.StatusForbidden, "QuotaExceeded", "The quota of the user or bucket is used up."},
	fault.NoSpace:         {http.StatusInsufficientStorage, "InsufficientStorage", "There is no room left on the storage."},
	fault.Unsupported:     {http.StatusNotImplemented, "NotImplemented", "A header or operation you provided implies functionality that is not implemented"},
	fault.Busy:            {http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."},
	fault.Timeout:         {http.StatusServiceUnavailable, "ServiceUnavailable", "The storage did not answer in time."},
	fault.Unavailable:     {http.StatusServiceUnavailable, "ServiceUnavailable", "The storage is not reachable. Please try again."},
	fault.Corrupt:         {http.StatusInternalServerError, "InternalError", "The stored object fails its integrity check."},
	fault.Canceled:        {statusClientGone, "RequestTimeout", "The client did not wait."},
}

// What requests are refused with here.
var (
	errSlowDown        = answer{http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."}
	errTryAgain        = answer{http.StatusServiceUnavailable, "ServiceUnavailable", "The folder vanished meanwhile. Please try again."}
	errNoSuchBucket    = answer{http.StatusNotFound, "NoSuchBucket", "The specified bucket does not exist"}
	errNoSuchKey       = answers[fault.NotExist]
	errNoSuchUpload    = answer{http.StatusNotFound, "NoSuchUpload", "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."}
	errNoSuchVersion   = answer{http.StatusNotFound, "NoSuchVersion", "The specified version does not exist."}
	errBucketName      = answer{http.StatusBadRequest, "InvalidBucketName", "The specified bucket is not valid."}
	errBucketExists    = answer{http.StatusConflict, "BucketAlreadyExists", "The requested bucket name is not available."}
	errBucketNotEmpty  = answers[fault.NotEmpty]
	errObjectName      = answer{http.StatusBadRequest, "InvalidObjectName", "The key is no path of names, or that of a folder with content."}
	errKeyTooLong      = answer{http.StatusBadRequest, "KeyTooLongError", "Your key is too long"}
	errDenied          = answers[fault.Denied]
	errReserved        = answer{http.StatusForbidden, "AccessDenied", "The name is not for clients."}
	errAnonymous       = answer{http.StatusForbidden, "AccessDenied", "Anonymous access is not possible: sign the request."}
	errOldSignature    = answer{http.StatusForbidden, "AccessDenied", "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."}
	errTwoSignatures   = answer{http.StatusForbidden, "AccessDenied", "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or the Authorization header should be specified"}
	errUnsignedHeaders = answer{http.StatusForbidden, "AccessDenied", "There were headers present in the request which were not signed"}
	errExpired         = answer{http.StatusForbidden, "AccessDenied", "Request has expired"}
	errNotYet          = answer{http.StatusForbidden, "AccessDenied", "Request is not valid yet"}
	errSkewed          = answer{http.StatusForbidden, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."}
	errNoDate          = answer{http.StatusForbidden, "AccessDenied", "AWS authentication requires a valid Date or x-amz-date header"}
	errAccessKey       = answer{http.StatusForbidden, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."}
	errSignature       = answer{http.StatusForbidden, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	errAuthMalformed   = answer{http.StatusBadRequest, "AuthorizationHeaderMalformed", "The authorization header you provided is invalid."}
	errQueryMalformed  = answer{http.StatusForbidden, "AuthorizationQueryParametersError", "The query parameters of the signature are invalid."}
	errContentSHA      = answer{http.StatusBadRequest, "XAmzContentSHA256Mismatch", "The provided 'x-amz-content-sha256' header does not match what was computed."}
	errNoContentSHA    = answer{http.StatusBadRequest, "InvalidRequest", "Missing required header for this request: x-amz-content-sha256"}
	errBadContentSHA   = answer{http.StatusBadRequest, "InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, or a valid sha256 value."}
	errIncomplete      = answer{http.StatusBadRequest, "IncompleteBody", "You did not provide the number of bytes specified by the Content-Length HTTP header"}
	errMalformedChunk  = answer{http.StatusBadRequest, "IncompleteBody", "The chunks of the body are malformed."}
	errTrailer         = answer{http.StatusBadRequest, "MalformedTrailerError", "The request contained trailing data that was not well-formed or did not conform to our published schema."}
	errNoLength        = answer{http.StatusLengthRequired, "MissingContentLength", "You must provide the Content-Length HTTP header."}
	errBadDigest       = answer{http.StatusBadRequest, "BadDigest", "The checksum you specified did not match what we received."}
	errInvalidDigest   = answer{http.StatusBadRequest, "InvalidDigest", "The Content-MD5 you specified was invalid."}
	errTooLarge        = answers[fault.TooLarge]
	errTooSmall        = answer{http.StatusBadRequest, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size"}
	errMetadata        = answer{http.StatusBadRequest, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size"}
	errMalformedXML    = answer{http.StatusBadRequest, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema"}
	errArgument        = answers[fault.Invalid]
	errRequest         = answer{http.StatusBadRequest, "InvalidRequest", "Invalid Request"}
	errTag             = answer{http.StatusBadRequest, "InvalidTag", "The tag provided was not a valid tag."}
	errPart            = answer{http.StatusBadRequest, "InvalidPart", "One or more of the specified parts could not be found. The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."}
	errPartOrder       = answer{http.StatusBadRequest, "InvalidPartOrder", "The list of parts was not in ascending order. The parts list must be specified in order by part number."}
	errPartNumber      = answer{http.StatusBadRequest, "InvalidPart", "The requested partnumber is not satisfiable"}
	errRange           = answer{http.StatusRequestedRangeNotSatisfiable, "InvalidRange", "The requested range is not satisfiable"}
	errMethod          = answer{http.StatusMethodNotAllowed, "MethodNotAllowed", "The specified method is not allowed against this resource."}
	errNotImplemented  = answers[fault.Unsupported]
	errACL             = answer{http.StatusBadRequest, "AccessControlListNotSupported", "The bucket does not allow ACLs"}
	errStorageClass    = answer{http.StatusBadRequest, "InvalidStorageClass", "The storage class you specified is not valid"}
	errPrecondition    = answers[fault.Precondition]
	errPolicyDocument  = answer{http.StatusBadRequest, "InvalidPolicyDocument", "The content of the form does not meet the conditions specified in the policy document."}
	errMalformedPost   = answer{http.StatusBadRequest, "MalformedPOSTRequest", "The body of your POST request is not well-formed multipart/form-data."}
	errIsFolder        = answers[fault.IsDir]
)

// refusal is an answer decided here.
type refusal struct {
	answer
	extra []string // names and values of further elements
}

func (r *refusal) Error() string { return r.code + ": " + r.words }

func refuse(a answer) error { return &refusal{answer: a} }

// refuseFor is refuse with words of its own.
func refuseFor(a answer, words string) error {
	a.words = words
	return &refusal{answer: a}
}

// answerTo returns what err means to a client.
func answerTo(err error) *refusal {
	var r *refusal
	if errors.As(err, &r) {
		return r
	}
	var throttled *identity.Throttled
	if errors.As(err, &throttled) {
		return &refusal{answer: answer{http.StatusServiceUnavailable, "SlowDown", "Too many wrong signatures: try again later."}}
	}
	var tooBig *http.MaxBytesError
	if errors.As(err, &tooBig) {
		return &refusal{answer: errTooLarge}
	}
	if a, ok := answers[fault.KindOf(err)]; ok {
		return &refusal{answer: a}
	}
	return &refusal{answer: answers[fault.Internal]}
}

// fail answers the request with err. When the answer has begun already, it can only be cut: what looks complete and is not would be taken for
// the truth.
func (q *request) fail(err error) {
	a := answerTo(err)
	var asked *refusal // what the client asked for is no failure of ours, whatever the status
	if gone := q.w.broken != nil || q.body.broken != nil; !gone && a.status >= 500 && !errors.As(err, &asked) {
		q.h.cfg.Logger.ErrorContext(q.ctx(), "s3 request failed",
			"request", q.id, "method", q.r.Method, "bucket", q.bucket, "key", q.key, "status", a.status, "err", err)
	}
	if q.w.wrote {
		panic(http.ErrAbortHandler)
	}
	hd := q.w.Header()
	unmodified := a.status == http.StatusNotModified // RFC 9110 §15.4.5: the validators go along
	for k := range hd {
		if !keptOnError[k] && !(unmodified && (k == "Etag" || k == "Last-Modified")) {
			delete(hd, k)
		}
	}
	if a.status == http.StatusServiceUnavailable {
		hd["Retry-After"] = []string{retryAfter(err)}
	}
	if unmodified {
		q.w.WriteHeader(a.status)
		return
	}
	b := append([]byte(xmlHeader), "<Error>"...)
	b = elem(b, "Code", a.code)
	b = elem(b, "Message", a.words)
	for i := 0; i+1 < len(a.extra); i += 2 {
		b = elem(b, a.extra[i], a.extra[i+1])
	}
	b = elem(b, "Resource", q.r.URL.Path)
	b = elem(b, "RequestId", q.id)
	b = elem(b, "HostId", hostID)
	b = append(b, "</Error>"...)
	hd["Content-Type"] = hdrXML
	if q.r.Method == http.MethodHead {
		q.w.WriteHeader(a.status)
		return
	}
	hd["Content-Length"] = []string{strconv.Itoa(len(b))}
	q.w.WriteHeader(a.status)
	q.w.Write(b)
}

// keptOnError are the headers that an answer keeps when it turns out to be an error.
var keptOnError = map[string]bool{
	"X-Amz-Request-Id": true, "X-Amz-Id-2": true, "Server": true, "Vary": true, "Content-Range": true, "X-Amz-Bucket-Region": true,
	"Access-Control-Allow-Origin": true, "Access-Control-Expose-Headers": true, "Access-Control-Allow-Credentials": true,
	"X-Amz-Delete-Marker": true, "Connection": true,
}

// retryAfter returns the seconds a client should wait: what the login's budget says, or a few.
func retryAfter(err error) string {
	var throttled *identity.Throttled
	if errors.As(err, &throttled) {
		return strconv.Itoa(max(1, int((throttled.RetryAfter+time.Second-1)/time.Second)))
	}
	return "2"
}
