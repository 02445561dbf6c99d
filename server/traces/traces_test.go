package traces

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/trace"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/server/traces/tracestest"

	"github.com/google/go-cmp/cmp"
)

// output is a log. It is safe for concurrent use.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(data []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(data)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func start(t *testing.T, url string) (*Tracer, *output) {
	t.Helper()
	var out output
	tracer := testkit.Value(New(Config{URL: url, Replica: "host:1", Version: "v1", Log: slog.New(slog.NewJSONHandler(&out, nil))}))(t)
	t.Cleanup(tracer.Close)
	return tracer, &out
}

const theirTrace = "0af7651916cd43dd8448eb211c80319c"

// A request is a new trace with its stages, whatever the caller sends.
func TestRequest(t *testing.T) {
	for _, tt := range []struct{ name, parent, link string }{
		{"none", "", ""},
		{"sampled", "00-" + theirTrace + "-b7ad6b7169203331-01", theirTrace + " "},
		{"not sampled", "00-" + theirTrace + "-b7ad6b7169203331-00", theirTrace + " "},
		{"damaged", "00-" + theirTrace + "-b7ad6b7169203331", ""},
		{"hostile", "00-\x1b[31m" + strings.Repeat("a", 9000), ""},
	} {
		c := tracestest.Start()
		defer c.Stop()
		tracer, out := start(t, c.URL)
		began := time.Now().Add(-time.Second)
		ctx, span := tracer.Request(t.Context(), began, tt.parent)
		inner, end := tracer.Stage(ctx, "sign")
		_, endInner := tracer.Stage(inner, "open")
		endInner(nil)
		end(fault.Unavailable.Errorf("the customer %q", "secret customer"))
		span.End(Outcome{Name: "POST /v1/requests", Method: "POST", Status: 503, Kind: fault.Unavailable, Rule: "server.queue", Caller: "backend", Channel: "tls", ID: "ab", Recorded: "cd"})
		tracer.Close()
		spans := c.Spans()
		if len(spans) != 3 {
			t.Fatalf("%s: %d spans: %s", tt.name, len(spans), out)
		}
		open, sign, root := spans[0], spans[1], spans[2]
		switch {
		case root.Name != "POST /v1/requests" || root.Parent != "" || root.Trace == theirTrace || !root.Server || !root.Error || root.Message != "":
			t.Errorf("%s: root %+v", tt.name, root)
		case sign.Name != "sign" || sign.Parent != root.ID || sign.Trace != root.Trace || !sign.Error || sign.Message != "" || sign.Attributes["hsmsign.kind"] != "unavailable":
			t.Errorf("%s: stage %+v", tt.name, sign)
		case open.Parent != sign.ID || open.Error || len(open.Attributes) != 0:
			t.Errorf("%s: inner stage %+v", tt.name, open)
		case root.Begun.UnixNano() != began.UnixNano() || root.Ended.Before(root.Begun):
			t.Errorf("%s: from %v to %v", tt.name, root.Begun, root.Ended)
		}
		if got := strings.Join(root.Links, ","); got != tt.link {
			t.Errorf("%s: links %q", tt.name, got)
		}
		want := map[string]string{
			"http.route": "POST /v1/requests", "http.request.method": "POST", "http.response.status_code": "503", "hsmsign.kind": "unavailable", "hsmsign.rule": "server.queue",
			"hsmsign.caller": "backend", "hsmsign.channel": "tls", "hsmsign.id": "ab", "hsmsign.request": "cd",
		}
		if diff := cmp.Diff(want, root.Attributes); diff != "" {
			t.Errorf("%s: attributes (-want +got):\n%s", tt.name, diff)
		}
		if diff := cmp.Diff(map[string]string{"service.name": "hsmsign", "service.version": "v1", "service.instance.id": "host:1"}, root.Resource); diff != "" {
			t.Errorf("%s: resource (-want +got):\n%s", tt.name, diff)
		}
		if raw := c.Raw(); strings.Contains(raw, "customer") || root.Events+sign.Events != 0 {
			t.Errorf("%s: the text of an error was sent", tt.name)
		}
	}
}

// A success is not an error, and an error of the caller is none of the server.
func TestStatus(t *testing.T) {
	c := tracestest.Start()
	defer c.Stop()
	tracer, _ := start(t, c.URL)
	for status, kind := range map[int]fault.Kind{200: fault.None, 403: fault.Forbidden, 429: fault.Limited} {
		_, span := tracer.Request(t.Context(), time.Now(), "")
		span.End(Outcome{Name: "x", Status: status, Kind: kind})
	}
	tracer.Close()
	for _, s := range c.Spans() {
		if s.Error || (s.Attributes["hsmsign.kind"] == "") != (s.Attributes["http.response.status_code"] == "200") {
			t.Errorf("%+v", s)
		}
	}
	if len(c.Spans()) != 3 {
		t.Errorf("%d spans", len(c.Spans()))
	}
}

// Without a URL there is no Tracer, and nothing fails. A stage outside of a request is not traced.
func TestNone(t *testing.T) {
	none := testkit.Value(New(Config{}))(t)
	ctx, span := none.Request(t.Context(), time.Now(), "")
	inner, end := none.Stage(ctx, "sign")
	end(nil)
	span.End(Outcome{})
	none.Close()
	if none != nil || ctx != t.Context() || inner != ctx {
		t.Error("without a URL there is a Tracer")
	}
	c := tracestest.Start()
	defer c.Stop()
	tracer, _ := start(t, c.URL)
	_, end = tracer.Stage(t.Context(), "probe")
	end(nil)
	tracer.Close()
	if c.Requests() != 0 {
		t.Error("a stage without a request was traced")
	}
}

