package gcpkmstest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxLog is how many requests the log has; older ones are removed.
const maxLog = 4096

// Request is a request that the service handled, as its log has it.
type Request struct {
	ID        string // of the log entry
	Operation string
	Time      time.Time
	Name      string     // of the resource
	Reason    string     // the header X-Goog-Request-Reason
	Code      codes.Code // OK: it was performed, also if the answer was lost
}

// Log returns the newest requests, the oldest first.
func (s *Server) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request{}, s.log...)
}

func (s *Server) record(ctx context.Context, operation string, req any, err error) {
	r := Request{ID: strings.ToLower(rand.Text()), Operation: operation, Time: time.Now().UTC(), Code: status.Code(err)}
	if named, ok := req.(interface{ GetName() string }); ok {
		r.Name = named.GetName()
	}
	md, _ := metadata.FromIncomingContext(ctx)
	r.Reason = strings.Join(md.Get("x-goog-request-reason"), ", ")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log = append(s.log, r); len(s.log) > maxLog {
		s.log = s.log[1:]
	}
}

// AuditLog returns the log as Cloud Audit Logs have it, one LogEntry on each line ("AuditLog" and "LogEntry", Cloud Logging
// reference).
func (s *Server) AuditLog() []byte {
	var out bytes.Buffer
	for _, r := range s.Log() {
		request := map[string]any{"callerIp": "127.0.0.1", "callerSuppliedUserAgent": "gcpkmstest", "destinationAttributes": map[string]any{}}
		attributes := map[string]any{"time": r.Time.Format(time.RFC3339Nano), "auth": map[string]any{}}
		if r.Reason != "" {
			attributes["reason"] = r.Reason
		}
		request["requestAttributes"] = attributes
		payload := map[string]any{
			"@type": "type.googleapis.com/google.cloud.audit.AuditLog", "serviceName": "cloudkms.googleapis.com", "methodName": r.Operation, "resourceName": r.Name,
			"authenticationInfo": map[string]any{"principalEmail": "test@p.iam.gserviceaccount.com"}, "requestMetadata": request, "status": map[string]any{},
		}
		if r.Code != codes.OK {
			payload["status"] = map[string]any{"code": int(r.Code), "message": r.Code.String()}
		}
		line, _ := json.Marshal(map[string]any{ // strings and numbers only
			"protoPayload": payload, "insertId": r.ID, "timestamp": r.Time.Format(time.RFC3339Nano), "receiveTimestamp": r.Time.Format(time.RFC3339Nano),
			"severity": "INFO", "logName": "projects/p/logs/cloudaudit.googleapis.com%2Fdata_access",
			"resource": map[string]any{"type": "cloudkms_cryptokeyversion", "labels": map[string]any{}},
		})
		out.Write(append(line, '\n'))
	}
	return out.Bytes()
}
