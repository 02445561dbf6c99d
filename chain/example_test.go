package chain_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"hsmsign/chain"
	"hsmsign/fault"
)

// Build a chain from the files of a vendor. The trust root is that of a test PKI.
func ExampleBuild() {
	certs := must(chain.Parse(must(os.ReadFile("../testdata/golden/chain.pem"))))
	roots := must(chain.Parse(must(os.ReadFile("../testdata/golden/root.pem"))))
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	c := must(chain.Build(certs, nil, chain.Options{TrustRoots: roots, Now: now}))
	fmt.Println(c.Leaf().Subject.CommonName, len(c.Certs))

	_, err := chain.Build(certs, nil, chain.Options{Now: now}) // Apple's roots only
	fmt.Println(err)
	fmt.Println(fault.Hint(err))
	// Output:
	// MDM Vendor: Example MDM 3
	// the chain ends at "hsmsign TEST Root CA", which is neither Apple's root nor one of the given trust roots
	// use a certificate that Apple issued; for a test PKI name its root as a trust root
}

func ExampleFetch() {
	fetched := must(chain.Fetch(context.Background(), chain.FetchOptions{Names: []string{"WWDR G3", "Apple Root CA"}}))
	for _, f := range fetched {
		fmt.Println(f.Pin.Name, f.Cert.NotAfter)
	}
}

// must returns v, and ends the program on an error.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
