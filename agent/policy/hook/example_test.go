package hook_test

import (
	"context"
	"fmt"
	"time"

	"hsmsign/agent/policy/hook"
	"hsmsign/fault"
)

func Example() {
	program, err := hook.New().Open("/usr/lib/hsmsign/entitled", 5*time.Second)
	if err != nil {
		fmt.Println(err, fault.Hint(err))
		return
	}
	answer, err := program.Ask(context.Background(), []byte(`{"customer":"acme"}`))
	if err != nil {
		fmt.Println("no answer:", err)
		return
	}
	fmt.Println(answer.Allowed(), answer.Line)
}
