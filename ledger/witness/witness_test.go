package witness_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/witness"
	"hsmsign/ledger/witnesstest"
)

// tree is a log of a test.
type tree struct {
	signer note.Signer
	vkey   string
	hashes []tlog.Hash
	size   int64
}

func newTree(t *testing.T, seed byte) *tree {
	t.Helper()
	secret, vkey, err := note.GenerateKey(nil, "example.com/log")
	testkit.OK(t, err)
	log := &tree{signer: testkit.Value(note.NewSigner(secret))(t), vkey: vkey}
	log.grow(t, seed)
	return log
}

// read implements tlog.HashReader.
func (log *tree) read(indexes []int64) (out []tlog.Hash, _ error) {
	for _, index := range indexes {
		out = append(out, log.hashes[index])
	}
	return out, nil
}

func (log *tree) grow(t *testing.T, leaf byte) {
	t.Helper()
	log.hashes = append(log.hashes, testkit.Value(tlog.StoredHashes(log.size, []byte{leaf}, tlog.HashReaderFunc(log.read)))(t)...)
	log.size++
}

// checkpoint returns the signed checkpoint of the first n entries.
func (log *tree) checkpoint(t *testing.T, n int64) witness.Checkpoint {
	t.Helper()
	root := testkit.Value(tlog.TreeHash(n, tlog.HashReaderFunc(log.read)))(t)
	signed := testkit.Value(note.Sign(&note.Note{Text: fmt.Sprintf("example.com/log\n%d\n%s\n", n, root)}, log.signer))(t)
	return witness.Checkpoint{Size: n, Signed: signed, Prove: func(_ context.Context, old int64) (tlog.TreeProof, error) {
		return tlog.ProveTree(n, old, tlog.HashReaderFunc(log.read))
	}}
}

// start starts a witness of the log, and returns it with its client.
func start(t *testing.T, log *tree, algorithm witnesstest.Algorithm) (*witnesstest.Witness, *witness.Client, note.Verifier) {
	t.Helper()
	w := testkit.Value(witnesstest.Start("witness.example/w", algorithm, log.vkey))(t)
	t.Cleanup(w.Stop)
	v := testkit.Value(witness.NewVerifier(w.Key))(t)
	return w, testkit.Value(witness.New(w.URL+"/", v))(t), v
}

// A log that grows is cosigned at each size, whatever size the client believes the witness to have.
func TestCosign(t *testing.T) {
	for _, algorithm := range []witnesstest.Algorithm{witnesstest.Ed25519, witnesstest.MLDSA44} {
		t.Run(string(algorithm), func(t *testing.T) {
			log := newTree(t, 0)
			w, client, v := start(t, log, algorithm)
			for i := range byte(20) {
				cp := log.checkpoint(t, log.size)
				for _, old := range []int64{log.size - 1, 0, 99, -1, log.size} {
					got, err := client.Cosign(t.Context(), old, cp)
					if err != nil {
						t.Fatalf("size %d, old %d: %v", cp.Size, old, err)
					}
					cosigned := append(append([]byte{}, cp.Signed...), got.Line...)
					found, ok := witness.Find(cosigned, v)
					if !ok || found != got || got.Name != v.Name() || time.Since(got.Time).Abs() > time.Minute {
						t.Errorf("found %+v, %v, want %+v", found, ok, got)
					}
					if _, ok := witness.Find(cp.Signed, v); ok {
						t.Error("a cosignature where there is none")
					}
					other := log.checkpoint(t, 1)
					if _, ok := witness.Find(append(other.Signed, got.Line...), v); ok && cp.Size != 1 {
						t.Error("a cosignature of another checkpoint counts")
					}
				}
				log.grow(t, i)
			}
			if n := w.Size("example.com/log"); n != log.size-1 {
				t.Errorf("the witness has %d", n)
			}
		})
	}
}

// What an unknown key signed is ignored, and so are lines that are not signatures.
func TestIgnoredLines(t *testing.T) {
	log := newTree(t, 0)
	one, client, v := start(t, log, witnesstest.Ed25519)
	two, other, otherKey := start(t, log, witnesstest.MLDSA44)
	cp := log.checkpoint(t, 1)
	a := testkit.Value(client.Cosign(t.Context(), 0, cp))(t)
	b := testkit.Value(other.Cosign(t.Context(), 0, cp))(t)
	all := string(cp.Signed) + "— x AAAA\n— " + v.Name() + " AAAA\nno line\n" + b.Line + a.Line
	for key, want := range map[note.Verifier]witness.Cosignature{v: a, otherKey: b} {
		if got, ok := witness.Find([]byte(all), key); !ok || got != want {
			t.Errorf("%+v, %v", got, ok)
		}
	}
	if _, ok := witness.Find([]byte(strings.TrimSuffix(string(cp.Signed)+a.Line, "\n")), v); ok {
		t.Error("a line that was cut counts")
	}
	if _, ok := witness.Find([]byte("x"), v); ok {
		t.Error("a text counts")
	}
	one.Stop()
	two.Stop()
}

