package isolate_test

import (
	"context"
	"fmt"
	"os"

	"hsmsign/signer"
	"hsmsign/signer/file"
	"hsmsign/signer/isolate"
)

// A program that is its own worker: with the argument "worker" it serves the key that its parent asks for.
func Example() {
	var _ = func(ctx context.Context, ref signer.Ref) error {
		if len(os.Args) > 1 && os.Args[1] == "worker" {
			return isolate.Serve(ctx, os.Args[2:], func(ctx context.Context, ref signer.Ref, open signer.OpenOptions, parent *isolate.Parent) (signer.Signer, error) {
				return file.Backend(file.Options{Warn: parent.Warn}).Open(ctx, ref, open)
			})
		}
		key, err := isolate.Open(ctx, ref, signer.OpenOptions{}, isolate.Config{Command: []string{os.Args[0], "worker"}, Lanes: 4})
		if err != nil {
			return err
		}
		defer func() { _ = key.Close() }()
		fmt.Println(key.Stats())
		return nil
	}
	// Output:
}
