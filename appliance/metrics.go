package appliance

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"cellgate/gateway"
)

// metrics is what the box counts, in a registry of its own so that two boxes fit into one process.
type metrics struct {
	registry *prometheus.Registry
	inFlight prometheus.Gauge
	requests *prometheus.CounterVec
	bytes    *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "cellgate_requests_in_flight", Help: "Requests being answered."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cellgate_requests_total", Help: "Requests answered."},
			[]string{"door", "method", "status"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "cellgate_bytes_total", Help: "Bytes of request and response bodies."},
			[]string{"door", "direction"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "cellgate_request_seconds", Help: "Time to answer a request.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600}}, []string{"door", "method"}),
	}
	m.registry.MustRegister(m.inFlight, m.requests, m.bytes, m.seconds,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// watch adds the figures that are read when they are asked for.
func (m *metrics) watch(s *server) {
	gauge := func(name, help string, read func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
	}
	gauge("cellgate_connections", "Open client connections.", func() float64 { return float64(s.conns.count()) })
	gauge("cellgate_locks", "Locks that are held.", func() float64 { return float64(s.gateway.Stats().Locks) })
	gauge("cellgate_handles", "Open files and uploads.", func() float64 { return float64(s.gateway.Stats().Handles) })
	gauge("cellgate_staged_bytes", "Bytes of uploads that are not published yet.", func() float64 { return float64(s.gateway.Stats().Staged) })
	m.registry.MustRegister(coreFigures{s})
}

// coreFigures reads what the core counts and how the datasources are doing.
type coreFigures struct{ s *server }

var (
	_ prometheus.Collector = coreFigures{}

	operationsDesc = prometheus.NewDesc("cellgate_operations_total", "Operations begun in the core.", []string{"operation"}, nil)
	refusedDesc    = prometheus.NewDesc("cellgate_refused_total", "Operations refused by rights.", nil, nil)
	publishedDesc  = prometheus.NewDesc("cellgate_published_total", "Files published.", nil, nil)
	datasourceDesc = prometheus.NewDesc("cellgate_datasource_up", "Whether a datasource answers.", []string{"datasource"}, nil)
	stateDesc      = prometheus.NewDesc("cellgate_datasource_state", "1 for the state a datasource is in.", []string{"datasource", "state"}, nil)
	callsDesc      = prometheus.NewDesc("cellgate_datasource_calls", "Requests a backend across a network is answering.", []string{"datasource"}, nil)
	failuresDesc   = prometheus.NewDesc("cellgate_datasource_failures_total", "Requests that a backend across a network failed.", []string{"datasource"}, nil)
	latencyDesc    = prometheus.NewDesc("cellgate_datasource_seconds", "Time of requests that move no content.", []string{"datasource"}, nil)
	ageDesc        = prometheus.NewDesc("cellgate_datasource_age_seconds", "How old what is told about files may be.", []string{"datasource"}, nil)
	pendingDesc    = prometheus.NewDesc("cellgate_datasource_pending", "Files that wait to be written to the backend.", []string{"datasource"}, nil)
	freeDesc       = prometheus.NewDesc("cellgate_datasource_free_bytes", "Room that is left.", []string{"datasource"}, nil)
	storeDesc      = prometheus.NewDesc("cellgate_store_up", "Whether the store takes writes.", nil, nil)
)

// Describe is for prometheus.Collector.
func (c coreFigures) Describe(to chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, to) }

// Collect is for prometheus.Collector.
func (c coreFigures) Collect(to chan<- prometheus.Metric) {
	stats := c.s.gateway.Stats()
	for name, n := range stats.Operations {
		to <- prometheus.MustNewConstMetric(operationsDesc, prometheus.CounterValue, float64(n), name)
	}
	to <- prometheus.MustNewConstMetric(refusedDesc, prometheus.CounterValue, float64(stats.Refused))
	to <- prometheus.MustNewConstMetric(publishedDesc, prometheus.CounterValue, float64(stats.Published))
	for _, ds := range c.s.gateway.Datasources(c.s.life) {
		c.datasource(to, ds)
	}
	to <- prometheus.MustNewConstMetric(storeDesc, prometheus.GaugeValue, truth(c.s.db.Err() == nil))
}

// datasource tells how one is doing.
func (c coreFigures) datasource(to chan<- prometheus.Metric, ds gateway.DatasourceStatus) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, append([]string{ds.Name}, labels...)...)
	}
	gauge(datasourceDesc, truth(ds.State != gateway.Down))
	for _, state := range []string{gateway.Up, gateway.Degraded, gateway.Down} {
		gauge(stateDesc, truth(ds.State == state), state)
	}
	gauge(ageDesc, ds.Age.Seconds())
	gauge(pendingDesc, float64(len(ds.Pending)))
	if ds.Space.Free >= 0 {
		gauge(freeDesc, float64(ds.Space.Free))
	}
	if s := ds.Calls; s != nil {
		gauge(callsDesc, float64(s.Calls+s.Streams))
		to <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(s.Failures), ds.Name)
		buckets, sum := make(map[float64]uint64, len(s.Latency.Bounds)), uint64(0)
		for i, n := range s.Latency.Counts {
			if sum += n; i < len(s.Latency.Bounds) {
				buckets[s.Latency.Bounds[i].Seconds()] = sum
			}
		}
		to <- prometheus.MustNewConstHistogram(latencyDesc, sum, s.Latency.Sum.Seconds(), buckets, ds.Name)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// knownMethods keeps clients from making up label values.
var knownMethods = []string{"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK"}

func (m *metrics) request(door, method string, status int, in, out int64, took time.Duration) {
	if !slices.Contains(knownMethods, method) {
		method = "other"
	}
	m.requests.WithLabelValues(door, method, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(door, method).Observe(took.Seconds())
	m.bytes.WithLabelValues(door, "in").Add(float64(in))
	m.bytes.WithLabelValues(door, "out").Add(float64(out))
}

// handler serves the figures to the configured addresses and to who has the token, and is not there for anybody else.
func (m *metrics) handler(c *Metrics) http.Handler {
	serve := promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.allows(r) {
			http.NotFound(w, r)
			return
		}
		serve.ServeHTTP(w, r)
	})
}

func (c *Metrics) allows(r *http.Request) bool {
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && within(c.Allow, peer.Addr()) {
		return true
	}
	token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok || c.Token.IsZero() {
		return false
	}
	got, want := sha256.Sum256([]byte(token)), sha256.Sum256([]byte(c.Token.Reveal()))
	return subtle.ConstantTimeCompare(got[:], want[:]) == 1
}
