package witnesstest_test

import (
	"fmt"

	"golang.org/x/mod/sumdb/note"

	"hsmsign/ledger/witnesstest"
)

// A witness knows the logs whose verifier keys it was started with, and can be told to be down.
func ExampleStart() {
	_, logKey, err := note.GenerateKey(nil, "example.com/log")
	if err != nil {
		fmt.Println(err)
		return
	}
	w, err := witnesstest.Start("witness.example/w1", witnesstest.MLDSA44, logKey)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer w.Stop()
	// Configure the log with w.URL and w.Key, append, then:
	fmt.Println(w.Size("example.com/log"))
	w.Answer(witnesstest.Down)
	// Output: 0
}
