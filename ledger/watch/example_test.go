package watch_test

import (
	"context"
	"fmt"

	"hsmsign/ledger/watch"
)

func Example() {
	target, err := watch.Parse("https://MDM.example.com/enroll")
	fmt.Println(target, err)
	_, err = watch.Parse("169.254.169.254:80") // the metadata service of a cloud
	fmt.Println(err)
	for _, result := range watch.Read(context.Background(), nil) {
		fmt.Println(result.Target, len(result.Certs), result.Err)
	}
	// Output:
	// mdm.example.com:443 <nil>
	// a connection to this address is not allowed: 169.254.169.254 is in 169.254.0.0/16
}
