// Package reconcile compares a cloud's own log of signatures with a ledger: every signature must have an entry, and every
// issued request a signature.
//
//	log := reconcile.NewLog(reconcile.AWS)
//	err := log.Read(ctx, "trail.json.gz", file)
//	err = log.Select(ref) // only the vendor's key
//	from, to := log.Window()
//	signings, err := ledger.Signings(ctx, from, to)
//	report := log.Compare(signings, nil)
//
// AWS CloudTrail names each request by an id, which KMS chooses and the ledger records. Cloud Audit Logs of GCP have the
// reason that the client sent, which is the id of the request in the ledger. A client can send any reason, so a request
// explains no more signatures than its entries say, and only at its time.
//
// A probe of the key, which is no request, is an entry with the RequestIds, or the reason, of its signatures.
//
// A signature whose answer was lost has no id in the ledger. It is explained by time: by an intent without an outcome, or by
// an attempt that got no answer, each of which explains one signature.
//
// Logs are read record by record, with bounded memory. A Log is not safe for concurrent use.
package reconcile

import (
	"time"

	"hsmsign/fault"
	"hsmsign/ledger/record"
)

// Cloud is whose log it is.
type Cloud string

// The clouds.
const (
	AWS Cloud = "aws" // CloudTrail
	GCP Cloud = "gcp" // Cloud Audit Logs
)

// ErrLog means that a file is not a log that can be read.
var ErrLog = fault.Refused.New("not a log of this cloud")

const (
	maxCalls = 1_000_000
	// maxSkew is by how much the clocks of the cloud and of the ledger may differ. CloudTrail has whole seconds.
	maxSkew = 2 * time.Minute
)

// Call is one request to sign.
type Call struct {
	File      string
	Time      time.Time // UTC
	ID        string    // AWS: requestID; GCP: insertId
	Key       string    // AWS: ARN; GCP: name of the key version. "" if the call was refused
	KeyID     string    // as the request named it
	Reason    string    // GCP: what the client sent as its reason
	Principal string    // who called
	UserAgent string
	Error     string // why it was refused; "" if a signature was made
}

// Log is what was read.
type Log struct {
	Cloud    Cloud
	Records  int       // of any kind
	From, To time.Time // of the records; the log covers this time
	Calls    []Call    // requests to sign, each once

	seen map[string]bool
}

// NewLog returns an empty log.
func NewLog(cloud Cloud) *Log { return &Log{Cloud: cloud, seen: map[string]bool{}} }

// Window returns the time in which a use of the key may belong to a call of the log.
func (l *Log) Window() (from, to time.Time) { return l.From.Add(-maxSkew), l.To.Add(maxSkew) }

// covers extends the time that the log covers.
func (l *Log) covers(at time.Time) {
	if l.Records == 0 || at.Before(l.From) {
		l.From = at
	}
	if l.Records == 0 || at.After(l.To) {
		l.To = at
	}
	l.Records++
}

// add adds a call, once: files may overlap, and both accounts of a call between accounts have it.
func (l *Log) add(c Call, id string) error {
	if id != "" && l.seen[id] {
		return nil
	}
	if len(l.Calls) >= maxCalls {
		return fault.TooLarge.Errorf("more than %d signatures", maxCalls).Fix("give the log in parts")
	}
	l.seen[id] = true
	l.Calls = append(l.Calls, c)
	return nil
}

// Explained is a signature and what it was made for: a request, or a probe of the key.
type Explained struct {
	Call
	Request record.ID // zero: a probe
	Entry   int64     // that explains it
}

// Unexplained is a signature without an entry.
type Unexplained struct {
	Call
	Why string
}

// Missing is an issued request without a signature in the time that the log covers.
type Missing struct {
	Index     int64
	Time      time.Time
	Request   record.ID
	Operation string
}

// Report is the result of Compare.
type Report struct {
	Signatures  int // of the key
	Refused     int // calls without a signature
	ByID        int // signatures that an entry names, or that name one
	Probes      int // of them and of ByTime: those of probes of the key
	ByTime      []Explained
	Unexplained []Unexplained
	Missing     []Missing
}

// OK returns whether each signature has an entry, and each issued request a signature.
func (r *Report) OK() bool { return len(r.Unexplained) == 0 && len(r.Missing) == 0 }