// A cosignature without a time does not say that the tree is the largest that the witness saw, so it does not count.
func TestNoTime(t *testing.T) {
	log := newTree(t, 0)
	cp := log.checkpoint(t, 1)
	secret, public, err := cosign.GenerateMLDSAKey("witness.example/w")
	testkit.OK(t, err)
	signer := testkit.Value(cosign.NewMLDSASigner(secret))(t)
	v := testkit.Value(witness.NewVerifier(public))(t)
	root := testkit.Value(tlog.TreeHash(1, tlog.HashReaderFunc(log.read)))(t)
	for _, at := range []uint64{0, 1} {
		signature := testkit.Value(signer.SignSubtree(at, "example.com/log", 0, 1, root[:]))(t)
		line := "— witness.example/w " + base64.StdEncoding.EncodeToString(append(binary.BigEndian.AppendUint32(nil, signer.KeyHash()), signature...)) + "\n"
		if _, ok := witness.Find(append(bytes.Clone(cp.Signed), line...), v); ok != (at > 0) {
			t.Errorf("with the time %d: %v", at, ok)
		}
	}
}

// A fork and a rollback are told from everything else.
func TestAlarms(t *testing.T) {
	log := newTree(t, 0)
	for i := range byte(6) {
		log.grow(t, i)
	}
	w, client, _ := start(t, log, witnesstest.Ed25519)
	testkit.Value(client.Cosign(t.Context(), 0, log.checkpoint(t, 5)))(t)
	_, err := client.Cosign(t.Context(), 0, log.checkpoint(t, 3))
	if ahead, ok := errors.AsType[*witness.AheadError](err); !ok || ahead.Size != 5 {
		t.Errorf("a smaller tree: %v", err)
	}
	fork := newTree(t, 1)
	fork.signer, fork.vkey = log.signer, log.vkey
	for i := range byte(9) {
		fork.grow(t, i)
	}
	for _, size := range []int64{5, 6, 10} {
		for _, old := range []int64{0, 2, 5} {
			if _, err := client.Cosign(t.Context(), old, fork.checkpoint(t, size)); !errors.Is(err, witness.ErrForked) || fault.KindOf(err) != fault.Defects {
				t.Errorf("a fork of %d entries, old %d: %v", size, old, err)
			}
		}
	}
	if n := w.Size("example.com/log"); n != 5 {
		t.Errorf("the witness has %d", n)
	}
}

// Whatever the witness answers instead of a cosignature is one clear error within the time.
func TestRefusals(t *testing.T) {
	log := newTree(t, 0)
	for i := range byte(4) {
		log.grow(t, i)
	}
	w, client, _ := start(t, log, witnesstest.Ed25519)
	testkit.Value(client.Cosign(t.Context(), 0, log.checkpoint(t, 2)))(t)
	text := func(kind, body string, status int) http.HandlerFunc {
		return func(out http.ResponseWriter, _ *http.Request) {
			out.Header().Set("Content-Type", kind)
			out.WriteHeader(status)
			_, _ = out.Write([]byte(body))
		}
	}
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"down":             {witnesstest.Down, "EOF"},
		"slow":             {witnesstest.Slow, "deadline exceeded"},
		"garbage":          {w.Garbage, "no valid cosignature of the key witness.example/w+"},
		"other checkpoint": {w.Other, "no valid cosignature"},
		"empty":            {text("text/plain", "", 200), "no valid cosignature"},
		"large":            {text("text/plain", strings.Repeat("x\n", 1<<16), 200), "larger than"},
		"400":              {witnesstest.Status(400, "bad \x1b[31m\nproof"), `status 400, it cannot read the request: "bad [31m proof"`},
		"403":              {witnesstest.Status(403, ""), "status 403, it does not trust the ledger's key"},
		"404":              {witnesstest.Status(404, ""), "status 404, it does not know the ledger's origin"},
		"500":              {witnesstest.Status(500, ""), "status 500, Internal Server Error"},
		"redirect": {func(out http.ResponseWriter, r *http.Request) {
			http.Redirect(out, r, w.URL+"/x", http.StatusTemporaryRedirect)
		}, "status 307"},
		"409, its own":     {witnesstest.Conflict(1), "with the size 1, which was sent"},
		"409 twice":        {func(out http.ResponseWriter, r *http.Request) { witnesstest.Conflict(int64(1+w.Asked()%2*2))(out, r) }, "from the size that it said before"},
		"409, no size":     {text("text/plain", "3\n", 409), "without the size"},
		"409, not decimal": {text("text/x.tlog.size", "03\n", 409), "without the size"},
		"409, no newline":  {text("text/x.tlog.size", "3", 409), "without the size"},
		"409, negative":    {text("text/x.tlog.size", "-3\n", 409), "without the size"},
		"409, what it got": {witnesstest.Conflict(2), "which was sent"},
	} {
		w.Answer(tt.answer)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := client.Cosign(ctx, 2, log.checkpoint(t, 4))
		cancel()
		if !errors.Is(err, witness.ErrNotCosigned) || !strings.Contains(err.Error(), tt.want) || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	w.Answer(nil)
	testkit.Value(client.Cosign(t.Context(), 2, log.checkpoint(t, 4)))(t)
	broken := log.checkpoint(t, 5)
	broken.Prove = func(context.Context, int64) (tlog.TreeProof, error) { return nil, errors.New("no hashes") }
	if _, err := client.Cosign(t.Context(), 4, broken); err == nil || err.Error() != "no hashes" {
		t.Errorf("an error of Prove: %v", err)
	}
}

