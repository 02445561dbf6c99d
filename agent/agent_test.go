package agent

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hsmsign/api"
	"hsmsign/chain"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/certreq"
	"hsmsign/request"
	"hsmsign/signer"
	"hsmsign/testpki"
)

// store is a key store with one key. It counts how often the key is opened, and may refuse.
type store struct {
	key   *testkit.Signer
	fail  func() error
	wait  chan struct{} // nil: open at once
	opens atomic.Int64
}

func (s *store) Open(ctx context.Context, _ signer.OpenOptions) (signer.Signer, error) {
	s.opens.Add(1)
	if s.wait != nil {
		select {
		case <-s.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if s.fail != nil {
		if err := s.fail(); err != nil {
			return nil, err
		}
	}
	return s.key, nil
}

func golden(t *testing.T) *store { return &store{key: testkit.NewSigner(testkit.GoldenKey(t))} }

func other() *store { return &store{key: testkit.NewSigner(testkit.Key("other"))} }

func goldenCertificates(t *testing.T) func(context.Context) (Certificates, error) {
	t.Helper()
	certs := testkit.Value(chain.Parse(testkit.File(t, "golden/chain.pem")))(t)
	roots := testkit.Value(chain.Parse(testkit.File(t, "golden/root.pem")))(t)
	return func(context.Context) (Certificates, error) {
		return Certificates{Name: "chain.pem", Vendor: certs, TrustRoots: roots}, nil
	}
}

func newVendor(t *testing.T, cfg Config) *Vendor {
	t.Helper()
	if cfg.Certificates == nil {
		cfg.Certificates = goldenCertificates(t)
	}
	v := testkit.Value(NewVendor(t.Context(), cfg))(t)
	t.Cleanup(v.Close)
	return v
}

func customer(t *testing.T) Order { return Order{CSR: testkit.File(t, "golden/customer.csr")} }

func prepare(t *testing.T, v *Vendor, order Order) *Prepared {
	t.Helper()
	p := testkit.Value(v.Prepare(t.Context(), Caller{Name: "tester"}, order))(t)
	return p
}

// issue prepares and issues the golden order.
func issue(t *testing.T, v *Vendor) error {
	t.Helper()
	_, err := v.Issue(t.Context(), prepare(t, v, customer(t)))
	return err
}

func TestIssueIsGolden(t *testing.T) {
	v := newVendor(t, Config{Key: golden(t)})
	for format, file := range map[request.Format]string{"": "golden/customer.req", request.Plist: "golden/customer.plist"} {
		order := customer(t)
		order.Format = format
		p := prepare(t, v, order)
		issued := testkit.Value(v.Issue(t.Context(), p))(t)
		want := testkit.File(t, file)
		if string(issued.Request) != string(want) || p.Caller.Name != "tester" {
			t.Errorf("%q: not the golden request", format)
		}
	}
}

// Matches tells the request of an order from every other file.
func TestMatches(t *testing.T) {
	v := newVendor(t, Config{Key: golden(t)})
	want := testkit.File(t, "golden/customer.req")
	p := prepare(t, v, customer(t))
	for name, data := range map[string][]byte{
		"cut": want[1:], "with a space": append([]byte(" "), want...), "empty": nil, "other format": testkit.File(t, "golden/customer.plist"),
	} {
		if p.Matches(data) {
			t.Errorf("%s: it matches", name)
		}
	}
	if !p.Matches(want) {
		t.Error("the request does not match")
	}
	if prepare(t, v, Order{CSR: testkit.File(t, "csr/other.pem")}).Matches(want) {
		t.Error("the request for another CSR matches")
	}
	sha1 := customer(t)
	sha1.Digest = crypto.SHA1
	if prepare(t, v, sha1).Matches(want) {
		t.Error("the request with another digest matches")
	}
}

// Another process can issue later what this one prepared: it prepares the stored DER again.
func TestPreparedIsRebuiltFromDER(t *testing.T) {
	first := prepare(t, newVendor(t, Config{Key: golden(t)}), customer(t))
	order := first.Order
	order.CSR = first.CSR.DER
	v := newVendor(t, Config{Key: golden(t)})
	issued, err := v.Issue(t.Context(), prepare(t, v, order))
	if err != nil || string(issued.Request) != string(testkit.File(t, "golden/customer.req")) {
		t.Errorf("not the golden request: %v", err)
	}
}

// A Prepared is redeemed once, however many callers try at the same time.
func TestPreparedIsRedeemedOnce(t *testing.T) {
	key := golden(t)
	v := newVendor(t, Config{Key: key})
	p := prepare(t, v, customer(t))
	var issued atomic.Int64
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			if _, err := v.Issue(t.Context(), p); err == nil {
				issued.Add(1)
			}
		})
	}
	group.Wait()
	if issued.Load() != 1 || key.key.Calls.Load() != 1 {
		t.Errorf("%d requests, %d signatures", issued.Load(), key.key.Calls.Load())
	}
}

