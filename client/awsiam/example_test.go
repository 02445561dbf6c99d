package awsiam_test

import (
	"context"
	"fmt"

	"hsmsign/client"
	"hsmsign/client/awsiam"
)

func Example() {
	credentials, err := awsiam.New(context.Background(), awsiam.Config{Server: "sign.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := client.New(client.Config{URL: "https://sign.example.com:8443", Bearer: credentials.Bearer})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	fmt.Println(c)
	// Output: https://sign.example.com:8443
}
