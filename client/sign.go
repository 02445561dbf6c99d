package client

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"

	"hsmsign/api"
	"hsmsign/fault"
)

// Sign has the service sign a CSR. The result has the request in Request, the status signed, or stored if it was issued before,
// and the receipt if the order asks for one. The error is a *Waiting if other people must approve it first.
func (c *Client) Sign(ctx context.Context, order api.SignOrder) (*api.SignResult, error) {
	result, seen, err := c.order(ctx, order, nil)
	if err != nil {
		return nil, err
	}
	if seen.status == http.StatusAccepted || result.Status == api.StatusPending {
		return nil, newWaiting(result.RequestID, result.Approval, seen)
	}
	if result.Request == "" || order.Receipt && result.Receipt == "" {
		return nil, fault.Unavailable.Errorf("the answer of the service has no request or receipt").Fix("check that the address is that of hsmsign serve")
	}
	return result, nil
}

// Check applies every rule to an order. Nothing is signed or recorded. The status is allowed, or stored if the request was issued
// before, or pending if other people must approve it first.
func (c *Client) Check(ctx context.Context, order api.SignOrder) (*api.SignResult, error) {
	result, _, err := c.order(ctx, order, url.Values{"check": {"1"}})
	return result, err
}

func (c *Client) order(ctx context.Context, order api.SignOrder, query url.Values) (*api.SignResult, *seen, error) {
	var result api.SignResult
	x, err := change(http.MethodPost, "/v1/requests", order)
	if err != nil {
		return nil, nil, err
	}
	x.query, x.again, x.seen = query, true, &seen{} // the service signs once
	x.states = []int{http.StatusAccepted}
	if err := c.json(ctx, x, &result); err != nil {
		return nil, nil, err
	}
	return &result, x.seen, nil
}

// Verify has the service verify a Push Certificate Request, as hsmsign verify does.
func (c *Client) Verify(ctx context.Context, request []byte) (*api.VerifyResult, error) {
	var result api.VerifyResult
	x := exchange{method: http.MethodPost, path: "/v1/verify", body: request, bodyType: typeFile, want: typeJSON, again: true}
	if err := c.json(ctx, x, &result); err != nil {
		return nil, err
	}
	return &result, nil
}

// json sends a request whose answer is a JSON value.
func (c *Client) json(ctx context.Context, x exchange, v any) error {
	return c.call(ctx, x, func(body io.Reader) error {
		data, err := readAll(body, maxAnswer)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, v); err != nil {
			return fault.Unavailable.Errorf("the answer of the service cannot be read: %s", fault.Clip(err.Error(), 128)).
				Fix("check that the address is that of hsmsign serve, of a version with this API")
		}
		return nil
	})
}

// get returns the exchange of a JSON value.
func get(path string, query url.Values) exchange {
	return exchange{method: http.MethodGet, path: path, query: query, want: typeJSON, again: true}
}

// change returns the exchange of a JSON body.
func change(method, path string, v any) (exchange, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return exchange{}, err
	}
	return exchange{method: method, path: path, body: data, bodyType: typeJSON, want: typeJSON}, nil
}

// bytes sends a request whose answer is a file.
func (c *Client) bytes(ctx context.Context, path, want string) (data []byte, err error) {
	x := exchange{method: http.MethodGet, path: path, want: want, again: true}
	err = c.call(ctx, x, func(body io.Reader) error {
		data, err = readAll(body, maxAnswer)
		return err
	})
	return data, err
}
