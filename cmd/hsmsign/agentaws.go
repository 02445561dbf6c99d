//go:build !nocloud

package main

import (
	"context"

	"hsmsign/client/awsiam"
)

// awsBearer returns what signs requests to a server with the AWS credentials of this machine.
func awsBearer(ctx context.Context, server string) (func(ctx context.Context) (string, error), error) {
	credentials, err := awsiam.New(ctx, awsiam.Config{Server: server})
	if err != nil {
		return nil, err
	}
	return credentials.Bearer, nil
}
