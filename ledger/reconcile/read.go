package reconcile

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"hsmsign/fault"
)

const (
	maxFile   = 4 << 30 // bytes of a file, after decompression
	maxRecord = 4 << 20 // bytes of a record: CloudTrail and Cloud Logging have at most 256 KiB
	maxText   = 1024    // bytes of a text that is kept
)

// Read adds a file: JSON, or the same compressed with gzip. The error wraps ErrLog, or is of kind too large. What was read
// before it remains.
func (l *Log) Read(ctx context.Context, name string, file io.Reader) error {
	buffered := bufio.NewReader(file)
	var in io.Reader = buffered
	if magic, _ := buffered.Peek(2); string(magic) == "\x1f\x8b" {
		unzipped, err := gzip.NewReader(buffered)
		if err != nil {
			return unreadable(name, err)
		}
		in = unzipped
	}
	limited := &limitedReader{ctx: ctx, in: in}
	text := bufio.NewReader(limited)
	inArray, err := beginsArray(text)
	if err == nil {
		read := map[Cloud]func(*Log, *json.Decoder, bool, func([]byte) error) error{AWS: (*Log).readCloudTrail, GCP: (*Log).readAuditLog}[l.Cloud]
		err = read(l, json.NewDecoder(text), inArray, func(raw []byte) error {
			limited.record = 0
			return l.parse(name, raw)
		})
	}
	switch {
	case err == nil:
		return nil
	case fault.KindOf(err) != fault.Internal:
		return fmt.Errorf("%s: %w", name, err)
	}
	return unreadable(name, err)
}

// beginsArray returns whether a JSON text is an array, and skips the white space before it.
func beginsArray(text *bufio.Reader) (bool, error) {
	for {
		first, err := text.Peek(1)
		switch {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return false, err
		case !strings.Contains(" \t\r\n", string(first)):
			return first[0] == '[', nil
		}
		_, _ = text.Discard(1) // which was read
	}
}

func unreadable(name string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it is cut off")
	}
	return fault.Errorf("%s: %w: %w", name, ErrLog, err).Fix("give the files as the cloud delivers them: CloudTrail's .json.gz, or log entries of Cloud Logging as JSON")
}

// limitedReader limits the bytes of a file, and those from one record to the next.
type limitedReader struct {
	ctx          context.Context
	in           io.Reader
	file, record int64
}

func (r *limitedReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, fault.Interrupted.Errorf("%w", err)
	}
	n, err := r.in.Read(p)
	r.file, r.record = r.file+int64(n), r.record+int64(n)
	if r.file > maxFile || r.record > maxRecord {
		return 0, fault.TooLarge.Errorf("it has more than %d bytes, or a record of more than %d", int64(maxFile), int64(maxRecord))
	}
	return n, err
}

// parse reads one record.
func (l *Log) parse(name string, raw []byte) error {
	parse := map[Cloud]func([]byte) (time.Time, *Call, string, error){AWS: parseCloudTrail, GCP: parseAuditLog}[l.Cloud]
	at, call, id, err := parse(raw)
	if err != nil {
		return fmt.Errorf("record %d: %w", l.Records+1, err)
	}
	l.covers(at)
	if call == nil {
		return nil
	}
	call.File, call.Time = name, at
	for _, text := range []*string{&call.ID, &call.Key, &call.KeyID, &call.Reason, &call.Principal, &call.UserAgent, &call.Error} {
		*text = fault.Clip(*text, maxText)
	}
	return l.add(*call, id)
}

// readCloudTrail reads {"Records": [...]} ("CloudTrail log file examples", AWS CloudTrail user guide).
func (l *Log) readCloudTrail(decoder *json.Decoder, _ bool, each func([]byte) error) error {
	if err := delimiter(decoder, '{'); err != nil {
		return err
	}
	found := false
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		if name == "Records" {
			found = true
			err = array(decoder, each)
		} else {
			var other json.RawMessage
			err = decoder.Decode(&other)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return errors.New("it has no Records")
	}
	if err := delimiter(decoder, '}'); err != nil {
		return err
	}
	return end(decoder)
}

// readAuditLog reads log entries: an array of them, or one after the other.
func (l *Log) readAuditLog(decoder *json.Decoder, inArray bool, each func([]byte) error) error {
	if inArray {
		if err := array(decoder, each); err != nil {
			return err
		}
		return end(decoder)
	}
	for {
		var raw json.RawMessage
		err := decoder.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = each(raw)
		}
		if err != nil {
			return err
		}
	}
}

