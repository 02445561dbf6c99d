package server

import (
	"net/http"
	"slices"
	"strings"

	"hsmsign/agent"
	"hsmsign/agent/policy"
	"hsmsign/api"
	"hsmsign/fault"
)

// typeProfile is the media type of configuration profiles, signed or not.
const typeProfile = "application/x-apple-aspen-config"

// profileTypes are the types of a body that is a profile; as rawTypes.
var profileTypes = []string{"", typeProfile, "application/xml", "text/xml", "application/octet-stream", "text/plain", "application/x-www-form-urlencoded"}

// signProfile answers POST /v1/profiles: the signed profile itself, or JSON.
func (c *call) signProfile() error {
	query := c.r.URL.Query()
	if !slices.Contains(profileTypes, c.mediaType()) {
		return fault.WrongType.Errorf("the body has the type %q", fault.Clip(c.mediaType(), 64)).Fix("send the profile itself, with the type " + typeProfile)
	}
	if err := onlyQuery(query, "customer", "profile"); err != nil {
		return err
	}
	if !c.cred.Caller.Role.Allows(policy.Profiles) {
		return c.forbidden("ask for signatures of profiles")
	}
	identity, err := c.profileSigner(query.Get("profile"))
	if err != nil {
		return err
	}
	data, err := c.body()
	if err != nil {
		return err
	}
	order := agent.ProfileOrder{Profile: data, Customer: query.Get("customer")}
	if order.Customer == "" {
		order.Customer = c.cred.Caller.Customer
	}
	leave, err := c.turn()
	if err != nil {
		return err
	}
	signed, err := identity.Sign(c.r.Context(), c.who, order)
	leave()
	if err != nil {
		return err
	}
	c.request = signed.RequestID
	if c.wantsJSON() {
		result := api.NewProfileSignResult(signed.Profile, signed.File, identity.Chain())
		result.Customer, result.RequestID = order.Customer, signed.RequestID
		return c.json(http.StatusOK, result)
	}
	c.w.Header().Set("Content-Type", typeProfile)
	c.w.Header().Set("Content-Disposition", `attachment; filename="`+signed.RequestID+`.mobileconfig"`)
	c.send(http.StatusOK, signed.File)
	return nil
}

// profileSigner returns the identity of a name; "": the active one, or the only one.
func (c *call) profileSigner(name string) (*agent.ProfileSigner, error) {
	if name == "" {
		name = c.state.Profile
	}
	signer := c.state.Profiles[name]
	if signer == nil {
		return nil, fault.NotFound.Errorf("there is no identity %q that signs profiles", fault.Clip(name, 64)).
			Fix(strings.TrimSuffix("name one with ?profile=NAME: "+strings.Join(c.state.profileNames(), ", "), ": "))
	}
	return signer, nil
}
