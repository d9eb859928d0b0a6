package bench

import (
	"fmt"
	"testing"
	"time"

	"cellgate/policy"
	"cellgate/store"
	"cellgate/store/storetest"
)

// BenchmarkDecide is one decision in a box with so many grants, in this process. The policy's own benchmarks have more.
func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("grants=%d", n), func(b *testing.B) {
			db := storetest.Open(b)
			engine := policy.New(policy.Config{DB: db})
			if err := engine.Load(b.Context()); err != nil {
				b.Fatal(err)
			}
			defer engine.Close()
			var grants []policy.Grant
			for i := range n {
				at := policy.Place{Datasource: "disk", Path: fmt.Sprintf("dir%d/sub%d", i%97, i%1009)}
				grants = append(grants, policy.Grant{To: policy.Principal(fmt.Sprintf("group:/g%d", i%1000)), On: at, Rights: policy.Read, Source: "bench"})
			}
			grants[0] = policy.Grant{To: "user:bench", On: policy.Place{Datasource: "disk", Path: "."}, Rights: policy.Read | policy.Write, Source: "bench"}
			if err := db.Update(b.Context(), func(tx *store.Tx) error {
				_, err := engine.ReplaceGrants(tx, "bench", grants)
				return err
			}); err != nil {
				b.Fatal(err)
			}
			view := engine.Snapshot().Bind(&policy.Subject{ID: 1, Login: "bench", Principals: policy.PrincipalsOf("bench", "/staff", policy.Standard, nil)}, nil)
			env, at := &policy.Env{Time: time.Now()}, policy.Place{Datasource: "disk", Path: "dir5/sub3/a/b/c/file.txt"}
			b.ReportAllocs()
			for b.Loop() {
				if !view.Decide(policy.Modify, at, env).Allowed {
					b.Fatal("refused")
				}
			}
			bench.report.set(fmt.Sprintf("decision, %d grants", n), "ns", float64(b.Elapsed().Nanoseconds())/float64(b.N))
		})
	}
}
