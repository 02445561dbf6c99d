package server

import (
	"net/http"
	"slices"

	"hsmsign/chain"
	"hsmsign/lifecycle/profile"
	"hsmsign/request"
)

// maxJSON is the size limit of a JSON body, in bytes; one with a CSR may be longer by the CSR's limit and its escapes.
const maxJSON = 16 << 10

// newRoutes returns the routes of the API, which openapi.yaml describes, of the drop-ins, which docs/dropin.md does: they are wire forms
// of other products, and no part of the API; and those of the console, which browsers read.
func (s *Server) newRoutes() *http.ServeMux {
	mux := http.NewServeMux()
	for _, rt := range slices.Concat(routes(), dropIns(), consoleRoutes(), pages(), recordPages()) {
		mux.Handle(rt.pattern, rt)
	}
	return mux
}

// routes returns the routes.
func routes() []*route {
	return []*route{
		{pattern: "GET /livez", open: true, do: (*call).livez},
		{pattern: "GET /readyz", open: true, do: (*call).readyz},
		{pattern: "GET /v1/openapi.yaml", do: (*call).openAPI},
		{pattern: "POST /v1/requests", body: 2*request.MaxCSR + maxJSON, rated: true, do: (*call).sign},
		{pattern: "GET /v1/requests", do: (*call).listRequests},
		{pattern: "GET /v1/requests/{id}", do: (*call).showRequest},
		{pattern: "GET /v1/pending", do: (*call).listPending},
		{pattern: "POST /v1/requests/{id}/approve", body: maxJSON, fresh: freshStrong, do: (*call).approve},
		{pattern: "POST /v1/requests/{id}/reject", body: maxJSON, fresh: freshStrong, do: (*call).reject},
		{pattern: "POST /v1/profiles", body: profile.MaxSize, rated: true, do: (*call).signProfile},
		{pattern: "POST /v1/verify", body: request.MaxRequest, do: (*call).verify},
		{pattern: "GET /v1/vendor", do: (*call).vendor},
		{pattern: "GET /v1/status", do: (*call).status},
		{pattern: "GET /v1/me", do: (*call).me},
		{pattern: "GET /v1/due", do: (*call).listDue},
		{pattern: "GET /v1/calendar", do: (*call).calendar},
		{pattern: "GET /v1/customers", do: (*call).listCustomers},
		{pattern: "POST /v1/customers", body: maxJSON, fresh: freshRecent, do: (*call).addCustomer},
		{pattern: "GET /v1/customers/{id}", do: (*call).showCustomer},
		{pattern: "PATCH /v1/customers/{id}", body: maxJSON, fresh: freshRecent, do: (*call).editCustomer},
		{pattern: "POST /v1/customers/{id}/push-certificates", body: chain.MaxFile, fresh: freshRecent, do: (*call).attach},
		{pattern: "GET /v1/entries", do: (*call).listEntries},
		{pattern: "GET /v1/entries/{index}", do: (*call).showEntry},
		{pattern: "GET /v1/entries/{index}/proof", do: (*call).entryProof},
		{pattern: "GET /v1/ledger", do: (*call).ledgerStatus},
		{pattern: "GET /v1/export", do: (*call).export},
		{pattern: "GET /v1/checkpoint", do: (*call).checkpoint},
		{pattern: "GET /v1/proof/{id}", do: (*call).proof},
		{pattern: "POST /v1/freeze", body: maxJSON, do: (*call).freeze},
		{pattern: "POST /v1/unfreeze", body: maxJSON, do: (*call).unfreeze},
		{pattern: "POST /v1/console/login", on: hasConsole, do: (*call).consoleLogin},
	}
}
