package s3

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"github.com/minio/minio-go/v7"
)

func TestObjectWithMinio(t *testing.T) {
	b := openBox(t, nil)
	c := b.client(alice)
	ctx := t.Context()
	for _, size := range []int{0, 1, smallBody, smallBody + 1, aheadFrom + 1, 7 << 20} {
		data := many(size)
		info, err := c.Client.PutObject(ctx, "docs", "a/b/c", bytes.NewReader(data), int64(size), minio.PutObjectOptions{
			ContentType: "text/x-test", UserMetadata: map[string]string{"Color": "blue"}, UserTags: map[string]string{"k": "v"}, DisableMultipart: true,
		})
		if err != nil {
			t.Fatal(err)
		}
		o, got, _, err := c.GetObject(ctx, "docs", "a/b/c", minio.GetObjectOptions{})
		if err != nil {
			t.Fatal(err)
		}
		back, err := io.ReadAll(o)
		o.Close()
		if err != nil || !bytes.Equal(back, data) || got.ETag != info.ETag || got.ContentType != "text/x-test" || got.Metadata.Get("X-Amz-Meta-Color") != "blue" || got.UserTagCount != 1 {
			t.Errorf("%d bytes came back as %d, %v: %+v", size, len(back), err, got)
		}
	}
	if got := b.keys("docs"); !slices.Equal(got, []string{"a/b/c"}) {
		t.Errorf("keys are %q", got)
	}
	if err := c.Client.RemoveObject(ctx, "docs", "a/b/c", minio.RemoveObjectOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := b.do(call{method: "GET", path: "/docs", query: "delimiter=/"}); bytes.Contains([]byte(got.body), []byte("CommonPrefixes")) {
		t.Errorf("an implied folder is left: %s", got.body)
	}
}