// array reads an array.
func array(decoder *json.Decoder, each func([]byte) error) error {
	if err := delimiter(decoder, '['); err != nil {
		return err
	}
	for decoder.More() {
		var raw json.RawMessage
		if err := decoder.Decode(&raw); err != nil {
			return err
		}
		if err := each(raw); err != nil {
			return err
		}
	}
	return delimiter(decoder, ']')
}

func delimiter(decoder *json.Decoder, want json.Delim) error {
	token, err := decoder.Token()
	if err == nil && token != want {
		err = fmt.Errorf("found %v, want %v", token, want)
	}
	return err
}

// end wants that nothing follows.
func end(decoder *json.Decoder) error {
	_, err := decoder.Token()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case fault.KindOf(err) == fault.Internal || err == nil:
		return errors.New("something follows the records")
	}
	return err
}

// parseCloudTrail reads an event. The call is nil if it is not a request to sign.
func parseCloudTrail(raw []byte) (time.Time, *Call, string, error) {
	var event struct {
		Time   time.Time `json:"eventTime"`
		Source string    `json:"eventSource"`
		Name   string    `json:"eventName"`
	}
	if err := json.Unmarshal(raw, &event); err != nil || event.Time.IsZero() {
		return event.Time, nil, "", errors.New("it is not an event of CloudTrail")
	}
	at := event.Time.UTC()
	if event.Name != "Sign" || !strings.HasPrefix(event.Source, "kms.") {
		return at, nil, "", nil
	}
	var sign struct {
		RequestID string `json:"requestID"`
		EventID   string `json:"eventID"`
		ErrorCode string `json:"errorCode"`
		UserAgent string `json:"userAgent"`
		Identity  struct {
			ARN         string `json:"arn"`
			PrincipalID string `json:"principalId"`
			InvokedBy   string `json:"invokedBy"`
		} `json:"userIdentity"`
		Parameters struct {
			KeyID string `json:"keyId"`
		} `json:"requestParameters"`
		Resources []struct {
			ARN string `json:"ARN"`
		} `json:"resources"`
	}
	if err := json.Unmarshal(raw, &sign); err != nil {
		return at, nil, "", errors.New("it is not an event of kms:Sign")
	}
	call := &Call{ID: sign.RequestID, KeyID: sign.Parameters.KeyID, UserAgent: sign.UserAgent, Error: sign.ErrorCode}
	call.Principal = cmp.Or(sign.Identity.ARN, sign.Identity.PrincipalID, sign.Identity.InvokedBy)
	for _, r := range sign.Resources {
		if strings.Contains(r.ARN, ":key/") {
			call.Key = r.ARN
		}
	}
	return at, call, cmp.Or(sign.RequestID, sign.EventID), nil
}

// parseAuditLog reads a LogEntry with an AuditLog. The call is nil if it is not a request to sign.
func parseAuditLog(raw []byte) (time.Time, *Call, string, error) {
	var entry struct {
		InsertID  string    `json:"insertId"`
		Timestamp time.Time `json:"timestamp"`
		Payload   struct {
			Service  string `json:"serviceName"`
			Method   string `json:"methodName"`
			Resource string `json:"resourceName"`
			Status   struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
			} `json:"status"`
			Authentication struct {
				Email   string `json:"principalEmail"`
				Subject string `json:"principalSubject"`
			} `json:"authenticationInfo"`
			Metadata struct {
				UserAgent  string `json:"callerSuppliedUserAgent"`
				Attributes struct {
					Reason string `json:"reason"`
				} `json:"requestAttributes"`
			} `json:"requestMetadata"`
		} `json:"protoPayload"`
	}
	if err := json.Unmarshal(raw, &entry); err != nil || entry.Timestamp.IsZero() {
		return entry.Timestamp, nil, "", errors.New("it is not a log entry of Cloud Logging")
	}
	at, p := entry.Timestamp.UTC(), entry.Payload
	if p.Service != "cloudkms.googleapis.com" || p.Method[strings.LastIndexByte(p.Method, '.')+1:] != "AsymmetricSign" {
		return at, nil, "", nil
	}
	call := &Call{ID: entry.InsertID, KeyID: p.Resource, Reason: p.Metadata.Attributes.Reason, UserAgent: p.Metadata.UserAgent}
	call.Principal = cmp.Or(p.Authentication.Email, p.Authentication.Subject)
	if p.Status.Code != 0 {
		call.Error = cmp.Or(p.Status.Message, fmt.Sprintf("code %d", p.Status.Code))
	} else {
		call.Key = p.Resource
	}
	id := entry.InsertID
	if id != "" { // it is unique together with the time ("LogEntry", Cloud Logging reference)
		id += at.Format(time.RFC3339Nano)
	}
	return at, call, id, nil
}
