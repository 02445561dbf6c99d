package mdmcert_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"hsmsign/keystore"
	"hsmsign/lifecycle/mdmcert"
	"hsmsign/signer/file"
)

// A service accepts the order of a client and encrypts its answer, which the client decrypts.
func Example() {
	ctx := context.Background()
	mail := make(chan []byte, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(io.LimitReader(r.Body, mdmcert.MaxOrder+1))
		if err != nil {
			return
		}
		order, apiKey, err := mdmcert.ParseOrder(data)
		if err != nil || apiKey != "secret" {
			_, _ = w.Write(mdmcert.Failure("unknown API key"))
			return
		}
		// request.DecodeCSR(order.CSR), agent.Issue, ...
		attachment, err := mdmcert.Encrypt([]byte("request file"), order.EncryptFor)
		if err != nil {
			_, _ = w.Write(mdmcert.Failure("internal error"))
			return
		}
		mail <- attachment
		_, _ = w.Write(mdmcert.Success())
	}))
	defer server.Close()

	const reference = "file:../../testdata/golden/vendor.key?insecure-mode=allow"
	key := must(keystore.Open(ctx, reference, keystore.Options{}))
	defer func() { _ = key.Close() }()
	recipient := must(mdmcert.NewRecipient(ctx, key, time.Now()))
	service := mdmcert.Service{Address: server.URL, APIKey: "secret"}
	order := mdmcert.Order{CSR: []byte("DER of the CSR"), Email: "mdm@example.com", EncryptFor: recipient}
	if err := service.Send(ctx, order); err != nil {
		panic(err)
	}
	request, err := mdmcert.Decrypt(<-mail, must(file.Export(key)))
	fmt.Println(string(request), err)
	// Output: request file <nil>
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
