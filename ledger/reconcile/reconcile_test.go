package reconcile

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger"
	"hsmsign/ledger/record"
	"hsmsign/signer"
)

func fixture(t testing.TB, cloud Cloud) []byte {
	t.Helper()
	name := map[Cloud]string{AWS: "cloudtrail.json", GCP: "audit.jsonl"}[cloud]
	return testkit.Value(os.ReadFile(filepath.Join("testdata", name)))(t)
}

func read(t testing.TB, cloud Cloud, files ...[]byte) *Log {
	t.Helper()
	log := NewLog(cloud)
	for i, file := range files {
		testkit.OK(t, log.Read(t.Context(), fmt.Sprint("file ", i), bytes.NewReader(file)))
	}
	return log
}

func zipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	testkit.Value(w.Write(data))(t)
	testkit.OK(t, w.Close())
	return out.Bytes()
}

const (
	arn     = "arn:aws:kms:us-west-2:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"
	version = "projects/mdm-prod/locations/europe-west1/keyRings/mdm/cryptoKeys/vendor/cryptoKeyVersions/1"
)

func at(clock string) time.Time {
	parsed, err := time.Parse(time.RFC3339, "2026-03-07T"+clock+"Z")
	if err != nil {
		panic(err)
	}
	return parsed
}

// The published formats are read: plain, compressed, twice, and as an array.
func TestRead(t *testing.T) {
	trail, audit := fixture(t, AWS), fixture(t, GCP)
	lines := strings.ReplaceAll(strings.TrimSpace(string(audit)), "\n", ",")
	for name, log := range map[string]*Log{
		"plain": read(t, AWS, trail), "compressed": read(t, AWS, zipped(t, trail)), "twice": read(t, AWS, trail, zipped(t, trail)),
	} {
		first := Call{File: "file 0", Time: at("22:36:44"), ID: "8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb", Key: arn, KeyID: "alias/mdm-vendor",
			Principal: "arn:aws:sts::111122223333:assumed-role/mdm-signer/hsmsign", UserAgent: "aws-sdk-go-v2/1.47.6 ua/2.1 os/linux app/hsmsign"}
		if len(log.Calls) != 4 || log.Calls[0] != first || log.Calls[2].Error != "AccessDenied" || !log.From.Equal(at("22:30:00")) || !log.To.Equal(at("23:30:00")) {
			t.Errorf("%s: %+v", name, log)
		}
	}
	for name, log := range map[string]*Log{
		"lines": read(t, GCP, audit), "array": read(t, GCP, []byte(" \n["+lines+"] ")), "twice": read(t, GCP, zipped(t, audit), audit), "without a newline": read(t, GCP, bytes.TrimSpace(audit)),
	} {
		first := Call{File: "file 0", Time: at("22:36:44").Add(120 * time.Millisecond), ID: "1a2b3c4d5e6f", Key: version, KeyID: version, Reason: "6f1cb50c9df3a1b2c3d4e5f60718293a",
			Principal: "mdm-signer@mdm-prod.iam.gserviceaccount.com", UserAgent: "hsmsign grpc-go/1.83.2,gzip(gfe)"}
		if len(log.Calls) != 3 || log.Calls[0] != first || log.Calls[2].Error == "" || !log.From.Equal(at("22:30:00")) || !log.To.Equal(at("23:30:00")) {
			t.Errorf("%s: %+v", name, log)
		}
	}
	line := `{"timestamp":"2026-03-07T22:36:44Z","a":"` + strings.Repeat("x", 1<<20) + "\"}\n"
	if log := read(t, GCP, []byte(strings.Repeat(line, 6))); log.Records != 6 {
		t.Errorf("a file that is longer than a record may be: %d records", log.Records)
	}
	if log := read(t, GCP, nil, []byte("[]")); log.Records != 0 {
		t.Errorf("an empty log: %+v", log)
	}
}