// The witness of the tests itself refuses what tlog-witness says it must.
func TestWitnessRefuses(t *testing.T) {
	log := newTree(t, 0)
	log.grow(t, 1)
	w, client, _ := start(t, log, witnesstest.Ed25519)
	testkit.Value(client.Cosign(t.Context(), 0, log.checkpoint(t, 1)))(t)
	other := newTree(t, 0)
	for name, tt := range map[string]struct {
		body   string
		status int
	}{
		"another key":     {"old 1\n\n" + string(other.checkpoint(t, 1).Signed), 403},
		"another origin":  {"old 1\n\nx\n1\nAAAA\n\n— x AAAA\n", 404},
		"larger old size": {"old 2\n\n" + string(log.checkpoint(t, 1).Signed), 400},
		"no old size":     {"old 01\n\n" + string(log.checkpoint(t, 1).Signed), 400},
		"no proof":        {"old 1\n\n" + string(log.checkpoint(t, 2).Signed), 422},
		"another size":    {"old 0\n\n" + string(log.checkpoint(t, 2).Signed), 409},
		"a wrong hash":    {"old 1\nx\n\n" + string(log.checkpoint(t, 2).Signed), 400},
	} {
		resp, err := http.Post(w.URL+"/add-checkpoint", "text/plain", strings.NewReader(tt.body))
		testkit.OK(t, err)
		_ = resp.Body.Close()
		if resp.StatusCode != tt.status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, tt.status)
		}
	}
}

// Only https is used, and http on loopback; keys must be whole.
func TestNew(t *testing.T) {
	log := newTree(t, 0)
	w, _, v := start(t, log, witnesstest.MLDSA44)
	for _, prefix := range []string{"", "witness.example", "http://witness.example", "ftp://127.0.0.1", "https://u:p@witness.example", "https://w.example/?x=y", "http://10.0.0.1/"} {
		if _, err := witness.New(prefix, v); fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	for _, prefix := range []string{"https://witness.example/a/b", "http://[::1]:8080", "http://localhost"} {
		if _, err := witness.New(prefix, v); err != nil {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	for _, key := range []string{"", "x", "a+00000000+AAAA", "x" + w.Key, w.Key[:len(w.Key)-8], strings.Replace(w.Key, "+", "+0", 1)} {
		if _, err := witness.NewVerifier(key); fault.KindOf(err) != fault.Usage || fault.Hint(err) == "" {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := witness.NewVerifier(log.vkey); err != nil {
		t.Errorf("a key of type 0x01: %v", err)
	}
}

// A certificate that is not trusted is an error, not a question.
func TestTLS(t *testing.T) {
	log := newTree(t, 0)
	server := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	_, _, v := start(t, log, witnesstest.Ed25519)
	client := testkit.Value(witness.New(server.URL, v))(t)
	if _, err := client.Cosign(t.Context(), 0, log.checkpoint(t, 1)); !errors.Is(err, witness.ErrNotCosigned) || !strings.Contains(err.Error(), "certificate") {
		t.Error(err)
	}
}

func FuzzFind(f *testing.F) {
	w, err := witnesstest.Start("w", witnesstest.Ed25519)
	if err != nil {
		f.Fatal(err)
	}
	w.Stop()
	v, err := witness.NewVerifier(w.Key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("example.com/log\n1\nAAAA\n\n— w AAAA\n"))
	f.Add([]byte("\n\n— w " + strings.Repeat("A", 100) + "\n"))
	f.Fuzz(func(t *testing.T, signed []byte) {
		if got, ok := witness.Find(signed, v); ok {
			t.Errorf("a cosignature without the key: %+v", got)
		}
	})
}
