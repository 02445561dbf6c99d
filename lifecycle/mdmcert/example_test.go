package mdmcert_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"time"

	"hsmsign/internal/testkit"
	"hsmsign/lifecycle/mdmcert"
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

	private := testkit.Must(rsa.GenerateKey(rand.Reader, 2048))
	recipient := testkit.Must(mdmcert.NewRecipient(ctx, testkit.NewSigner(private), time.Now())) // any signer.Signer
	service := mdmcert.Service{Address: server.URL, APIKey: "secret"}
	order := mdmcert.Order{CSR: []byte("DER of the CSR"), Email: "mdm@example.com", EncryptFor: recipient}
	if err := service.Send(ctx, order); err != nil {
		panic(err)
	}
	request, err := mdmcert.Decrypt(<-mail, private)
	fmt.Println(string(request), err)
	// Output: request file <nil>
}