func TestPrepareRefuses(t *testing.T) {
	v := newVendor(t, Config{Key: golden(t)})
	for file, id := range map[string]string{
		"csr/key-1024.pem": "csr.key-size", "csr/bad-signature.der": "csr.signature", "golden/vendor.csr": "csr.vendor-key",
	} {
		p, err := v.Prepare(t.Context(), Caller{}, Order{CSR: testkit.File(t, file)})
		if testkit.FindingID(err) != id || p != nil {
			t.Errorf("%s: got %v, %v; want %s", file, p, err, id)
		}
	}
	order := customer(t)
	order.Digest = crypto.MD5
	if _, err := v.Prepare(t.Context(), Caller{}, order); !errors.Is(err, signer.ErrUnsupported) {
		t.Errorf("MD5: %v", err)
	}
	order = customer(t)
	order.Format = "pem"
	if _, err := v.Prepare(t.Context(), Caller{}, order); fault.KindOf(err) != fault.Usage {
		t.Errorf("format: %v", err)
	}
}

// A chain that was loaded last week and expired yesterday signs nothing, whether it expires before Prepare or after it.
func TestChainExpires(t *testing.T) {
	key := golden(t)
	now := time.Now()
	v := newVendor(t, Config{Key: key, Now: func() time.Time { return now }})
	p := prepare(t, v, customer(t))
	now = v.Chain().Leaf().NotAfter.Add(24 * time.Hour)
	if issued, err := v.Issue(t.Context(), p); testkit.FindingID(err) != "chain.expired" || issued != nil {
		t.Errorf("Issue: %v, %v", issued, err)
	}
	if _, err := v.Prepare(t.Context(), Caller{}, customer(t)); testkit.FindingID(err) != "chain.expired" || fault.KindOf(err) != fault.Vendor {
		t.Errorf("Prepare: %v", err)
	}
	if n := key.opens.Load(); n != 0 {
		t.Errorf("the key was opened %d times", n)
	}
}

// A failed open is tried again by the next call. A key that is lost is opened again; one that is only unavailable is not.
func TestKeyIsOpenedAgain(t *testing.T) {
	key := golden(t)
	key.fail = func() error { return signer.ErrUnavailable }
	v := newVendor(t, Config{Key: key})
	if err := issue(t, v); !errors.Is(err, signer.ErrUnavailable) {
		t.Fatalf("a store that is down: %v", err)
	}
	key.fail = nil
	if err := errors.Join(issue(t, v), issue(t, v)); err != nil || key.opens.Load() != 2 {
		t.Fatalf("the store is back: %v, %d opens", err, key.opens.Load())
	}
	for _, tt := range []struct {
		err   error
		opens int64
	}{{signer.ErrUnavailable, 2}, {signer.ErrKeyNotFound, 3}, {signer.ErrClosed, 4}} {
		key.key.Fail = func() error { return tt.err }
		if err := issue(t, v); !errors.Is(err, tt.err) {
			t.Fatalf("%v: got %v", tt.err, err)
		}
		key.key.Fail = nil
		if err := issue(t, v); err != nil || key.opens.Load() != tt.opens {
			t.Errorf("after %v: %v, %d opens, want %d", tt.err, err, key.opens.Load(), tt.opens)
		}
	}
}

// Callers that wait while the key is opened share the failure: a person is not asked for a passphrase by each of them.
func TestWaitingCallersShareAFailure(t *testing.T) {
	key := golden(t)
	key.wait = make(chan struct{})
	key.fail = func() error { return signer.ErrAuth }
	v := newVendor(t, Config{Key: key})
	first := make(chan error, 1)
	go func() { first <- v.Open(t.Context()) }()
	testkit.Eventually(t, "opening", func() bool { return key.opens.Load() == 1 })
	v.mu.Lock()
	attempt := v.opening
	v.mu.Unlock()
	close(key.wait)
	<-attempt.done
	if err := <-first; !errors.Is(err, signer.ErrAuth) || !errors.Is(attempt.err, signer.ErrAuth) || attempt.abandoned {
		t.Errorf("%v; those who wait learn %v, abandoned %v", err, attempt.err, attempt.abandoned)
	}
}

