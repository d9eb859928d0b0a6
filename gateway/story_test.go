package gateway_test

import (
	"testing"
	"time"

	"cellgate/gateway/gatewaytest"
	"cellgate/internal/clock"
	"cellgate/mounts"
	"cellgate/mounts/mem"
	"cellgate/store"
	"cellgate/store/storetest"
)

func TestStories(t *testing.T) {
	for name, story := range map[string]string{
		"the tree of a user": `
			alice: ls / -> docs/ drop/ homes/ pair/
			bob: ls / -> docs/ drop/ homes/ pair/
			guest: ls / -> homes/
			guest: ls /docs -> ! does not exist
			guest: stat /nowhere -> ! does not exist
			alice: ls /pair -> one/ two/
			alice: put /pair/one/a 1 -> ok
			alice: put /pair/three/a 1 -> ! does not exist
			alice: mkdir /newspace -> ! does not exist
			alice: rmtree /docs -> ! permission denied
			alice: rmtree /pair/one -> ! permission denied
			alice: mv /docs /pair/one/docs -> ! permission denied`,
		"homes are each one's own": `
			alice: put /homes/a mine -> ok
			bob: ls /homes -> nothing
			bob: put /homes/b his -> ok
			alice: ls /homes -> a
			guest: ls /homes -> nothing`,
		"files": `
			alice: put /docs/a.txt hello -> ok
			alice: stat /docs/a.txt -> file 5
			bob: cat /docs/a.txt -> hello
			bob: put /docs/a.txt mine -> ! permission denied
			bob: rm /docs/a.txt -> ! permission denied
			bob: mkdir /docs/d -> ! permission denied
			alice: new /docs/a.txt other -> ! precondition failed
			alice: over /docs/b.txt other -> ! precondition failed
			alice: over /docs/a.txt there -> ok
			bob: cat /docs/a.txt -> there
			alice: put /docs/no/a x -> ! does not exist
			alice: put /docs/a.txt/b x -> ! is not a folder
			alice: mkdir /docs/d -> ok
			alice: mkdir /docs/d -> ! already exists
			alice: put /docs/d x -> ! is a folder
			alice: cat /docs/d -> ! is a folder
			alice: ls /docs/a.txt -> ! is not a folder
			alice: put /docs/d/x 1 -> ok
			alice: rm /docs/d -> ! folder is not empty
			alice: rmtree /docs/d -> ok
			alice: ls /docs -> a.txt
			alice: write /docs/a.txt 2 AA -> ok
			alice: cat /docs/a.txt -> thAAe
			alice: rm /docs/a.txt -> ok
			alice: rm /docs/a.txt -> ! does not exist`,
		"moves and copies": `
			alice: mkdir /docs/d -> ok
			alice: mkdir /docs/d/e -> ok
			alice: put /docs/d/f one -> ok
			alice: put /docs/d/e/g two -> ok
			alice: prop /docs/d/e/g colour red -> ok
			alice: cp /docs/d /docs/c -> ok
			alice: props /docs/c/e/g -> colour=red
			alice: cat /docs/c/e/g -> two
			alice: mv /docs/d /docs/m -> ok
			alice: ls /docs -> c/ m/
			alice: props /docs/m/e/g -> colour=red
			alice: mv /docs/m /docs/c -> ! already exists
			alice: mv! /docs/m /docs/c -> ok
			alice: ls /docs/c -> e/ f
			alice: mv /docs/c /docs/c/e/x -> ! invalid
			alice: cp /docs/c /docs/c/e/x -> ! invalid
			alice: cp! /docs/c/e /docs/c -> ! invalid
			alice: ls /docs/c/e -> g
			alice: mv /docs/none /docs/c -> ! does not exist
			alice: cp! /docs/none /docs/c -> ! does not exist
			alice: ls /docs/c -> e/ f
			alice: put /docs/f file -> ok
			alice: cp! /docs/c /docs/f -> ok
			alice: ls /docs/f -> e/ f
			alice: put /docs/g file -> ok
			alice: mv! /docs/g /docs/f -> ok
			alice: cat /docs/f -> file`,
		"between datasources": `
			alice: mkdir /pair/one/d -> ok
			alice: put /pair/one/d/a A -> ok
			alice: prop /pair/one/d/a colour red -> ok
			alice: cp /pair/one/d /pair/two/c -> ok
			alice: cat /pair/two/c/a -> A
			alice: props /pair/two/c/a -> colour=red
			alice: mv /pair/one/d /pair/two/d -> ok
			alice: ls /pair/one -> nothing
			alice: cat /pair/two/d/a -> A
			alice: props /pair/two/d/a -> colour=red
			alice: mv! /pair/two/c /pair/two/d -> ok
			alice: mv! /pair/two/d/a /homes/a -> ok
			alice: cat /homes/a -> A`,
		"a drop box shows nothing": `
			bob: put /drop/a his -> ok
			bob: put /drop/a again -> ok
			bob: over /drop/a more -> ! precondition failed
			bob: new /drop/a more -> ! precondition failed
			bob: ls /drop -> ! does not exist
			bob: cat /drop/a -> ! does not exist
			bob: stat /drop/a -> ! does not exist
			alice: cat /drop/a -> again`,
		"locks bind everybody": `
			alice: put /docs/a 1 -> ok
			alice: mkdir /docs/d -> ok
			alice: put /docs/d/x 1 -> ok
			alice: lock /docs/a L -> ok
			alice: put /docs/a 2 -> ! locked
			alice: rm /docs/a -> ! locked
			alice: mv /docs/a /docs/b -> ! locked
			alice: cp! /docs/d/x /docs/a -> ! locked
			alice: prop /docs/a colour red -> ! locked
			alice: lock /docs/a M -> ! locked
			bob: lock /docs/a M -> ! permission denied
			bob: unlock /docs/a L -> ! permission denied
			alice: unlock /docs/d L -> ! precondition failed
			alice: hold L -> ok
			alice: put /docs/a 2 -> ok
			alice: unlock /docs/a L -> ok
			alice: drop L -> ok
			alice: put /docs/a 3 -> ok
			alice: lock+ /docs/d D -> ok
			alice: put /docs/d/x 2 -> ! locked
			alice: put /docs/d/new 2 -> ! locked
			alice: lock /docs/d/x M -> ! locked
			alice: rmtree /docs/d -> ! locked
			alice: sleep 61s -> ok
			alice: put /docs/d/x 2 -> ok
			alice: lock /docs/d/x M -> ok
			alice: rmtree /docs/d -> ! locked
			alice: mv /docs/d /docs/e -> ! locked
			alice: hold M -> ok
			alice: mv /docs/d /docs/e -> ok
			alice: drop M -> ok
			alice: put /docs/e/x 3 -> ok
			alice: share /docs/a S -> ok
			alice: share /docs/a T -> ok
			alice: lock /docs/a M -> ! locked
			alice: put /docs/a 4 -> ! locked
			alice: hold T -> ok
			alice: put /docs/a 4 -> ok
			alice: lock /docs/fresh F -> ok
			alice: stat /docs/fresh -> file 0`,
		"the gateway's own folder is nowhere": `
			alice: ls /docs/.cellgate -> ! does not exist
			alice: put /docs/.cellgate/x y -> ! does not exist
			alice: mkdir /docs/.CellGate -> ! does not exist
			alice: put /docs/x/../y z -> ! invalid
			alice: put "/docs/a\nb" z -> ! invalid
			alice: put "/docs/a\u2028b" z -> ! invalid`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			storetest.Each(t, func(t *testing.T, db *store.DB) {
				h := gatewaytest.New(t, gatewaytest.Config{DB: db, Clock: clock.At(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC))})
				h.Tell(t, story)
			})
			for _, kind := range kinds[1:] {
				t.Run(kind.name, func(t *testing.T) {
					h := gatewaytest.New(t, gatewaytest.Config{
						Clock: clock.At(time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)),
						Disks: map[string]mounts.Backend{"disk": kind.wrap(mem.New(mem.Config{})), "nas": kind.wrap(mem.New(mem.Config{}))},
					})
					h.Tell(t, story)
				})
			}
		})
	}
}
