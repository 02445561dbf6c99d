package reconcile_test

import (
	"context"
	"fmt"
	"strings"

	"hsmsign/ledger/reconcile"
	"hsmsign/signer"
)

// A signature that no entry of the ledger explains.
func Example() {
	const trail = `{"Records": [{"eventTime": "2026-03-07T22:36:44Z", "eventSource": "kms.amazonaws.com", "eventName": "Sign",
		"requestID": "8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb", "requestParameters": {"keyId": "alias/mdm-vendor"},
		"resources": [{"ARN": "arn:aws:kms:us-west-2:111122223333:key/0987dcba-09fe-87dc-65ba-ab0987654321"}]}]}`
	log := reconcile.NewLog(reconcile.AWS)
	if err := log.Read(context.Background(), "trail.json", strings.NewReader(trail)); err != nil {
		panic(err)
	}
	ref, err := signer.ParseRef("awskms:///alias/mdm-vendor")
	if err != nil {
		panic(err)
	}
	if err := log.Select(ref); err != nil {
		panic(err)
	}
	report := log.Compare(nil, nil) // with what Ledger.Signings returns for log.Window
	for _, u := range report.Unexplained {
		fmt.Println(u.ID, u.Why)
	}
	// Output: 8d0b35e0-46cf-48b9-be99-bf2ebc9ab9fb no entry has its request id, and no use of the key was open at that time
}
