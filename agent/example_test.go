package agent_test

import (
	"context"
	"fmt"
	"os"

	"hsmsign/agent"
	"hsmsign/keystore"
)

// From a customer's CSR to the file that the customer uploads to Apple.
func Example() {
	ctx := context.Background()
	store := keystore.New(keystore.Options{})
	key, err := store.Parse("file:../testdata/golden/vendor.key?insecure-mode=allow")
	if err != nil {
		fmt.Println(err)
		return
	}
	vendor, err := agent.NewVendor(ctx, agent.Config{
		Key:          key,
		Certificates: agent.CertificateFiles(store, "../testdata/golden/chain.pem", nil, []string{"../testdata/golden/root.pem"}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer vendor.Close()

	csr, err := os.ReadFile("../testdata/golden/customer.csr")
	if err != nil {
		fmt.Println(err)
		return
	}
	prepared, err := vendor.Prepare(ctx, agent.Caller{}, agent.Order{CSR: csr, Customer: "acme"})
	if err != nil {
		fmt.Println(err) // what is wrong with the CSR
		return
	}
	issued, err := vendor.Issue(ctx, prepared)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(prepared.Order.Customer, len(issued.Signature), prepared.Matches(issued.Request))
	// Output: acme 256 true
}
