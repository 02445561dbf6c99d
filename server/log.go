package server

import (
	"log/slog"
	"net/http"
	"regexp"
	"sync"
	"time"

	"hsmsign/fault"
)

// maxLogged is the length of a text in the log.
const maxLogged = 512

// tokens matches tokens of callers, also damaged ones.
var tokens = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?i)hsmsign_[a-z0-9_-]+`) })

// logged returns a text for the log: one line of a bounded length, without tokens. An error may repeat what a caller sent.
func logged(text string) string {
	return fault.Clip(tokens().ReplaceAllString(text, "hsmsign_(removed)"), maxLogged)
}

// method returns the method of a request for the log and for traces. One that HTTP does not define is "_OTHER", as OpenTelemetry has it: a
// client that is confused can send anything there, also a secret.
func method(r *http.Request) string {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodConnect, http.MethodOptions, http.MethodTrace:
		return r.Method
	}
	return "_OTHER"
}

// log writes one record about the request.
func (c *call) log() {
	kind := fault.KindOf(c.err)
	if c.who.Name == "" && c.err == nil {
		return // a health check
	}
	if c.who.Name == "" && !c.health.logs.AllowN(c.begun, 1) {
		c.metrics.silent.Inc()
		return // strangers do not fill the log; the metrics count them
	}
	attributes := []slog.Attr{
		slog.String("id", c.id), slog.String("caller", c.who.Name), slog.String("credential", c.cred.Name), slog.String("channel", c.conn.Kind),
		slog.String("method", method(c.r)), slog.String("route", c.pattern), slog.Int("status", c.written.status),
		slog.Int64("bytes", c.written.bytes), slog.Float64("seconds", c.cfg.Now().Sub(c.begun).Round(time.Microsecond).Seconds()),
	}
	if c.conn.Remote.IsValid() {
		attributes = append(attributes, slog.String("remote", c.conn.Remote.String()))
	}
	if csr := c.csr.String(); csr != "" {
		attributes = append(attributes, slog.String("csr_sha256", csr))
	}
	if c.request != "" {
		attributes = append(attributes, slog.String("request", c.request))
	}
	level := slog.LevelInfo
	if c.err != nil {
		level = slog.LevelWarn
		if kind == fault.Internal || kind == fault.Vendor || kind == fault.Auth || kind == fault.Defects {
			level = slog.LevelError
		}
		attributes = append(attributes, slog.String("kind", kind.String()), slog.String("rule", fault.Rule(c.err)), slog.String("error", logged(c.err.Error())))
	}
	if c.reason != nil {
		attributes = append(attributes, slog.String("reason", logged(c.reason.Error())))
	}
	c.cfg.Log.LogAttrs(c.r.Context(), level, "request", attributes...)
}
