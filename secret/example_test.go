package secret_test

import (
	"context"
	"fmt"
	"os"

	"hsmsign/secret"
)

// A PIN comes from the source that a reference names, and is cleared after use.
func ExampleReader_Read() {
	_ = os.Setenv("EXAMPLE_PIN", "1234")
	reader := secret.Reader{Getenv: os.Getenv}
	pin, err := reader.Read(context.Background(), secret.Source{Label: `PIN of token "mdm"`, From: "env:EXAMPLE_PIN"})
	fmt.Println(len(pin), err)
	clear(pin)

	_, err = reader.Read(context.Background(), secret.Source{Label: `PIN of token "mdm"`, From: "env:NO_SUCH_PIN"})
	fmt.Println(err)
	// Output:
	// 4 <nil>
	// PIN of token "mdm": the environment variable NO_SUCH_PIN is not set
}
