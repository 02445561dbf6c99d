//go:build linux && cgo

package main

import (
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/ledger/postgres/postgrestest"
	"hsmsign/signer/awskms/awskmstest"
	softhsmtest "hsmsign/softhsm-test"
)

// TestServeFaults takes away what the service needs, again and again, and gives it back: the worker process of SoftHSM2, a KMS,
// PostgreSQL. There is no wrong answer, no request without its entry, and after each fault the service signs again without a
// restart. HSMSIGN_SOAK=1 does each for ten minutes.
func TestServeFaults(t *testing.T) {
	token := softhsmtest.New(t)
	token.Import(t, testkit.File(t, "golden/vendor.key"), "vendor", []byte{1})
	t.Run("pkcs11", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, 16, "", token.Ref("vendor"))
		sv := s.service(t)
		suffer(t, sv, 20*time.Second, func() func() {
			workers := children(sv.cmd.Process.Pid)
			if len(workers) != 1 {
				t.Errorf("%d workers", len(workers))
			}
			for _, pid := range workers {
				testkit.OK(t, syscall.Kill(pid, syscall.SIGKILL))
			}
			return func() {} // the service starts another one
		}, 0)
	})
	t.Run("kms", func(t *testing.T) {
		t.Parallel()
		address, double := "127.0.0.1:0", (*awskmstest.Server)(nil)
		start := func() {
			double = testkit.Value(awskmstest.NewServer(awskmstest.Config{Listen: address, Delay: 10 * time.Millisecond}))(t)
			address = double.Addr()
			testkit.Value(double.AddKey("alias/vendor", testkit.GoldenKey(t)))(t)
		}
		start()
		t.Cleanup(func() { _ = double.Close() })
		s := newSite(t, 16, "", "awskms:///alias/vendor?region=eu-west-1&endpoint="+double.Endpoint())
		s.env = []string{
			"AWS_ACCESS_KEY_ID=" + awskmstest.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + awskmstest.SecretAccessKey, "AWS_EC2_METADATA_DISABLED=true",
			"AWS_CONFIG_FILE=/dev/null", "AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		}
		suffer(t, s.service(t), 20*time.Second, func() func() {
			testkit.OK(t, double.Close())
			return start
		}, 0)
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		db := testkit.Value(postgrestest.Start("log_min_messages = warning"))(t)
		t.Cleanup(db.Stop)
		s := newSite(t, 16, db.Schema(t), "")
		// An outcome that could not be recorded leaves its intent open.
		suffer(t, s.service(t), 30*time.Second, func() func() {
			testkit.OK(t, db.Kill())
			return func() { testkit.OK(t, db.Restart()) }
		}, 64)
	})
}

// suffer loads a service while take takes something away and the function that it returns gives it back. In a soak there are ten
// minutes with a fault at each interval. lost is how many requests one fault may leave without an outcome.
func suffer(t *testing.T, sv *served, interval time.Duration, take func() (restore func()), lost int) {
	t.Helper()
	faults, callers, away := 4, 16, 500*time.Millisecond
	if soaking() {
		faults, callers, away = int(10*time.Minute/interval), 64, 3*time.Second
	} else {
		interval = 2 * time.Second
	}
	l := runLoad(t, callers, newCSRs(2), false, sv)
	l.recovers("the start")
	var slowest time.Duration
	for range faults {
		time.Sleep(interval - away)
		restore := take()
		time.Sleep(away)
		restore()
		slowest = max(slowest, l.recovers("a fault"))
	}
	l.end()
	t.Logf("the slowest recovery took %v", slowest)
	select {
	case err := <-sv.ended:
		t.Fatalf("the service ended: %v: %s", err, sv.tail())
	default:
	}
	l.recorded(sv.site, faults*lost)
	sv.stop(t)
}

// TestServeAfterKill kills the service (SIGKILL) at random times while it signs. Each request that a caller got is in the ledger.
// HSMSIGN_SOAK=1 kills ten times as often.
func TestServeAfterKill(t *testing.T) {
	t.Parallel()
	kills := 10
	if soaking() {
		kills = 100
	}
	s := newSite(t, 16, "", "")
	sv := s.service(t)
	l := runLoad(t, 16, newCSRs(2), true, sv)
	for range kills {
		time.Sleep(time.Duration(50+rand.IntN(350)) * time.Millisecond)
		sv.kill()
		sv.start(t)
		if status, body := sv.overSocket(t, http.MethodGet, "/v1/me", ""); status != http.StatusOK {
			t.Fatalf("the socket of the service that was killed: %d %s", status, body)
		}
		l.recovers("a kill")
	}
	l.end()
	// What was signed when the service was killed is known to be open, for 15 minutes.
	l.recorded(s, 16*kills)
	for _, e := range ledgerEntries(t, s) {
		if e.Kind == "unknown" {
			t.Errorf("the entry %d closes an intent that is younger than 15 minutes", e.Index)
		}
	}
	if status := s.run(t, "ledger", "status"); !strings.Contains(status, "example.com/service") {
		t.Errorf("%s", status)
	}
	sv.stop(t)
}
