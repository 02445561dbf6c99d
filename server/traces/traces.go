// Package traces sends what a request spent its time on to an OpenTelemetry collector (OTLP over HTTP).
//
//	tracer, err := traces.New(traces.Config{URL: "https://collector.example:4318", Log: log})
//	defer tracer.Close()
//	ctx, span := tracer.Request(ctx, began, r.Header.Get("traceparent"))
//	inner, end := tracer.Stage(ctx, "sign")
//	end(err)
//	span.End(traces.Outcome{Name: "POST /v1/requests", Status: 200})
//
// A span contains names of routes, stages, callers, kinds and rules, and ids of requests: no text of a request or of an error.
// Each request is a new trace. A trace of the caller is linked, and does not decide what is recorded.
//
// The queue is bounded: spans that do not fit are dropped, and no request waits. A Tracer is safe for concurrent use; a nil
// Tracer does nothing.
package traces

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"hsmsign/fault"
)

const (
	queueSize  = 2048 // spans
	batchSize  = 256
	batchEvery = 5 * time.Second
	exportWait = 10 * time.Second // for one batch
	closeWait  = 5 * time.Second
	logEvery   = time.Minute
)

// Config says where the collector is.
type Config struct {
	URL     string       // http or https; without a path it is /v1/traces; empty: there is no collector
	Replica string       // name of this process
	Version string       // of the program
	Log     *slog.Logger // gets one line a minute while the collector does not accept spans
}

// Tracer sends spans.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   trace.Tracer
}

// Check returns an error of kind usage unless a URL can be that of a collector.
func Check(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		// The URL is not repeated: it may contain a password.
		return fault.Usage.Errorf("traces: not the URL of a collector").
			Fix("write https://HOST:4318, without user, query or fragment")
	}
	return nil
}

// New starts the goroutine that sends spans; Close ends it. It connects to nothing. Without a URL the Tracer is nil. The error is
// of kind usage. Proxies are those of the environment (HTTPS_PROXY, NO_PROXY).
func New(cfg Config) (*Tracer, error) {
	if cfg.URL == "" {
		return nil, nil
	}
	if err := Check(cfg.URL); err != nil {
		return nil, err
	}
	u, _ := url.Parse(cfg.URL) // Check has parsed it
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	exporter, err := otlptrace.New(context.Background(), &client{url: u.String(), http: newHTTP()})
	if err != nil {
		return nil, err
	}
	provider := sdk.NewTracerProvider(
		sdk.WithSampler(sdk.AlwaysSample()),
		sdk.WithRawSpanLimits(sdk.SpanLimits{AttributeValueLengthLimit: 256, AttributeCountLimit: 16, EventCountLimit: 0, LinkCountLimit: 1, AttributePerLinkCountLimit: 0, AttributePerEventCountLimit: 0}),
		sdk.WithResource(resource.NewSchemaless(attribute.String("service.name", "hsmsign"), attribute.String("service.version", cfg.Version), attribute.String("service.instance.id", cfg.Replica))),
		sdk.WithBatcher(&logged{SpanExporter: exporter, log: cfg.Log}, sdk.WithMaxQueueSize(queueSize), sdk.WithMaxExportBatchSize(batchSize), sdk.WithBatchTimeout(batchEvery), sdk.WithExportTimeout(exportWait)),
	)
	return &Tracer{provider: provider, tracer: provider.Tracer("hsmsign/server")}, nil
}

// logged logs the failures of an exporter, at most one a minute.
type logged struct {
	sdk.SpanExporter
	log *slog.Logger

	mu   sync.Mutex
	last time.Time
	lost int // spans since then
}

// ExportSpans implements sdk.SpanExporter. The error ends here: the SDK would print it.
func (l *logged) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := l.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost += len(spans)
	if now := time.Now(); l.last.IsZero() || now.Sub(l.last) >= logEvery {
		l.log.Warn("traces were not sent", "error", fault.Clip(err.Error(), 256), "spans", l.lost)
		l.last, l.lost = now, 0
	}
	return nil
}

// Close sends the spans that wait, and ends the goroutine. It waits at most 5 seconds.
func (t *Tracer) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	_ = t.provider.Shutdown(ctx) // the failure of an export is logged
}

// Span is one request.
type Span struct{ span trace.Span }

// Request begins the span of a request that began before. traceparent is that header of the caller (W3C Trace Context), from which
// only the ids are used.
func (t *Tracer) Request(ctx context.Context, began time.Time, traceparent string) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	options := []trace.SpanStartOption{trace.WithNewRoot(), trace.WithSpanKind(trace.SpanKindServer), trace.WithTimestamp(began)}
	carrier := propagation.MapCarrier{"traceparent": traceparent}
	if theirs := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(context.Background(), carrier)); theirs.IsValid() {
		options = append(options, trace.WithLinks(trace.Link{SpanContext: theirs}))
	}
	ctx, span := t.tracer.Start(ctx, "request", options...)
	return ctx, &Span{span}
}

// Outcome is what a span says of a request. Empty texts are left out.
type Outcome struct {
	Name     string // of the span: the pattern of the route
	Method   string
	Status   int
	Kind     fault.Kind
	Rule     string
	Caller   string
	Channel  string
	ID       string // of the request in the log
	Recorded string // id of the request in the ledger
}

// End ends the span of a request.
func (s *Span) End(o Outcome) {
	if s == nil {
		return
	}
	s.span.SetName(o.Name)
	s.span.SetAttributes(attribute.Int("http.response.status_code", o.Status))
	for _, a := range []struct{ name, value string }{
		{"http.route", o.Name}, {"http.request.method", o.Method}, {"hsmsign.rule", o.Rule}, {"hsmsign.caller", o.Caller}, {"hsmsign.channel", o.Channel},
		{"hsmsign.id", o.ID}, {"hsmsign.request", o.Recorded},
	} {
		if a.value != "" {
			s.span.SetAttributes(attribute.String(a.name, a.value))
		}
	}
	end(s.span, o.Kind, o.Status >= http.StatusInternalServerError)
}

// Stage begins the span of a part of a request.
func (t *Tracer) Stage(ctx context.Context, name string) (context.Context, func(err error)) {
	if t == nil || !trace.SpanContextFromContext(ctx).IsValid() {
		return ctx, func(error) {}
	}
	ctx, span := t.tracer.Start(ctx, name)
	return ctx, func(err error) { end(span, fault.KindOf(err), err != nil) }
}

// end ends a span. The text of the error is not sent.
func end(span trace.Span, kind fault.Kind, failed bool) {
	if kind != fault.None {
		span.SetAttributes(attribute.String("hsmsign.kind", kind.String()))
	}
	if failed {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}
