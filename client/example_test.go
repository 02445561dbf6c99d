package client_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"os"

	"hsmsign/api"
	"hsmsign/client"
	"hsmsign/fault"
	"hsmsign/secret"
)

// A program of the vendor signs with a client certificate.
func ExampleNew() {
	cert, err := tls.LoadX509KeyPair("ci.pem", "ci.key")
	if err != nil {
		log.Fatal(err)
	}
	c, err := client.New(client.Config{URL: "https://sign.example.com:8443", Certificate: &cert})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	csr, err := os.ReadFile("acme.csr")
	if err != nil {
		log.Fatal(err)
	}
	result, err := c.Sign(context.Background(), api.SignOrder{CSR: string(csr), Customer: "acme"})
	if err != nil {
		log.Printf("%v; %s", err, fault.Hint(err))
		os.Exit(fault.KindOf(err).Exit())
	}
	_ = os.WriteFile("acme.req", []byte(result.Request), 0o600)
}

// A token is read from a file, which may be replaced while the program runs.
func ExampleConfig_token() {
	var secrets secret.Reader
	c, err := client.New(client.Config{URL: "http://127.0.0.1:8080", Token: func(ctx context.Context) ([]byte, error) {
		return secrets.Read(ctx, secret.Source{Label: "token", From: "file:/run/secrets/hsmsign-token"})
	}})
	if err != nil {
		log.Fatal(err)
	}
	for r, err := range c.Requests(context.Background(), client.Query{Customer: "acme", Kind: "issued"}) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(r.Changed, r.ID)
	}
}

// On the machine of the service a Unix socket needs no credentials.
func ExampleClient_Freeze() {
	c, err := client.New(client.Config{URL: "unix:///run/hsmsign/agent.sock"})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := c.Freeze(context.Background(), api.FreezeOrder{Scope: "all", Reason: "the HSM is examined"}); err != nil {
		log.Fatal(err)
	}
}
