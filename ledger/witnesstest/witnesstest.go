// Package witnesstest is a witness of transparency logs (C2SP tlog-witness) for tests: a server on a loopback socket that
// remembers size and root of each log, verifies the log's signature and the consistency proof, and cosigns. It can be told to
// misbehave.
//
// It shares no code with the client that it tests. All methods are safe for concurrent use.
package witnesstest

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/transparency-dev/formats/log"
	cosign "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// Algorithm is that of a witness's cosignatures.
type Algorithm string

// The algorithms of C2SP tlog-cosignature.
const (
	Ed25519 Algorithm = "Ed25519"   // 0x04
	MLDSA44 Algorithm = "ML-DSA-44" // 0x06
)

// Witness is a running witness.
type Witness struct {
	URL string // prefix of its addresses
	Key string // its verifier key

	server *http.Server
	signer note.Signer

	mu     sync.Mutex
	keys   map[string]note.Verifier // of the logs, by origin
	latest map[string]tlog.Tree     // cosigned last, by origin
	asked  int
	answer http.HandlerFunc // instead of an honest one
}

// Start starts a witness for the logs with these verifier keys. The caller stops it.
func Start(name string, algorithm Algorithm, logs ...string) (*Witness, error) {
	w := &Witness{keys: map[string]note.Verifier{}, latest: map[string]tlog.Tree{}}
	if err := w.generate(name, algorithm); err != nil {
		return nil, err
	}
	for _, vkey := range logs {
		if err := w.Trust(vkey); err != nil {
			return nil, err
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.serve)
	w.server = &http.Server{Handler: mux} // #nosec G112 -- for tests on loopback
	w.URL = "http://" + listener.Addr().String()
	go func() { _ = w.server.Serve(listener) }() // it ends with Stop
	return w, nil
}

// generate makes the key pair.
func (w *Witness) generate(name string, algorithm Algorithm) error {
	switch algorithm {
	case Ed25519:
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		plain, err := note.NewEd25519VerifierKey(name, public)
		if err != nil {
			return err
		}
		if w.Key, err = cosign.VKeyToCosignatureV1(plain); err != nil {
			return err
		}
		secret := base64.StdEncoding.EncodeToString(append([]byte{4}, private.Seed()...))
		w.signer, err = cosign.NewSignerForCosignatureV1("PRIVATE+KEY+" + name + "+" + strings.Split(w.Key, "+")[1] + "+" + secret)
		return err
	case MLDSA44:
		secret, public, err := cosign.GenerateMLDSAKey(name)
		if err != nil {
			return err
		}
		w.Key = public
		w.signer, err = cosign.NewSignerForCosignatureV1(secret)
		return err
	}
	return fmt.Errorf("unknown algorithm %q", algorithm)
}

// Stop ends the witness and its connections. What it remembers is lost.
func (w *Witness) Stop() { _ = w.server.Close() }

// Trust adds a log by its verifier key.
func (w *Witness) Trust(vkey string) error {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.keys[v.Name()] = v
	return nil
}

// Size returns how many entries of a log the witness has cosigned.
func (w *Witness) Size(origin string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest[origin].N
}

// Forget removes what the witness remembers of a log, as a witness that lost its disk.
func (w *Witness) Forget(origin string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.latest, origin)
}

// Asked returns how many requests the witness has had.
func (w *Witness) Asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// Answer replaces the answers of the witness, for example with Down; nil: it is honest again. A replaced answer changes nothing
// that the witness remembers.
func (w *Witness) Answer(answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answer = answer
}

// Down closes the connection without an answer.
func Down(out http.ResponseWriter, _ *http.Request) {
	if conn, _, err := http.NewResponseController(out).Hijack(); err == nil {
		_ = conn.Close() // there is nothing to say
	}
}

// Slow does not answer until the client leaves.
func Slow(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // the server sees that the client leaves only after the body
	<-r.Context().Done()
}

// Late answers honestly after a time.
func (w *Witness) Late(d time.Duration) http.HandlerFunc {
	return func(out http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
			w.honest(out, r)
		case <-r.Context().Done():
		}
	}
}

// Status answers with a status and a text.
func Status(status int, text string) http.HandlerFunc {
	return func(out http.ResponseWriter, _ *http.Request) { http.Error(out, text, status) }
}

// Conflict answers 409 with a size.
func Conflict(size int64) http.HandlerFunc {
	return func(out http.ResponseWriter, _ *http.Request) { conflict(out, size) }
}

