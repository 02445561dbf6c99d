package client

import (
	"context"
	"net/http"
	"net/url"

	"hsmsign/api"
)

// AddCustomer adds a customer, which needs a name.
func (c *Client) AddCustomer(ctx context.Context, customer api.CustomerChange) (*api.Customer, error) {
	return changed[api.Customer](ctx, c, http.MethodPost, "/v1/customers", customer)
}

// EditCustomer changes what is set of a customer.
func (c *Client) EditCustomer(ctx context.Context, id string, customer api.CustomerChange) (*api.Customer, error) {
	return changed[api.Customer](ctx, c, http.MethodPatch, "/v1/customers/"+url.PathEscape(id), customer)
}

// Attach records the push certificate that Apple issued for a customer; certificate is PEM or DER.
func (c *Client) Attach(ctx context.Context, id string, certificate []byte) (*api.Certificate, error) {
	var v api.Certificate
	x := exchange{
		method: http.MethodPost, path: "/v1/customers/" + url.PathEscape(id) + "/push-certificates", body: certificate, bodyType: typeFile, want: typeJSON,
	}
	if err := c.json(ctx, x, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

// Freeze stops signing for what the order names, and returns everything that is frozen then.
func (c *Client) Freeze(ctx context.Context, order api.FreezeOrder) ([]api.Freeze, error) {
	return c.changeFreeze(ctx, "/v1/freeze", order)
}

// Unfreeze ends a freeze, and returns everything that is frozen then. The error is a *Waiting if other people must approve it.
func (c *Client) Unfreeze(ctx context.Context, order api.FreezeOrder) ([]api.Freeze, error) {
	return c.changeFreeze(ctx, "/v1/unfreeze", order)
}

func changed[T any](ctx context.Context, c *Client, method, path string, body any) (*T, error) {
	x, err := change(method, path, body)
	if err != nil {
		return nil, err
	}
	var v T
	if err := c.json(ctx, x, &v); err != nil {
		return nil, err
	}
	return &v, nil
}

// ConsoleLogin returns a link that signs the caller in to the console of the service, once. The service makes it at its Unix socket only.
func (c *Client) ConsoleLogin(ctx context.Context) (*api.ConsoleLogin, error) {
	var v api.ConsoleLogin
	if err := c.json(ctx, exchange{method: http.MethodPost, path: "/v1/console/login", want: typeJSON}, &v); err != nil {
		return nil, err
	}
	return &v, nil
}
