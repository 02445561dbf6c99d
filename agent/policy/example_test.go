package policy_test

import (
	"fmt"
	"time"

	"hsmsign/agent/policy"
	"hsmsign/fault"
)

// A token names a caller, and the caller's role decides about an order.
func Example() {
	secret, entry := policy.NewToken(time.Now().AddDate(0, 0, 90)) // as hsmsign caller token
	p, err := policy.New(
		map[string]policy.CallerConfig{"portal": {Role: "signer", Owners: []string{"ada"}, Tokens: []string{entry}}},
		map[string]policy.RoleConfig{"signer": {May: []string{policy.Sign}, Customers: []string{"acme"}, PerSecond: 5, PerDay: 500, Approvals: policy.NoApprovals()}},
		policy.Environment{})
	if err != nil {
		fmt.Println(err, fault.Hint(err))
		return
	}
	credential, err := p.Token(secret, time.Now())
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, customer := range []string{"acme", "bolt"} {
		_, err := credential.Caller.Check(policy.Order{Customer: customer, Channel: "tls"})
		fmt.Printf("%s: %v\n", customer, err)
	}
	// Output:
	// acme: <nil>
	// bolt: caller portal may not ask for requests of the customer "bolt" [policy.customers]
}