// A caller that gives up while it opens the key does not fail the others, and a caller that waits can give up as well.
func TestOpeningCallerGivesUp(t *testing.T) {
	key := golden(t)
	key.wait = make(chan struct{})
	v := newVendor(t, Config{Key: key})
	first, cancel := context.WithCancel(t.Context())
	firstErr, secondErr, thirdErr := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() { firstErr <- v.Open(first) }()
	testkit.Eventually(t, "opening", func() bool { return key.opens.Load() == 1 })
	go func() { secondErr <- v.Open(t.Context()) }()
	third, cancelThird := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancelThird()
	go func() { thirdErr <- v.Open(third) }()
	if err := <-thirdErr; !errors.Is(err, context.DeadlineExceeded) || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("the caller that stops waiting: %v", err)
	}
	cancel()
	if err := <-firstErr; !errors.Is(err, context.Canceled) {
		t.Errorf("the caller that gives up: %v", err)
	}
	close(key.wait)
	if err := <-secondErr; err != nil {
		t.Errorf("the caller that waits: %v", err)
	}
}

// After Reload the new chain signs with its own key, and an order that was prepared under the old chain is refused.
func TestReload(t *testing.T) {
	authority := testkit.Value(testpki.New(time.Now()))(t)
	name, keys := "old", map[string]*testkit.Signer{"old": testkit.NewSigner(testkit.Key("old")), "new": testkit.NewSigner(testkit.Key("new"))}
	certificates := func(context.Context) (Certificates, error) {
		der, err := certreq.Create(t.Context(), testkit.NewSigner(testkit.Key(name)), certreq.Subject{CommonName: "Example", Email: "mdm@example.com", Country: "US"})
		if err != nil {
			return Certificates{}, err
		}
		csr, err := x509.ParseCertificateRequest(der)
		if err != nil {
			return Certificates{}, err
		}
		cert, err := authority.IssueVendor(csr, testpki.VendorOptions{})
		return Certificates{Name: name, Vendor: []*x509.Certificate{cert, authority.WWDR}, TrustRoots: []*x509.Certificate{authority.Root}}, err
	}
	v := newVendor(t, Config{Certificates: certificates, Key: opener(func() signer.Signer { return keys[name] })})
	before := prepare(t, v, customer(t))
	if err := issue(t, v); err != nil || keys["old"].Calls.Load() != 1 {
		t.Fatalf("%v, %d signatures", err, keys["old"].Calls.Load())
	}
	name = "new"
	testkit.OK(t, v.Reload(t.Context()))
	if !v.LastSignature().IsZero() {
		t.Error("the new key has not signed")
	}
	if _, err := v.Issue(t.Context(), before); fault.KindOf(err) != fault.Conflict || fault.Hint(err) == "" {
		t.Errorf("prepared under the old chain: %v", err)
	}
	if err := issue(t, v); err != nil || keys["new"].Calls.Load() != 1 || keys["old"].Closed.Load() != 1 {
		t.Errorf("under the new chain: %v, %d signatures, old key closed %d times", err, keys["new"].Calls.Load(), keys["old"].Closed.Load())
	}
	// A chain that cannot be loaded leaves the loaded one in place.
	v.cfg.Certificates = func(context.Context) (Certificates, error) { return Certificates{}, errors.New("no such file") }
	if err := v.Reload(t.Context()); err == nil {
		t.Error("a missing file is no error")
	}
	if err := issue(t, v); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
}

type opener func() signer.Signer

func (o opener) Open(context.Context, signer.OpenOptions) (signer.Signer, error) { return o(), nil }

func TestKeyMustMatchTheCertificate(t *testing.T) {
	if err := issue(t, newVendor(t, Config{Key: other()})); testkit.FindingID(err) != "chain.key-mismatch" {
		t.Errorf("got %v", err)
	}
}

// A faulty signature is not released.
func TestFaultySignature(t *testing.T) {
	key := golden(t)
	key.key.Faulty = true
	v := newVendor(t, Config{Key: key})
	if issued, err := v.Issue(t.Context(), prepare(t, v, customer(t))); !errors.Is(err, signer.ErrBadSignature) || issued != nil {
		t.Errorf("got %v, %v", issued, err)
	}
}

