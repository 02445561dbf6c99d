//go:build nocloud

package main

import (
	"context"

	"hsmsign/fault"
)

// awsBearer is an error: this build has no AWS SDK.
func awsBearer(context.Context, string) (func(ctx context.Context) (string, error), error) {
	return nil, fault.Usage.Errorf("this build has no AWS SDK, it was made with -tags nocloud").Fix("use another build, or a token or a client certificate for the service")
}
