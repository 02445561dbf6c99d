package traces

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"hsmsign/fault"
)

// maxAnswer is how much of a collector's answer is read.
const maxAnswer = 4 << 10

// client implements otlptrace.Client: OTLP over HTTP, in protobuf. That of OpenTelemetry imports gRPC, which a program without
// the cloud SDKs must not contain. A batch that is not accepted is lost: the next one follows soon.
type client struct {
	url  string
	http *http.Client
}

// newHTTP returns a client that follows no redirect: spans go to the configured host only.
func newHTTP() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: 10 * batchEvery, TLSHandshakeTimeout: exportWait, MaxResponseHeaderBytes: maxAnswer},
		Timeout:       exportWait,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Start implements otlptrace.Client.
func (*client) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *client) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// TracesData is encoded as ExportTraceServiceRequest is.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	answer, err := c.http.Do(r)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer))
	err = errors.Join(err, answer.Body.Close())
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("the collector answered %d: %s", answer.StatusCode, fault.Clip(string(bytes.ToValidUTF8(text, []byte("?"))), 128))
	}
	return err
}