// Files that are no log, or too large, are refused; a context ends reading.
func TestReadRefuses(t *testing.T) {
	trail, audit := fixture(t, AWS), fixture(t, GCP)
	for _, tt := range []struct {
		name  string
		cloud Cloud
		data  []byte
		err   error
	}{
		{"nothing", AWS, nil, ErrLog}, {"text", AWS, []byte("x"), ErrLog}, {"an array", AWS, []byte("[]"), ErrLog}, {"another object", AWS, []byte(`{"a":{"Records":[]}}`), ErrLog},
		{"cut off", AWS, trail[:len(trail)/2], ErrLog}, {"cut gzip", AWS, zipped(t, trail)[:200], ErrLog}, {"damaged gzip", AWS, []byte("\x1f\x8bxx"), ErrLog},
		{"a second log", AWS, append(append([]byte{}, trail...), trail...), ErrLog}, {"Google's", AWS, audit, ErrLog}, {"an event without time", AWS, []byte(`{"Records":[{}]}`), ErrLog},
		{"Amazon's", GCP, trail, ErrLog}, {"numbers", GCP, []byte("1 2"), ErrLog}, {"cut line", GCP, audit[:100], ErrLog}, {"an open array", GCP, []byte("["), ErrLog},
		{"a long record", AWS, []byte(`{"Records":[{"a":"` + strings.Repeat("x", maxRecord) + `"}]}`), nil},
		{"a long name", AWS, []byte(`{"` + strings.Repeat("x", maxRecord) + `":1}`), nil}, {"much white space", GCP, bytes.Repeat([]byte(" "), maxRecord+1), nil},
	} {
		err := NewLog(tt.cloud).Read(t.Context(), "file", bytes.NewReader(tt.data))
		if tt.err != nil && !errors.Is(err, tt.err) || tt.err == nil && fault.KindOf(err) != fault.TooLarge || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := NewLog(AWS).Read(ended, "file", bytes.NewReader(trail)); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("after the end of the context: %v", err)
	}
	// More than maxFile bytes, of which each record is small.
	record := []byte(`{"timestamp":"2026-03-07T22:36:44Z","a":"` + strings.Repeat("x", 1<<20) + `"}`)
	endless := &repeated{record, 0}
	if testing.Short() {
		return
	}
	limited := &limitedReader{ctx: t.Context(), in: endless, file: maxFile - 4<<20}
	if _, err := io.Copy(io.Discard, resetting{limited}); fault.KindOf(err) != fault.TooLarge {
		t.Errorf("an endless file: %v", err)
	}
}

// repeated repeats a record.
type repeated struct {
	record []byte
	at     int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.record[r.at:])
	r.at = (r.at + n) % len(r.record)
	return n, nil
}

// resetting is a limitedReader whose records are always small.
type resetting struct{ *limitedReader }

func (r resetting) Read(p []byte) (int, error) {
	r.record = 0
	return r.limitedReader.Read(p)
}

func TestSelect(t *testing.T) {
	for _, tt := range []struct {
		cloud Cloud
		ref   string
		calls int
		kind  fault.Kind
	}{
		{AWS, "awskms:///alias/mdm-vendor?region=us-west-2", 2, fault.None},
		{AWS, "awskms:///alias/mdm-vendor", 2, fault.None},
		{AWS, "awskms:///arn:aws:kms:us-west-2:111122223333:alias/mdm-vendor", 2, fault.None},
		{AWS, "awskms:///" + arn, 2, fault.None},
		{AWS, "awskms:///0987dcba-09fe-87dc-65ba-ab0987654321?region=us-west-2", 2, fault.None},
		{AWS, "awskms:///arn:aws:kms:us-east-1:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321", 0, fault.None},
		{AWS, "awskms:///alias/mdm-vendor?region=us-east-1", 0, fault.Usage},
		{AWS, "awskms:///alias/other", 0, fault.Usage},
		{AWS, "gcpkms://" + version, 0, fault.Usage},
		{GCP, "gcpkms://" + version, 3, fault.None},
		{GCP, "gcpkms://" + strings.TrimSuffix(version, "/cryptoKeyVersions/1"), 3, fault.None},
		{GCP, "gcpkms://" + strings.Replace(version, "mdm-prod", "123456", 1), 3, fault.None},
		{GCP, "gcpkms://" + strings.Replace(version, "mdm-prod", "other", 1), 0, fault.None},
		{GCP, "gcpkms://" + version + "1", 0, fault.None},
		{GCP, "file:vendor.key", 0, fault.Usage},
	} {
		log := read(t, tt.cloud, fixture(t, tt.cloud))
		err := log.Select(testkit.Value(signer.ParseRef(tt.ref))(t))
		if fault.KindOf(err) != tt.kind || err == nil && len(log.Calls) != tt.calls {
			t.Errorf("%s: %d calls, %v", tt.ref, len(log.Calls), err)
		}
	}
	if !sameKey("arn:aws:kms:eu-west-1:1:key/mrk-1", "arn:aws:kms:us-east-1:1:key/mrk-1") || sameKey("arn:aws:kms:eu-west-1:1:key/a", "arn:aws:kms:us-east-1:1:key/a") {
		t.Error("only a multi-Region key has the same id in all regions")
	}
}

