package client

import (
	"context"
	"net/http"
	"net/url"

	"hsmsign/api"
	"hsmsign/fault"
)

// typeProfile is the media type of configuration profiles.
const typeProfile = "application/x-apple-aspen-config"

// SignProfile has the service sign a configuration profile (XML, not signed). The result has the base64 of the signed profile in Signed. Each call
// makes a signature, so the request is repeated only if the service has not received it.
func (c *Client) SignProfile(ctx context.Context, profile []byte, order api.ProfileOrder) (*api.ProfileSignResult, error) {
	var result api.ProfileSignResult
	query := url.Values{}
	for name, value := range map[string]string{"customer": order.Customer, "profile": order.Profile} {
		if value != "" {
			query.Set(name, value)
		}
	}
	x := exchange{method: http.MethodPost, path: "/v1/profiles", query: query, body: profile, bodyType: typeProfile, want: typeJSON}
	if err := c.json(ctx, x, &result); err != nil {
		return nil, err
	}
	if result.Signed == "" {
		return nil, fault.Unavailable.Errorf("the answer of the service has no signed profile").Fix("check that the address is that of hsmsign serve")
	}
	return &result, nil
}
