package awskmstest

import (
	"encoding/json"
	"errors"
	"time"
)

// maxLog is how many requests the log has; older ones are removed.
const maxLog = 4096

// Request is a request that KMS answered, as its log has it. One that the client was not authenticated for, or that was
// never answered (Hang, Reset), has no entry.
type Request struct {
	ID        string // as in the header X-Amzn-Requestid of the answer
	Operation string
	Region    string
	Time      time.Time
	KeyID     string // as in the request: an id, an alias or an ARN
	ARN       string // of the key; "" if the request was refused
	Algorithm string // of a signature
	Error     string // error code; "" if it was performed
	Fault     Fault  // how the answer was changed
}

// Log returns the newest requests, the oldest first.
func (s *Server) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request{}, s.log...)
}

func (s *Server) record(c call, answer map[string]any, err error) {
	if c.region == "" {
		return // the client was not authenticated
	}
	var p parameters
	_ = json.Unmarshal(c.body, &p) // which was answered with an error
	r := Request{ID: c.id, Operation: c.operation, Region: c.region, Time: time.Now().UTC(), KeyID: p.KeyID, Algorithm: p.SigningAlgorithm, Fault: c.fault}
	r.ARN, _ = answer["KeyId"].(string)
	if err != nil {
		r.Error = "KMSInternalException"
		if refused, ok := errors.AsType[*Error](err); ok {
			r.Error = refused.Code
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log = append(s.log, r); len(s.log) > maxLog {
		s.log = s.log[1:]
	}
}

// CloudTrail returns the log as CloudTrail delivers it, without gzip ("CloudTrail record contents", AWS CloudTrail user guide).
func (s *Server) CloudTrail() []byte {
	records := []map[string]any{}
	for _, r := range s.Log() {
		event := map[string]any{
			"eventVersion": "1.08", "eventTime": r.Time.Format(time.RFC3339), "eventSource": "kms.amazonaws.com", "eventName": r.Operation,
			"awsRegion": r.Region, "sourceIPAddress": "127.0.0.1", "userAgent": "awskmstest", "requestID": r.ID, "eventID": requestID(), "readOnly": true,
			"eventType": "AwsApiCall", "managementEvent": true, "recipientAccountId": s.config.Account, "eventCategory": "Management",
			"userIdentity":      map[string]any{"type": "IAMUser", "arn": "arn:aws:iam::" + s.config.Account + ":user/test", "accountId": s.config.Account},
			"requestParameters": map[string]any{"keyId": r.KeyID, "messageType": "DIGEST", "signingAlgorithm": r.Algorithm}, "responseElements": nil,
		}
		if r.ARN != "" {
			event["resources"] = []map[string]any{{"accountId": s.config.Account, "type": "AWS::KMS::Key", "ARN": r.ARN}}
		}
		if r.Error != "" {
			event["errorCode"], event["errorMessage"] = r.Error, "refused by the double"
		}
		records = append(records, event)
	}
	out, _ := json.Marshal(map[string]any{"Records": records}) // strings only
	return out
}
