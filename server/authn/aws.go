package authn

import (
	"context"
	"errors"
	"slices"

	"hsmsign/agent/policy"
	"hsmsign/fault"
	"hsmsign/server/authn/awsiam"
)

// loopbackNames are names of every server, for callers on its own host.
var loopbackNames = []string{"localhost", "127.0.0.1", "::1"}

// aws returns the credential of a bearer value of package awsiam.
func (c Checker) aws(ctx context.Context, value string, conn Connection) (policy.Credential, error) {
	signed, err := awsiam.Decode(value)
	if err != nil {
		return policy.Credential{}, &Refusal{err}
	}
	return c.Signed(ctx, signed, conn, false)
}

// Signed returns the credential of the AWS identity that signed a request; zentral says that it is the request of Zentral's client,
// which names no server. The error is a *Refusal, or wraps awsiam.ErrUnavailable or awsiam.ErrLimited, or is that of the ledger.
func (c Checker) Signed(ctx context.Context, signed awsiam.Signed, conn Connection, zentral bool) (found policy.Credential, err error) {
	if c.AWS == nil {
		return found, refusef("an AWS signature, and no caller has an AWS identity")
	}
	rule := awsiam.Rule{Servers: c.Servers, Zentral: zentral, Source: conn.Remote, Accept: func(id awsiam.Identity) (err error) {
		found, err = c.Policy.AWS(id.Account, id.ARN, id.UniqueID)
		if err == nil && !found.Caller.From(conn.Remote) {
			err = fault.Unauthenticated.Errorf("%s may not use %s from %v", found.Caller.Name, found.Name, conn.Remote)
		}
		return err
	}}
	// A request that was signed for "localhost" could be meant for another host, so only callers on this one can send it.
	if conn.Remote.IsLoopback() {
		rule.Servers = slices.Concat(loopbackNames, rule.Servers)
	}
	if _, err = c.AWS.Verify(ctx, signed, rule); err == nil {
		return found, nil
	}
	if fault.KindOf(err) == fault.Unauthenticated && !errors.As(err, new(*Refusal)) {
		err = &Refusal{err}
	}
	return policy.Credential{}, err
}