// Close lets signatures in flight end, then closes the key, once.
func TestClose(t *testing.T) {
	key := golden(t)
	signing, goOn := make(chan struct{}), make(chan struct{})
	key.key.Fail = func() error { close(signing); <-goOn; return nil }
	v := newVendor(t, Config{Key: key})
	result := make(chan error, 1)
	p := prepare(t, v, customer(t))
	go func() {
		_, err := v.Issue(t.Context(), p)
		result <- err
	}()
	<-signing
	v.Close()
	v.Close()
	if key.key.Closed.Load() != 0 {
		t.Error("the key is closed under a signature in flight")
	}
	if err := issue(t, v); !errors.Is(err, signer.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	close(goOn)
	if err := <-result; err != nil || key.key.Closed.Load() != 1 {
		t.Errorf("%v, closed %d times", err, key.key.Closed.Load())
	}
}

// A vendor that is closed while its key is opened closes that key.
func TestCloseWhileOpening(t *testing.T) {
	key := golden(t)
	key.wait = make(chan struct{})
	v := newVendor(t, Config{Key: key})
	result := make(chan error, 1)
	go func() { result <- v.Open(t.Context()) }()
	testkit.Eventually(t, "opening", func() bool { return key.opens.Load() == 1 })
	v.Close()
	close(key.wait)
	if err := <-result; err != nil || key.key.Closed.Load() != 1 {
		t.Errorf("%v, closed %d times", err, key.key.Closed.Load())
	}
}

type files map[string]error

func (f files) LoadCertificates(_ context.Context, names ...string) ([]*x509.Certificate, error) {
	for _, name := range names {
		if f[name] != nil {
			return nil, f[name]
		}
	}
	return make([]*x509.Certificate, len(names)), nil
}

func TestCertificateFiles(t *testing.T) {
	c, err := CertificateFiles(files{}, "pkcs11:object=a?pin-value=1234", []string{"b", "c"}, nil)(t.Context())
	if err != nil || c.Name != "pkcs11:object=a?pin-value=REDACTED" || len(c.Vendor) != 1 || len(c.Extra) != 2 || len(c.TrustRoots) != 0 {
		t.Errorf("%+v, %v", c, err)
	}
	if c, err := CertificateFiles(files{}, "vendor.pem", nil, nil)(t.Context()); err != nil || c.Name != "vendor.pem" {
		t.Errorf("%+v, %v", c, err)
	}
	gone := errors.New("gone")
	if _, err := CertificateFiles(files{"b": gone}, "vendor.pem", nil, []string{"b"})(t.Context()); !errors.Is(err, gone) {
		t.Error(err)
	}
}

func TestCheckStatus(t *testing.T) {
	certificates := goldenCertificates(t)
	loaded := testkit.Value(certificates(t.Context()))(t)
	expiry := FirstExpiry(loaded.Vendor).NotAfter
	down := golden(t)
	down.fail = func() error { return signer.ErrUnavailable }
	none := func(context.Context) (Certificates, error) { return Certificates{}, ErrNoCertificate }
	for _, tt := range []struct {
		name         string
		cfg          Config
		inactive     bool
		now          time.Time
		state        string
		signs        bool
		kind         fault.Kind
		certificates int
	}{
		{"good", Config{Key: golden(t)}, false, expiry.AddDate(0, 0, -40), api.StateOK, true, fault.None, 3},
		{"expires soon", Config{Key: golden(t)}, false, expiry.AddDate(0, 0, -9), api.StateWarning, true, fault.None, 3},
		{"expired", Config{Key: golden(t)}, false, expiry.AddDate(0, 0, 9), api.StateCritical, true, fault.Vendor, 3},
		{"key store down", Config{Key: down}, false, expiry.AddDate(0, 0, -40), api.StateCritical, false, fault.Unavailable, 3},
		{"another key", Config{Key: other()}, false, expiry.AddDate(0, 0, -40), api.StateCritical, true, fault.Vendor, 3},
		{"no certificate", Config{Key: golden(t), Certificates: none}, true, expiry, api.StateWarning, true, fault.Vendor, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.cfg.Certificates == nil {
				tt.cfg.Certificates = certificates
			}
			tt.cfg.Now = func() time.Time { return tt.now }
			s := CheckStatus(t.Context(), tt.cfg, StatusOptions{Active: !tt.inactive})
			if s.State != tt.state || s.Signs != tt.signs || fault.KindOf(s.Err) != tt.kind || len(s.Certificates) != tt.certificates ||
				s.Next == "" || (s.Error != nil) != (s.Err != nil) {
				t.Errorf("%+v, %v", s.VendorStatus, s.Err)
			}
			if until := "nothing to do until " + expiry.AddDate(0, 0, -30).Format(time.DateOnly); s.State == api.StateOK && s.Next != until {
				t.Errorf("%q, want %q", s.Next, until)
			}
		})
	}
}
