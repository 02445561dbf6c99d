package vault

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hsmsign/signer"
	"hsmsign/signer/kms"
)

// keep renews a token until it is replaced, cannot be renewed any more, or the session is closed.
func (i *identity) keep(t *token) {
	if !t.known { // it came from a source
		var info tokenInfo
		if !i.wait(lookupAfter) || i.background(lookup(t, &info)) != nil {
			return // its next use reports what is wrong
		}
		next := t.withLease(seconds(info.TTL), info.Renewable)
		if !i.current.CompareAndSwap(t, next) {
			return
		}
		if t = next; t.lease > 0 && !t.renewable {
			i.last(t)
			return
		}
	}
	for t.lease > 0 {
		if !i.wait(t.renewIn()) || i.current.Load() != t {
			return
		}
		if !t.renewable {
			break
		}
		next, err := i.renew(t)
		if errors.Is(err, signer.ErrUnavailable) && time.Until(t.until) > minRenewal {
			continue
		}
		if err != nil {
			break
		}
		enough := next.lease == 0 || 2*next.lease >= t.full // less is given near the token's maximum TTL
		if !i.current.CompareAndSwap(t, next) {
			return
		}
		if t = next; !enough {
			break
		}
	}
	if t.lease > 0 {
		i.last(t)
	}
}

// renew renews a token.
func (i *identity) renew(t *token) (*token, error) {
	var next *token
	r := request{path: "/v1/auth/token/renew-self", token: t.value, body: struct{}{}, decode: func(a answer) error {
		if a.Auth == nil {
			return fmt.Errorf("%w: the renewal has no lease", errDamaged)
		}
		next = t.withLease(a.Auth.lease(), a.Auth.Renewable)
		return nil
	}}
	return next, i.background(r)
}

// last deals with a token that will not be renewed again: a login method logs in while it is still valid.
func (i *identity) last(t *token) {
	if i.login.method == withToken {
		if i.Warn != nil {
			i.Warn(fmt.Sprintf("Vault: the token expires in %v and cannot be renewed", time.Until(t.until).Round(time.Second)))
		}
		return
	}
	_, _ = kms.Do(i.life, i.caller, func(ctx context.Context) (struct{}, error) { // the next use reports an error
		if err := i.lock(ctx); err != nil {
			return struct{}{}, err
		}
		defer i.unlock()
		if i.current.Load() != t {
			return struct{}{}, nil
		}
		_, err := i.obtain(ctx)
		return struct{}{}, err
	})
}

// background sends a request that no caller waits for, with retries.
func (i *identity) background(r request) error {
	_, err := kms.Do(i.life, i.caller, func(ctx context.Context) (struct{}, error) { return struct{}{}, i.send(ctx, r) })
	return err
}

// wait waits. It returns false, at once, if the session is closed first.
func (i *identity) wait(d time.Duration) bool {
	if i.sleep != nil {
		return i.sleep(i.life, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-i.life.Done():
		return false
	case <-timer.C:
		return true
	}
}