func conflict(out http.ResponseWriter, size int64) {
	out.Header().Set("Content-Type", "text/x.tlog.size")
	out.WriteHeader(http.StatusConflict)
	_, _ = fmt.Fprintln(out, size) // the client may have left
}

// Garbage answers with a signature line of the witness's key whose signature is random.
func (w *Witness) Garbage(out http.ResponseWriter, _ *http.Request) {
	signature := make([]byte, 8+64)
	_, _ = rand.Read(signature) // never fails (Go 1.24)
	_, _ = out.Write(line(w.signer, signature))
}

// Other cosigns another checkpoint than the one that was sent: one entry more, with another root.
func (w *Witness) Other(out http.ResponseWriter, r *http.Request) {
	_, _, signed, err := parse(r.Body)
	var c log.Checkpoint
	if err == nil {
		_, err = c.Unmarshal(signed)
	}
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	c.Size++
	c.Hash[0] ^= 1
	signature, err := w.signer.Sign(c.Marshal())
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = out.Write(line(w.signer, signature)) // the client may have left
}

// line returns a signature line of a note.
func line(signer note.Signer, signature []byte) []byte {
	id := binary.BigEndian.AppendUint32(nil, signer.KeyHash())
	return fmt.Appendf(nil, "— %s %s\n", signer.Name(), base64.StdEncoding.EncodeToString(append(id, signature...)))
}

func (w *Witness) serve(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.asked++
	answer := w.answer
	w.mu.Unlock()
	if answer != nil {
		answer(out, r)
		return
	}
	w.honest(out, r)
}

// honest reads a request and answers as tlog-witness demands.
func (w *Witness) honest(out http.ResponseWriter, r *http.Request) {
	old, proof, signed, err := parse(r.Body)
	if err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock() // check and update are one step
	w.add(out, old, proof, signed)
}

// add checks a checkpoint as tlog-witness demands, remembers and cosigns it.
func (w *Witness) add(out http.ResponseWriter, old int64, proof tlog.TreeProof, signed []byte) {
	origin, _, _ := strings.Cut(string(signed), "\n")
	verifier := w.keys[origin]
	if verifier == nil {
		http.Error(out, "unknown origin", http.StatusNotFound)
		return
	}
	opened, err := note.Open(signed, note.VerifierList(verifier))
	if err != nil {
		http.Error(out, "no trusted signature", http.StatusForbidden)
		return
	}
	var c log.Checkpoint
	if _, err := c.Unmarshal([]byte(opened.Text)); err != nil || len(c.Hash) != tlog.HashSize || uint64(old) > c.Size { // #nosec G115 -- not negative
		http.Error(out, "no checkpoint, or the old size is larger", http.StatusBadRequest)
		return
	}
	latest, tree := w.latest[origin], tlog.Tree{N: int64(c.Size), Hash: tlog.Hash(c.Hash)} // #nosec G115 -- a tree of a test
	switch {
	case old != latest.N, old == tree.N && old > 0 && latest.Hash != tree.Hash:
		conflict(out, latest.N)
		return
	case (old == 0 || old == tree.N) && len(proof) > 0, old > 0 && tlog.CheckTree(proof, tree.N, tree.Hash, old, latest.Hash) != nil:
		http.Error(out, "the proof does not verify", http.StatusUnprocessableEntity)
		return
	}
	signature, err := w.signer.Sign([]byte(opened.Text))
	if err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
		return
	}
	w.latest[origin] = tree
	_, _ = out.Write(line(w.signer, signature)) // the client may have left
}

// parse reads the body of add-checkpoint.
func parse(body io.Reader) (old int64, proof tlog.TreeProof, signed []byte, err error) {
	in := bufio.NewReader(io.LimitReader(body, 128<<10))
	next := func() (line string) {
		if err == nil {
			line, err = in.ReadString('\n')
		}
		return strings.TrimSuffix(line, "\n")
	}
	first := next()
	if _, scanErr := fmt.Sscanf(first, "old %d", &old); err == nil && (scanErr != nil || old < 0 || first != fmt.Sprintf("old %d", old)) {
		return 0, nil, nil, errors.New("no old size")
	}
	for text := next(); text != "" && err == nil; text = next() {
		var hash tlog.Hash
		if hash, err = tlog.ParseHash(text); err == nil {
			proof = append(proof, hash)
		}
	}
	if err == nil && len(proof) > 63 {
		err = errors.New("more than 63 hashes")
	}
	if err == nil {
		signed, err = io.ReadAll(in)
	}
	return old, proof, bytes.Clone(signed), err
}
