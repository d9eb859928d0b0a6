// Package s3 serves the tree to S3 clients: the REST API of Amazon S3, version 2006-03-01, with Signature Version 4.
//
// A bucket is a workspace of the user's tree, called by its slug, and a key is the path below it. What is put here is a plain file everywhere
// else, and the other way round. ListBuckets lists the workspaces that the user may see.
//
// # Keys
//
// One rule says which keys there can be: a key is the path of a file, or the path of a folder and a slash. Every segment is a name that all
// protocols carry (1 to 255 bytes of UTF-8, no control characters, neither "." nor ".."), and none is empty. So
//
//   - keys such as "a//b", "/a", "a/../b" and "." can never be: to write one is 400 InvalidObjectName, to read one is 404 NoSuchKey, to delete
//     one succeeds as for every key that is not there, and no listing has one;
//   - a name is a file or a folder. To write "a/b" where "a" is a file is 409 ObjectParentIsFile, to write "a" where "a" is a folder is 409
//     ExistingObjectIsDirectory;
//   - "d/" is the folder d itself. It has no content: to write it with some is 400 InvalidObjectName. Without, it makes the folder, and keeps
//     metadata like any object.
//
// Folders that are missing on the way to a key are made, marked as implied (a property), and vanish with the last that is in them, as prefixes
// do. Folders that were made by any other door, or by a PUT of "d/", stay until somebody deletes them. A folder is listed as the key "d/" when
// it was put as such, or when it is empty and not implied; as a common prefix it is always listed.
//
// # Content
//
// The entity tag of an object that was put is its MD5, that of one that came in parts is the MD5 of their MD5s and their number. A file that
// came by another door without an MD5 has an opaque one, which ends in "-0": clients take what has a dash for no MD5, and do not compare it.
//
// Metadata and content headers are one property of the node, tags another, written in the transaction that publishes the content. They belong
// to that content: when another door replaces it, they are void. To copy an object onto itself with other metadata changes the property and not
// the content, nor the time.
//
// There are no versions yet: every object has the version "null". Access control lists, bucket policies and the like do not exist: rights are
// granted in cellgate. Asking for them is answered as by a bucket without any, changing them is NotImplemented.
//
// # Listings
//
// Keys are listed in the order of their bytes, descending only into folders that fall in the page. The first page of a listing is always
// read anew. For the pages that follow, the sorted folders on the way to the position are remembered for a minute, bounded over all users, and
// forgotten with any change in them. A folder with more entries than may be remembered is read again for each page, keeping only the smallest
// names behind the position.
package s3
