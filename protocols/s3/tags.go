package s3

import (
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"cellgate/gateway"
)

// Limits of tags ("Categorizing your storage using tags").
const (
	maxTags     = 10
	maxTagKey   = 128
	maxTagValue = 256
)

// checkTags refuses what cannot be the tags of an object.
func checkTags(tags []tag) error {
	if len(tags) > maxTags {
		return refuseFor(errTag, "Object tags cannot be greater than 10")
	}
	seen := map[string]bool{}
	for _, t := range tags {
		switch {
		case seen[t.Key]:
			return refuseFor(errTag, "Cannot provide multiple Tags with the same key")
		case t.Key == "" || utf8.RuneCountInString(t.Key) > maxTagKey || !utf8.ValidString(t.Key):
			return refuseFor(errTag, "The TagKey you have provided is invalid")
		case utf8.RuneCountInString(t.Value) > maxTagValue || !utf8.ValidString(t.Value):
			return refuseFor(errTag, "The TagValue you have provided is invalid")
		}
		seen[t.Key] = true
	}
	return nil
}

// tagsOf reads tags written as a query.
func tagsOf(v string) (tags []tag, err error) {
	if v == "" {
		return nil, nil
	}
	all, err := parseQuery(v)
	if err != nil {
		return nil, refuseFor(errArgument, "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters without tag name duplicates.")
	}
	for _, p := range all {
		tags = append(tags, tag{p.name, p.value})
	}
	slices.SortStableFunc(tags, func(a, b tag) int { return strings.Compare(a.Key, b.Key) })
	return tags, checkTags(tags)
}

// tagSet is a list of tags as XML.
type tagSet struct {
	Tags []tag `xml:"TagSet>Tag"`
}

func (q *request) getTagging() error {
	_, k, err := q.node()
	if err != nil {
		return err
	}
	b := open(document("Tagging"), "TagSet")
	for _, t := range k.tags {
		b = closed(elem(elem(open(b, "Tag"), "Key", t.Key), "Value", t.Value), "Tag")
	}
	return q.reply(http.StatusOK, closed(closed(b, "TagSet"), "Tagging"))
}

func (q *request) putTagging() error {
	body, err := q.document(q.h.cfg.Limits.XML)
	if err != nil {
		return err
	}
	var list tagSet
	if err := decodeXML(body, "Tagging", &list); err != nil {
		return err
	}
	if err := checkTags(list.Tags); err != nil {
		return err
	}
	return q.retag(list.Tags, http.StatusOK)
}

func (q *request) deleteTagging() error { return q.retag(nil, http.StatusNoContent) }

// retag gives an object other tags.
func (q *request) retag(tags []tag, status int) error {
	info, k, err := q.node()
	if err != nil {
		return err
	}
	of := bound(info)
	if info.Dir {
		of = folderID
	}
	changes := []gateway.PropChange{change(propTags, nil)}
	if len(tags) > 0 {
		changes[0] = change(propTags, tagging{of, tags})
	}
	if info.Dir && !k.put { // it is the key of an empty folder: from now on of this one, whatever is put into it
		changes = append(changes, change(propMeta, meta{Of: folderID}))
	}
	if err := q.s.PatchProps(q.ctx(), info.Path, changes, gateway.Cond{Check: same(info, true)}); err != nil {
		return err
	}
	return q.done(status)
}

// tagsIn reads tags as the forms of browsers bring them: XML.
func tagsIn(v string) ([]tag, error) {
	if strings.TrimSpace(v) == "" {
		return nil, nil
	}
	var list tagSet
	if err := decodeXML([]byte(v), "Tagging", &list); err != nil {
		return nil, err
	}
	return list.Tags, checkTags(list.Tags)
}
