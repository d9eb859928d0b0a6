package bench

import (
	"fmt"
	"testing"
	"time"
)

// farAway is so far that what the machines need themselves hardly counts: an operation's time is the number of round trips that wait for
// each other.
const farAway = 100 * time.Millisecond

var roundTrips = metric{"round trips", func(s sample) float64 { return s.wall.Seconds() / farAway.Seconds() }}

// trips counts the round trips of single operations: cold, where the box remembers nothing of the folder, and warm, right after listing it.
func (c *chain) trips(b *testing.B) {
	c.link.Delay(farAway / 2)
	p := &party{name: ours, dial: func() (client, error) { return c.door(forgets) }}
	if err := p.want(1); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.clients[0].close() })
	const file, big = "file-000000.txt", "big"
	type operation struct {
		name string
		warm bool
		do   func(cl client, dir string) error
	}
	get := func(name string, n int64) func(cl client, dir string) error {
		return func(cl client, dir string) error { _, err := cl.get(dir+"/"+name, 0, n); return err }
	}
	put := func(name string) func(cl client, dir string) error {
		return func(cl client, dir string) error { return cl.put(dir+"/"+name, smallSize) }
	}
	remove := func(cl client, dir string) error { return cl.remove(dir + "/" + file) }
	var operations []operation
	for _, warm := range []bool{false, true} {
		operations = append(operations,
			operation{"PUT new", warm, put("new")}, operation{"PUT over", warm, put(file)}, operation{"GET", warm, get(file, -1)},
			operation{"GET 64 KiB", warm, get(big, 64<<10)}, operation{"DELETE", warm, remove},
			operation{"MKCOL", warm, func(cl client, dir string) error { return cl.mkdir(dir + "/sub") }},
			operation{"PROPFIND", warm, func(cl client, dir string) error { _, err := cl.list(dir); return err }},
		)
	}
	var events []event
	for _, o := range operations {
		name := o.name + ", cold"
		if o.warm {
			name = o.name + ", warm"
		}
		events = append(events, event{name, []metric{roundTrips}, nil})
	}
	c.compare(b, fmt.Sprintf("waits of %v", farAway), []*party{p, c.directAt(forgets)}, events, func(p *party, take func(int, float64, func() error) error) error {
		c.link.Delay(0) // what is prepared costs nothing
		var dirs []string
		for range operations {
			dir := c.fresh("trip") + "/folder"
			if err := c.lay(forgets+"/"+dir, 3); err != nil {
				return err
			}
			if err := c.direct.clients[0].put(forgets+"/"+dir+"/"+big, 256<<10); err != nil {
				return err
			}
			dirs = append(dirs, p.root+dir)
		}
		c.link.Delay(farAway / 2)
		if p.name == ours {
			time.Sleep(memoryAge + memoryAge/10)
		}
		for i, o := range operations {
			dir := dirs[i]
			if p.name == ours && o.warm {
				if _, err := p.clients[0].list(dir); err != nil {
					return err
				}
			}
			if err := take(i, 1, func() error { return o.do(p.clients[0], dir) }); err != nil {
				return fmt.Errorf("%s: %w", o.name, err)
			}
		}
		return nil
	})
}
