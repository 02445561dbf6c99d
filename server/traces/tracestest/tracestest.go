// Package tracestest is an OpenTelemetry collector for tests: it accepts OTLP over HTTP and keeps the spans. It is safe for
// concurrent use.
package tracestest

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// maxBody is the size limit of one request.
const maxBody = 16 << 20

// Collector is a running collector.
type Collector struct {
	URL string // without a path

	server *httptest.Server

	mu       sync.Mutex
	status   int // that it answers instead of 200; 0: 200
	requests int
	raw      []byte
	spans    []Span
}

// Span is a span that the collector got.
type Span struct {
	Name                 string
	Trace, ID, Parent    string // hex; Parent is empty for a root
	Links                []string
	Attributes, Resource map[string]string
	Error                bool
	Message              string // of the status
	Begun, Ended         time.Time
	Server               bool // the kind is "server"
	Events               int
}

// Start starts a collector.
func Start() *Collector {
	c := &Collector{}
	c.server = httptest.NewServer(http.HandlerFunc(c.serve))
	c.URL = c.server.URL
	return c
}

// Stop ends the collector.
func (c *Collector) Stop() { c.server.Close() }

// Answer makes the collector answer a status instead of accepting spans; 0: it accepts them.
func (c *Collector) Answer(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status
}

// Requests returns how many requests arrived, also those that were not accepted.
func (c *Collector) Requests() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.requests
}

// Spans returns the accepted spans in the order in which they ended.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Raw returns the bytes of all accepted requests.
func (c *Collector) Raw() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.raw)
}

func (c *Collector) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.requests++
	if c.status != 0 {
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(c.status)
		_, _ = io.WriteString(w, "not\nnow") // a test that needs it sees it missing
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, "not OTLP", http.StatusBadRequest)
		return
	}
	var data tracepb.TracesData
	if err := (proto.UnmarshalOptions{}).Unmarshal(body, &data); err != nil || len(data.ProtoReflect().GetUnknown()) > 0 {
		http.Error(w, "not protobuf", http.StatusBadRequest)
		return
	}
	c.raw = append(c.raw, body...)
	for _, resource := range data.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			for _, s := range scope.GetSpans() {
				c.spans = append(c.spans, newSpan(s, attributes(resource.GetResource().GetAttributes())))
			}
		}
	}
}

func newSpan(s *tracepb.Span, resource map[string]string) Span {
	span := Span{
		Name: s.GetName(), Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()),
		Attributes: attributes(s.GetAttributes()), Resource: resource, Error: s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR,
		Message: s.GetStatus().GetMessage(), Begun: time.Unix(0, int64(s.GetStartTimeUnixNano())), Ended: time.Unix(0, int64(s.GetEndTimeUnixNano())), // #nosec G115 -- before the year 2262
		Server: s.GetKind() == tracepb.Span_SPAN_KIND_SERVER, Events: len(s.GetEvents()),
	}
	for _, l := range s.GetLinks() {
		span.Links = append(span.Links, hex.EncodeToString(l.GetTraceId())+" "+l.GetTraceState())
	}
	return span
}

func attributes(list []*common.KeyValue) map[string]string {
	all := map[string]string{}
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			all[a.GetKey()] = v.StringValue
		case *common.AnyValue_IntValue:
			all[a.GetKey()] = fmt.Sprint(v.IntValue)
		default:
			all[a.GetKey()] = fmt.Sprintf("of type %T", v)
		}
	}
	return all
}
