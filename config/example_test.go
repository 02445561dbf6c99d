package config_test

import (
	"fmt"
	"os"

	"hsmsign/config"
	"hsmsign/fault"
)

func Example() {
	path, where, err := config.Find("", os.Getenv, os.UserConfigDir)
	if err != nil || path == "" {
		return // no config file
	}
	c, err := config.Load(path)
	if err != nil {
		fmt.Println(err, fault.Hint(err))
		return
	}
	fmt.Println(where, c.Key)
}

func ExampleParse() {
	_, err := config.Parse("hsmsign.yaml", []byte("key: file:vendor.key\nchian: [ wwdr.pem ]\n"))
	fmt.Println(err)
	fmt.Println(fault.Hint(err))
	// Output:
	// hsmsign.yaml:2:1: unknown key "chian"
	// did you mean "chain"?
}
