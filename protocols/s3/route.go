package s3

import (
	"mime"
	"net/http"
)

// operation is what a request asks for.
type operation struct {
	serve func(*request) error
	form  bool // the signature comes in the body
}

// bucketOps and objectOps say which operation a method and a subresource mean. What is not there is not implemented.
var (
	bucketOps = map[string]func(*request) error{
		"GET": (*request).listObjects, "HEAD": (*request).headBucket, "PUT": (*request).createBucket, "DELETE": (*request).deleteBucket,
		"GET location": (*request).getLocation, "GET versioning": (*request).getVersioning, "GET versions": (*request).listVersions,
		"GET uploads": (*request).listUploads, "GET acl": (*request).getACL, "PUT acl": (*request).putACL, "GET cors": (*request).getCORS,
		"POST delete": (*request).deleteObjects,
		"GET policy":  lacks("NoSuchBucketPolicy", "The bucket policy does not exist"),
		"GET tagging": lacks("NoSuchTagSet", "The TagSet does not exist"), "GET lifecycle": lacks("NoSuchLifecycleConfiguration", "The lifecycle configuration does not exist"),
		"GET encryption":        lacks("ServerSideEncryptionConfigurationNotFoundError", "The server side encryption configuration was not found"),
		"GET website":           lacks("NoSuchWebsiteConfiguration", "The specified bucket does not have a website configuration"),
		"GET replication":       lacks("ReplicationConfigurationNotFoundError", "The replication configuration was not found"),
		"GET object-lock":       lacks("ObjectLockConfigurationNotFoundError", "Object Lock configuration does not exist for this bucket"),
		"GET publicAccessBlock": lacks("NoSuchPublicAccessBlockConfiguration", "The public access block configuration was not found"),
		"GET ownershipControls": constant("OwnershipControls", "<Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership></Rule>"),
		"GET policyStatus":      constant("PolicyStatus", "<IsPublic>FALSE</IsPublic>"), "GET logging": constant("BucketLoggingStatus", ""),
		"GET notification": constant("NotificationConfiguration", ""), "GET accelerate": constant("AccelerateConfiguration", ""),
		"GET requestPayment": constant("RequestPaymentConfiguration", "<Payer>BucketOwner</Payer>"),
	}
	objectOps = map[string]func(*request) error{
		"GET": (*request).getObject, "HEAD": (*request).getObject, "PUT": (*request).putOrCopy, "DELETE": (*request).deleteObject,
		"GET acl": (*request).getACL, "PUT acl": (*request).putACL, "GET attributes": (*request).getAttributes,
		"GET tagging": (*request).getTagging, "PUT tagging": (*request).putTagging, "DELETE tagging": (*request).deleteTagging,
		"POST uploads": (*request).createUpload, "PUT uploadId": (*request).uploadPart, "GET uploadId": (*request).listParts,
		"POST uploadId": (*request).completeUpload, "DELETE uploadId": (*request).abortUpload,
	}
)

// subresources are the parameters that make another operation of a request. All others only vary it.
var subresources = map[string]bool{
	"accelerate": true, "acl": true, "analytics": true, "append": true, "attributes": true, "cors": true, "delete": true, "encryption": true,
	"intelligent-tiering": true, "inventory": true, "legal-hold": true, "lifecycle": true, "location": true, "logging": true, "metadataTable": true,
	"metadataConfiguration": true, "metrics": true, "notification": true, "object-lock": true, "ownershipControls": true, "policy": true,
	"policyStatus": true, "publicAccessBlock": true, "renameObject": true, "replication": true, "requestPayment": true, "restore": true,
	"retention": true, "select": true, "session": true, "tagging": true, "torrent": true, "uploadId": true, "uploads": true, "versioning": true,
	"versions": true, "website": true,
}

// operation returns what the request asks for. What it cannot ask for is said only to those who have signed in.
func (q *request) operation() (operation, error) {
	method := q.r.Method
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPut, http.MethodDelete, http.MethodPost:
	default:
		return operation{serve: func(*request) error { return refuse(errMethod) }}, nil
	}
	if q.bucket == "" {
		if method == http.MethodGet && q.key == "" {
			return operation{serve: (*request).listBuckets}, nil
		}
		return operation{serve: func(*request) error { return refuse(errMethod) }}, nil
	}
	sub, table := method, objectOps
	if q.key == "" {
		table = bucketOps
	}
	for _, p := range q.query {
		if subresources[p.name] {
			if sub += " " + p.name; method == http.MethodHead {
				sub = method
			}
			break
		}
	}
	if kind, _, _ := mime.ParseMediaType(q.r.Header.Get("Content-Type")); sub == http.MethodPost && q.key == "" && kind == "multipart/form-data" {
		return operation{serve: (*request).postObject, form: true}, nil
	}
	if serve := table[sub]; serve != nil {
		return operation{serve: serve}, nil
	}
	if sub == http.MethodPost {
		return operation{serve: func(*request) error { return refuse(errMethod) }}, nil
	}
	return operation{serve: func(*request) error { return refuse(errNotImplemented) }}, nil
}

// lacks answers as a bucket that has not got what is asked for.
func lacks(code, words string) func(*request) error {
	return func(q *request) error {
		if err := q.bucketThere(); err != nil {
			return err
		}
		return refuse(answer{http.StatusNotFound, code, words})
	}
}

// constant answers with what holds of every bucket.
func constant(root, inner string) func(*request) error {
	return func(q *request) error {
		if err := q.bucketThere(); err != nil {
			return err
		}
		return q.reply(http.StatusOK, closed(append(document(root), inner...), root))
	}
}

// putOrCopy tells what brings a body from what names one.
func (q *request) putOrCopy() error {
	if q.r.Header.Get("X-Amz-Copy-Source") != "" {
		return q.copyObject()
	}
	return q.putObject()
}
