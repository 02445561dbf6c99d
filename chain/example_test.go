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
	var files [2][]byte
	for i, name := range []string{"chain.pem", "root.pem"} {
		data, err := os.ReadFile("../testdata/golden/" + name)
		if err != nil {
			panic(err)
		}
		files[i] = data
	}
	certs, err := chain.Parse(files[0])
	if err != nil {
		panic(err)
	}
	roots, err := chain.Parse(files[1])
	if err != nil {
		panic(err)
	}
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	c, err := chain.Build(certs, nil, chain.Options{TrustRoots: roots, Now: now})
	if err != nil {
		panic(err)
	}
	fmt.Println(c.Leaf().Subject.CommonName, len(c.Certs))

	_, err = chain.Build(certs, nil, chain.Options{Now: now}) // Apple's roots only
	fmt.Println(err)
	fmt.Println(fault.Hint(err))
	// Output:
	// MDM Vendor: Example MDM 3
	// the chain ends at "hsmsign TEST Root CA", which is neither Apple's root nor one of the given trust roots
	// use a certificate that Apple issued; for a test PKI name its root as a trust root
}

func ExampleFetch() {
	fetched, err := chain.Fetch(context.Background(), chain.FetchOptions{Names: []string{"WWDR G3", "Apple Root CA"}})
	if err != nil {
		panic(err)
	}
	for _, f := range fetched {
		fmt.Println(f.Pin.Name, f.Cert.NotAfter)
	}
}