func TestCheck(t *testing.T) {
	for _, url := range []string{"http://127.0.0.1:4318", "https://collector.example", "https://collector.example/otlp/v1/traces", "http://[::1]:4318/"} {
		testkit.OK(t, Check(url))
	}
	for _, url := range []string{"collector:4318", "grpc://collector:4317", "https://", "https://ada:hunter2@collector", "https://collector?key=hunter2", "https://collector#x", "http://\x7f"} {
		err := Check(url)
		if fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", url, err)
		}
		if _, err := New(Config{URL: url}); fault.KindOf(err) != fault.Usage {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// Failures of the collector are one line a minute, spans are dropped and not kept, and Close ends in time.
func TestFailures(t *testing.T) {
	c := tracestest.Start()
	defer c.Stop()
	for _, status := range []int{http.StatusServiceUnavailable, http.StatusTemporaryRedirect, http.StatusUnauthorized} {
		c.Answer(status)
		tracer, out := start(t, c.URL)
		before := c.Requests()
		for range queueSize + 4*batchSize {
			_, span := tracer.Request(t.Context(), time.Now(), "")
			span.End(Outcome{Name: "x"})
		}
		tracer.Close()
		if got := c.Requests() - before; got < 2 || got > queueSize/batchSize+5 {
			t.Errorf("%d: %d requests", status, got)
		}
		log := out.String()
		if strings.Count(log, "\n") != 1 || !strings.Contains(log, "traces were not sent") || !strings.Contains(log, "not now") || len(log) > 500 {
			t.Errorf("%d: log %s", status, log)
		}
	}
}

// A collector that does not answer delays neither requests nor the end.
func TestHangs(t *testing.T) {
	block := make(chan struct{})
	stopped := testkit.Value(listen(t, func(http.ResponseWriter, *http.Request) { <-block }))(t)
	defer close(block)
	tracer, _ := start(t, stopped)
	begun := time.Now()
	for range 2 * queueSize {
		_, span := tracer.Request(t.Context(), time.Now(), "")
		span.End(Outcome{Name: "x"})
	}
	if took := time.Since(begun); took > 2*time.Second {
		t.Errorf("spans were waited for: %v", took)
	}
	begun = time.Now()
	tracer.Close()
	if took := time.Since(begun); took > closeWait+time.Second {
		t.Errorf("Close took %v", took)
	}
}

func listen(t *testing.T, do http.HandlerFunc) (string, error) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: do, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(l) }() // it ends with Close
	t.Cleanup(func() { _ = server.Close() })
	return "http://" + l.Addr().String(), nil
}

// HTTPS_PROXY is honored, but not for loopback addresses. net/http reads the environment once a process.
func TestProxy(t *testing.T) {
	if os.Getenv("HSMSIGN_TEST_PROXY") == "" {
		reexec(t, "HSMSIGN_TEST_PROXY=1", "HTTP_PROXY=http://127.0.0.1:1", "HTTPS_PROXY=http://127.0.0.1:1")
		return
	}
	transport, ok := newHTTP().Transport.(*http.Transport)
	if !ok {
		t.Fatal("another transport")
	}
	for url, proxied := range map[string]bool{"https://collector.example/": true, "http://127.0.0.1:4318/": false, "http://localhost:4318": false} {
		r := testkit.Value(http.NewRequestWithContext(t.Context(), http.MethodPost, url, nil))(t)
		proxy, err := transport.Proxy(r)
		if err != nil || (proxy != nil) != proxied {
			t.Errorf("%s: proxy %v, %v", url, proxy, err)
		}
	}
}

// reexec runs the test again in a process with further variables.
func reexec(t *testing.T, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$") // #nosec G204 -- this test
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// refusing is an exporter that fails.
type refusing struct{ sdk.SpanExporter }

func (refusing) ExportSpans(context.Context, []sdk.ReadOnlySpan) error { return errors.New("refused") }

// The SDK does not see failures: it would print them.
func TestFailureEnds(t *testing.T) {
	var out output
	l := &logged{SpanExporter: refusing{}, log: slog.New(slog.NewJSONHandler(&out, nil))}
	for range 3 {
		testkit.OK(t, l.ExportSpans(t.Context(), make([]sdk.ReadOnlySpan, 7)))
	}
	if l.lost != 14 || !strings.Contains(out.String(), `"spans":7`) {
		t.Errorf("%d spans after %s", l.lost, out.String())
	}
	l.last = l.last.Add(-logEvery)
	testkit.OK(t, l.ExportSpans(t.Context(), make([]sdk.ReadOnlySpan, 7)))
	if !strings.Contains(out.String(), `"spans":21`) {
		t.Errorf("after a minute: %s", out.String())
	}
}

// A request is a new trace, also in a context that has one.
func TestNewRoot(t *testing.T) {
	c := tracestest.Start()
	defer c.Stop()
	tracer, _ := start(t, c.URL)
	ctx, first := tracer.Request(t.Context(), time.Now(), "")
	_, second := tracer.Request(ctx, time.Now(), "")
	second.End(Outcome{Name: "x", Status: 200})
	first.End(Outcome{Name: "x", Status: 200})
	tracer.Close()
	if spans := c.Spans(); len(spans) != 2 || spans[0].Trace == spans[1].Trace || spans[0].Parent != "" {
		t.Errorf("%+v", spans)
	}
}