// signing is a use of the key from a minute before its end.
func signing(id byte, kind, end string, change func(*ledger.Signing)) ledger.Signing {
	s := ledger.Signing{Request: record.ID{id}, Index: int64(id), Kind: kind, Intent: at(end).Add(-time.Second), End: at(end)}
	if change != nil {
		change(&s)
	}
	return s
}

// signedA is a use of the key with the id "a".
func signedA(s *ledger.Signing) { s.Operation = "a" }

func attempts(ids ...string) func(*ledger.Signing) {
	return func(s *ledger.Signing) {
		for _, id := range ids {
			s.Attempts = append(s.Attempts, record.Attempt{Operation: id})
		}
	}
}

// probeReason is the reason of a probe, probeSigned a use of the key for one.
const probeReason = signer.ProbeReason + "0123456789abcdef0123456789abcdef"

func probeSigned(s *ledger.Signing) { s.Operation = probeReason }

func TestCompareAWS(t *testing.T) {
	call := func(id, clock string) Call { return Call{ID: id, Time: at(clock)} }
	for _, tt := range []struct {
		name      string
		calls     []Call
		signings  []ledger.Signing
		byID      int
		byTime    int
		why       int // unexplained
		missing   int
		expecting func(ledger.Signing) bool
	}{
		{"issued", []Call{call("a", "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", signedA)}, 1, 0, 0, 0, nil},
		{"stolen", []Call{call("b", "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", signedA)}, 0, 0, 1, 1, nil},
		{"refused", []Call{{ID: "b", Time: at("12:00:00"), Error: "AccessDenied"}}, nil, 0, 0, 0, 0, nil},
		{"a failed attempt that signed", []Call{call("a", "12:00:00")}, []ledger.Signing{signing(1, "failed", "12:00:01", attempts("a"))}, 1, 0, 0, 0, nil},
		{"a lost answer", []Call{call("a", "12:00:00"), call("b", "12:00:00")}, []ledger.Signing{signing(1, "failed", "12:00:01", attempts(""))}, 0, 1, 1, 0, nil},
		{"an unknown outcome", []Call{call("a", "12:00:00")}, []ledger.Signing{signing(1, "unknown", "12:00:01", nil)}, 0, 1, 0, 0, nil},
		{"an open intent explains one", []Call{call("a", "12:00:00"), call("b", "12:00:01")}, []ledger.Signing{signing(1, "intent", "12:00:01", nil)}, 0, 1, 1, 0, nil},
		{"an erased customer", []Call{call("a", "12:00:00")}, []ledger.Signing{signing(1, "failed", "12:00:01", func(s *ledger.Signing) { s.Erased = true })}, 0, 1, 0, 0, nil},
		{"another time", []Call{call("a", "12:10:00")}, []ledger.Signing{signing(1, "unknown", "12:00:01", nil)}, 0, 0, 1, 0, nil},
		{"the one that ends first", []Call{call("a", "12:00:00"), call("b", "12:04:00")}, []ledger.Signing{
			signing(1, "unknown", "12:03:00", nil), signing(2, "unknown", "12:00:30", func(s *ledger.Signing) { s.Intent = at("11:59:00") })}, 0, 2, 0, 0, nil},
		{"missing", nil, []ledger.Signing{signing(1, "issued", "12:00:01", signedA)}, 0, 0, 0, 1, nil},
		{"a probe", []Call{call("a", "12:00:00")}, []ledger.Signing{signing(1, "probe", "12:00:01", signedA)}, 1, 0, 0, 0, nil},
		{"a probe with several signatures", []Call{call("a", "12:00:00"), call("b", "12:00:00"), call("c", "12:00:00")}, []ledger.Signing{signing(1, "probe", "12:00:01", attempts("a", "b"))}, 2, 0, 1, 0, nil},
		{"a probe whose answer was lost", []Call{call("a", "12:00:00"), call("b", "12:00:00")}, []ledger.Signing{signing(1, "probe", "12:00:01", func(s *ledger.Signing) { s.Operation = probeReason })}, 0, 1, 1, 0, nil},
		{"a probe that is not in the log", nil, []ledger.Signing{signing(1, "probe", "12:00:01", signedA)}, 0, 0, 0, 0, nil},
		{"not covered", nil, []ledger.Signing{signing(1, "issued", "10:00:01", signedA)}, 0, 0, 0, 0, nil},
		{"under another certificate", nil, []ledger.Signing{signing(1, "issued", "12:00:01", nil)}, 0, 0, 0, 0, func(ledger.Signing) bool { return false }},
	} {
		log := &Log{Cloud: AWS, From: at("11:00:00"), To: at("13:00:00"), Calls: tt.calls}
		r := log.Compare(tt.signings, tt.expecting)
		if r.ByID != tt.byID || len(r.ByTime) != tt.byTime || len(r.Unexplained) != tt.why || len(r.Missing) != tt.missing || r.OK() != (tt.why+tt.missing == 0) ||
			r.Signatures+r.Refused != len(tt.calls) || r.Signatures != r.ByID+len(r.ByTime)+len(r.Unexplained) {
			t.Errorf("%s: %+v", tt.name, r)
		}
		if want := map[bool]int{true: r.ByID + len(r.ByTime)}[strings.HasPrefix(tt.name, "a probe")]; r.Probes != want {
			t.Errorf("%s: %d probes", tt.name, r.Probes)
		}
		for _, e := range r.ByTime {
			if e.Entry != int64(e.Request[0]) {
				t.Errorf("%s: explained by the entry %d", tt.name, e.Entry)
			}
		}
	}
}

