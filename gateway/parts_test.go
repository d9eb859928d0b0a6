package gateway_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"cellgate/gateway"
	"cellgate/gateway/gatewaytest"
	"cellgate/internal/fault"
	"cellgate/mounts"
	"cellgate/mounts/mem"
)

// partsHouse is a house whose workspace docs lies near, or across a network.
func partsHouse(t *testing.T, where string) *gatewaytest.House {
	t.Helper()
	var disk mounts.Backend
	switch where {
	case "mem":
		disk = mem.New(mem.Config{})
	case "local":
		disk, _ = onDisk(t)
	case "far":
		disk = gatewaytest.Far(mem.New(mem.Config{}), mounts.Native)
	}
	return gatewaytest.New(t, gatewaytest.Config{Disks: map[string]mounts.Backend{"disk": disk}})
}

func noise(n int, seed byte) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestParts: parts arrive in any order and size, replace each other, survive a restart, and become a file that is just those that were named.
func TestParts(t *testing.T) {
	sizes := map[string][]int{ // by number, from 1 on, in the order in which they come: 0 is left out
		"one":             {10},
		"even":            {1000, 1000, 1000, 7},
		"last is larger":  {1000, 1000, 5000},
		"first is larger": {5000, 1000, 1000},
		"with a gap":      {1000, 0, 1000, 300},
		"empty last":      {1000, 0},
		"uneven":          {3, 700000, 1, 300000, 20},
	}
	for _, where := range []string{"mem", "local", "far"} {
		for name, sizes := range sizes {
			for _, order := range []string{"ascending", "descending", "replaced"} {
				t.Run(where+"/"+name+"/"+order, func(t *testing.T) {
					t.Parallel()
					h := partsHouse(t, where)
					ctx, p := t.Context(), gatewaytest.Path("/docs/f")
					up, err := h.As("alice").BeginParts(ctx, p, "type")
					if err != nil {
						t.Fatal(err)
					}
					var numbers []int
					for i, n := range sizes {
						if n > 0 {
							numbers = append(numbers, i+1)
						}
					}
					if order == "descending" {
						slices.Reverse(numbers)
					}
					rounds := 1
					if order == "replaced" {
						rounds = 2
					}
					var want []byte
					for round := range rounds {
						want = nil
						for _, n := range numbers {
							part, err := h.As("alice").PutPart(ctx, p, up.ID, n, bytes.NewReader(noise(sizes[n-1], byte(n+100*round))),
								gateway.CreateOptions{Size: int64(sizes[n-1]), Compute: []string{"MD5"}})
							if err != nil || part.Size != int64(sizes[n-1]) || !strings.HasPrefix(part.Sums, "MD5:") {
								t.Fatalf("part %d: %+v, %v", n, part, err)
							}
						}
						for i, n := range sizes {
							want = append(want, noise(n, byte(i+1+100*round))...)
						}
						if order != "ascending" {
							h.Reopen()
						}
					}
					parts, err := h.As("alice").Parts(ctx, p, up.ID, 0, 100)
					if err != nil || len(parts) != len(numbers) {
						t.Fatalf("%d parts, %v", len(parts), err)
					}
					h.Tell(t, "alice: stat /docs/f -> ! does not exist")
					info, created, err := h.As("alice").CompleteParts(ctx, p, up.ID, parts, gateway.CreateOptions{}, "result")
					if err != nil || !created || info.Size != int64(len(want)) {
						t.Fatalf("%+v, %t, %v", info, created, err)
					}
					if got, err := gatewaytest.Read(ctx, h.As("bob"), p); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes, want %d, %v", len(got), len(want), err)
					}
					again, created, err := h.As("alice").CompleteParts(ctx, p, up.ID, parts, gateway.CreateOptions{}, "")
					if done, derr := h.As("alice").Multipart(ctx, p, up.ID); err != nil || created || again.Size != info.Size || derr != nil || !done.Done || done.Note != "result" {
						t.Errorf("completed again: %+v, %v; %+v, %v", again, err, done, derr)
					}
					_, err = h.As("alice").PutPart(ctx, p, up.ID, 1, strings.NewReader("x"), gateway.CreateOptions{Size: 1})
					wants(t, "a part after the end", err, fault.NotExist)
					if err := h.Gateway.Fsck(ctx, false, func(f gateway.Finding) { t.Errorf("fsck: %+v", f) }); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
}

// TestPartsRefused: what is cut off or not what was declared leaves the former part; what is not as Parts told it completes nothing.
func TestPartsRefused(t *testing.T) {
	for _, where := range []string{"mem", "far"} {
		t.Run(where, func(t *testing.T) {
			h := partsHouse(t, where)
			h.Tell(t, "alice: put /docs/f old -> ok\nalice: mkdir /docs/d -> ok")
			ctx, s, p := t.Context(), h.As("alice"), gatewaytest.Path("/docs/f")
			up, err := s.BeginParts(ctx, p, "")
			if err != nil {
				t.Fatal(err)
			}
			put := func(n int, r io.Reader, opt gateway.CreateOptions) (gateway.Part, error) {
				opt.Compute = []string{"MD5"}
				return s.PutPart(ctx, p, up.ID, n, r, opt)
			}
			one, err := put(1, strings.NewReader("first"), gateway.CreateOptions{Size: 5})
			if err != nil {
				t.Fatal(err)
			}
			cut := errors.New("cut")
			_, err = put(1, io.MultiReader(strings.NewReader("12"), iotest.ErrReader(cut)), gateway.CreateOptions{Size: 5})
			if !errors.Is(err, cut) {
				t.Errorf("a cut part: %v", err)
			}
			_, err = put(1, strings.NewReader("short"), gateway.CreateOptions{Size: 6})
			wants(t, "a short part", err, fault.Invalid)
			_, err = put(1, strings.NewReader("longer"), gateway.CreateOptions{Size: 5})
			wants(t, "a long part", err, fault.Invalid)
			_, err = put(1, strings.NewReader("wrong"), gateway.CreateOptions{Size: 5, Checksum: "MD5:00000000000000000000000000000000"})
			wants(t, "another checksum", err, fault.Invalid)
			for _, n := range []int{0, -1, gateway.MaxPart + 1} {
				_, err = put(n, strings.NewReader("x"), gateway.CreateOptions{Size: 1})
				wants(t, "a number out of range", err, fault.Invalid)
			}
			two, err := put(2, strings.NewReader("second"), gateway.CreateOptions{Size: -1})
			if err != nil {
				t.Fatal(err)
			}
			other := one
			other.Sums = "MD5:00000000000000000000000000000000"
			for what, parts := range map[string][]gateway.Part{"others": {other}, "unknown": {{Number: 3, Size: 1}}} {
				_, _, err = s.CompleteParts(ctx, p, up.ID, parts, gateway.CreateOptions{}, "")
				wants(t, what, err, fault.Precondition)
			}
			for what, parts := range map[string][]gateway.Part{"none": nil, "out of order": {two, one}, "twice": {one, one}} {
				_, _, err = s.CompleteParts(ctx, p, up.ID, parts, gateway.CreateOptions{}, "")
				wants(t, what, err, fault.Invalid)
			}
			_, _, err = s.CompleteParts(ctx, p, up.ID, []gateway.Part{one, two}, gateway.CreateOptions{Cond: gateway.Cond{NoneMatch: []string{"*"}}}, "")
			wants(t, "a condition", err, fault.Precondition)
			h.Tell(t, "alice: cat /docs/f -> old")

			for what, err := range map[string]error{
				"another user":   second(h.As("bob").Parts(ctx, p, up.ID, 0, 10)),
				"another path":   second(s.Parts(ctx, gatewaytest.Path("/docs/g"), up.ID, 0, 10)),
				"another id":     second(s.Parts(ctx, p, "none", 0, 10)),
				"an unknown one": s.AbortParts(ctx, p, "none"),
			} {
				if kind := fault.KindOf(err); err == nil || kind != fault.NotExist && kind != fault.Denied {
					t.Errorf("%s: %v", what, err)
				}
			}
			_, err = s.BeginParts(ctx, gatewaytest.Path("/docs/d"), "")
			wants(t, "a folder", err, fault.IsDir)
			_, err = h.As("bob").BeginParts(ctx, p, "")
			wants(t, "a reader", err, fault.Denied)

			if _, _, err := s.CompleteParts(ctx, p, up.ID, []gateway.Part{one, two}, gateway.CreateOptions{}, ""); err != nil {
				t.Fatal(err)
			}
			h.Tell(t, "alice: cat /docs/f -> firstsecond")
		})
	}
}

func second[T any](_ T, err error) error { return err }

// TestPartsListed: uploads are listed in order, in pages, and are gone once aborted.
func TestPartsListed(t *testing.T) {
	h := partsHouse(t, "mem")
	ctx, s := t.Context(), h.As("alice")
	ids := map[string]string{}
	for _, name := range []string{"/docs/b", "/docs/a", "/docs/c"} {
		up, err := s.BeginParts(ctx, gatewaytest.Path(name), name)
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = up.ID
	}
	if err := s.AbortParts(ctx, gatewaytest.Path("/docs/c"), ids["/docs/c"]); err != nil {
		t.Fatal(err)
	}
	var got []string
	for after, id := "", ""; ; {
		page, err := s.Multiparts(ctx, gatewaytest.Path("/docs"), after, id, 1)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) == 0 {
			break
		}
		got = append(got, page[0].Note)
		after, id = page[0].Path.String(), page[0].ID
	}
	if strings.Join(got, " ") != "/docs/a /docs/b" {
		t.Errorf("listed %q", got)
	}
	if page, err := h.As("bob").Multiparts(ctx, gatewaytest.Path("/docs"), "", "", 10); err != nil || len(page) > 0 {
		t.Errorf("bob sees %v, %v", page, err)
	}
}