func TestCompareGCP(t *testing.T) {
	reason := record.ID{1}.String()
	call := func(reason, clock string) Call { return Call{Reason: reason, Time: at(clock)} }
	rule := func(s *ledger.Signing) { s.Rule = "ledger.concurrent" }
	for _, tt := range []struct {
		name     string
		calls    []Call
		signings []ledger.Signing
		byID     int
		why      string
		missing  int
	}{
		{"issued", []Call{call(reason, "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", nil)}, 1, "", 0},
		{"issued after a lost answer", []Call{call(reason, "12:00:00"), call(reason, "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", attempts(""))}, 2, "", 0},
		{"concurrent", []Call{call(reason, "12:00:00")}, []ledger.Signing{signing(1, "failed", "12:00:01", rule)}, 1, "", 0},
		{"unknown", []Call{call(reason, "12:00:00")}, []ledger.Signing{signing(1, "unknown", "12:00:01", nil)}, 1, "", 0},
		{"the reason again", []Call{call(reason, "12:00:00"), call(reason, "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", nil)}, 1, "fewer signatures", 0},
		{"the reason later", []Call{call(reason, "12:30:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", nil)}, 0, "another time", 1},
		{"no signature", []Call{call(reason, "12:00:00")}, []ledger.Signing{signing(1, "failed", "12:00:01", nil)}, 0, "fewer signatures", 0},
		{"no reason", []Call{call("", "12:00:00")}, []ledger.Signing{signing(1, "issued", "12:00:01", nil)}, 0, "no reason", 1},
		{"another reason", []Call{call("x", "12:00:00")}, nil, 0, "not the id of a request", 0},
		{"a probe", []Call{call(probeReason, "12:00:00"), call(probeReason, "12:00:00")}, []ledger.Signing{signing(2, "probe", "12:00:01", attempts(probeReason, probeReason))}, 2, "", 0},
		{"a probe with one signature", []Call{call(probeReason, "12:00:00"), call(probeReason, "12:00:00")}, []ledger.Signing{signing(2, "probe", "12:00:01", probeSigned)}, 1, "fewer signatures", 0},
		{"a probe later", []Call{call(probeReason, "12:30:00")}, []ledger.Signing{signing(2, "probe", "12:00:01", probeSigned)}, 0, "another time", 0},
		{"a probe under the id of a request", []Call{call(reason, "12:00:00"), call(reason, "12:00:00")}, []ledger.Signing{
			signing(1, "issued", "12:00:01", nil), signing(2, "probe", "12:00:01", attempts(reason, reason))}, 1, "fewer signatures", 0},
	} {
		log := &Log{Cloud: GCP, From: at("11:00:00"), To: at("13:00:00"), Calls: tt.calls}
		r := log.Compare(tt.signings, nil)
		why := ""
		for _, u := range r.Unexplained {
			why += u.Why
		}
		if r.ByID != tt.byID || (why == "") != (tt.why == "") || !strings.Contains(why, tt.why) || len(r.Missing) != tt.missing || len(r.ByTime) != 0 {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
}

// TestFixtures: in both published formats the signature of Mallory is found, and no other.
func TestFixtures(t *testing.T) {
	for cloud, ref := range map[Cloud]string{AWS: "awskms:///alias/mdm-vendor", GCP: "gcpkms://" + version} {
		log := read(t, cloud, fixture(t, cloud))
		testkit.OK(t, log.Select(testkit.Value(signer.ParseRef(ref))(t)))
		id := testkit.Value(record.ParseID("6f1cb50c9df3a1b2c3d4e5f60718293a"))(t)
		r := log.Compare([]ledger.Signing{{Request: id, Kind: record.KindIssued, Intent: at("22:36:43"), End: at("22:36:45"), Operation: "8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb"}}, nil)
		if r.ByID != 1 || len(r.Unexplained) != 1 || !strings.Contains(strings.ToLower(r.Unexplained[0].Principal), "mallory") || len(r.Missing) != 0 {
			t.Errorf("%s: %+v", cloud, r)
		}
	}
}

func fuzz(f *testing.F, cloud Cloud, seeds ...[]byte) {
	for _, seed := range append(seeds, fixture(f, cloud), zipped(f, fixture(f, cloud))) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		log := NewLog(cloud)
		err := log.Read(t.Context(), "file", bytes.NewReader(data))
		if err != nil && !errors.Is(err, ErrLog) && fault.KindOf(err) != fault.TooLarge {
			t.Errorf("%v", err)
		}
		for _, c := range log.Calls {
			if c.Time.Before(log.From) || c.Time.After(log.To) || len(c.ID) > maxText+4 || c.Error == "" && cloud == GCP && c.Key == "" && c.KeyID != "" {
				t.Errorf("%+v in %v to %v", c, log.From, log.To)
			}
		}
		r := log.Compare(nil, nil)
		if len(r.Unexplained) != r.Signatures || r.Signatures+r.Refused != len(log.Calls) {
			t.Errorf("%+v of %d calls", r, len(log.Calls))
		}
	})
}

func FuzzCloudTrail(f *testing.F) {
	fuzz(f, AWS, []byte(`{"Records":[]}`), []byte(`{"a":[1],"Records":[{"eventTime":"2026-03-07T22:36:44Z","eventName":"Sign","eventSource":"kms.amazonaws.com"}]}`))
}

func FuzzAuditLog(f *testing.F) {
	fuzz(f, GCP, []byte(`[]`), []byte(`{"timestamp":"2026-03-07T22:36:44Z","protoPayload":{"serviceName":"cloudkms.googleapis.com","methodName":"AsymmetricSign"}}`))
}
