package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"hsmsign/api"
	"hsmsign/fault"
	"hsmsign/internal/testkit"
	"hsmsign/ledger/record"
)

// document is openapi.yaml.
func document(t *testing.T) *openapi3.T {
	t.Helper()
	doc := testkit.Value(openapi3.NewLoader().LoadFromData(openapi))(t)
	testkit.OK(t, doc.Validate(t.Context(), openapi3.EnableExamplesValidation(), openapi3.EnableSchemaPatternValidation()))
	if !doc.IsOpenAPI31OrLater() {
		t.Fatalf("OpenAPI %s", doc.OpenAPI)
	}
	return doc
}

// operations returns the operations of the document by their pattern: "GET /v1/me".
func operations(doc *openapi3.T) map[string]*openapi3.Operation {
	all := map[string]*openapi3.Operation{}
	for path, item := range doc.Paths.Map() {
		for method, operation := range item.Operations() {
			all[method+" "+path] = operation
		}
	}
	return all
}

// TestOpenAPIRoutes: the operations of the document are the routes, with their limits, and the rows of docs/api.md are, too.
func TestOpenAPIRoutes(t *testing.T) {
	doc := document(t)
	inDocument := slices.Sorted(maps.Keys(operations(doc)))
	var inCode []string
	for _, rt := range routes() {
		inCode = append(inCode, rt.pattern)
	}
	slices.Sort(inCode)
	if !slices.Equal(inCode, inDocument) {
		t.Errorf("routes %q\noperations %q", inCode, inDocument)
	}
	text := string(testkit.Value(os.ReadFile(filepath.Join("..", "docs", "api.md")))(t))
	var inTable []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /\\S+)` \\|").FindAllStringSubmatch(text, -1) {
		inTable = append(inTable, row[1])
	}
	slices.Sort(inTable)
	if !slices.Equal(inCode, inTable) {
		t.Errorf("routes %q\nrows of docs/api.md %q", inCode, inTable)
	}
	for _, rt := range routes() {
		operation, limit := operations(doc)[rt.pattern], strconv.FormatInt(rt.body, 10)+" bytes"
		switch {
		case operation == nil:
		case rt.body == 0 != (operation.RequestBody == nil):
			t.Errorf("%s: a body of %s", rt.pattern, limit)
		case rt.body > 0 && (!strings.Contains(operation.RequestBody.Value.Description, limit) || !strings.Contains(text, limit)):
			t.Errorf("%s: openapi.yaml or docs/api.md does not say that the limit is %s", rt.pattern, limit)
		}
		if operation != nil && rt.open != (operation.Security != nil && len(*operation.Security) == 0) {
			t.Errorf("%s: security", rt.pattern)
		}
	}
	ids := map[string]string{}
	for pattern, operation := range operations(doc) {
		if other := ids[operation.OperationID]; other != "" || operation.OperationID == "" || operation.Summary == "" {
			t.Errorf("%s: operationId %q is that of %q, or it has no summary", pattern, operation.OperationID, other)
		}
		ids[operation.OperationID] = pattern
	}
}

// shapes are the Go types of the schemas.
var shapes = map[string]any{
	"Problem": api.Problem{}, "Error": api.Error{}, "Finding": fault.Finding{}, "Certificate": api.Certificate{}, "CSR": api.CSR{}, "SignOrder": api.SignOrder{},
	"SignResult": api.SignResult{}, "Request": api.Request{}, "RequestList": api.List[api.Request]{}, "VerifyResult": api.VerifyResult{}, "ProfileSignResult": api.ProfileSignResult{}, "Vendor": api.Vendor{},
	"VendorList": api.List[api.Vendor]{}, "ServiceStatus": api.ServiceStatus{}, "Replica": api.Replica{}, "LedgerHead": api.LedgerHead{}, "Freeze": api.Freeze{},
	"FreezeOrder": api.FreezeOrder{}, "FreezeList": api.List[api.Freeze]{}, "Me": api.Me{}, "ConsoleLogin": api.ConsoleLogin{}, "Due": api.LedgerDue{}, "DueList": api.List[api.LedgerDue]{},
	"Customer": api.Customer{}, "CustomerList": api.List[api.Customer]{}, "CustomerChange": api.CustomerChange{}, "Entry": api.LedgerEntry{},
	"EntryList": api.List[api.LedgerEntry]{}, "Attempt": record.Attempt{}, "Original": record.Original{}, "Previous": record.Previous{}, "Ready": api.Ready{},
	"Probed": record.Probed{}, "EntryProfile": record.Profile{}, "FreezeChange": record.Freeze{}, "Approval": api.Approval{}, "Requester": api.Requester{}, "Approver": api.Approver{}, "Decision": api.Decision{},
	"Moved": record.Moved{}, "Asked": record.Asked{}, "Decided": record.Decided{}, "PreviousCSR": api.PreviousCSR{}, "CustomerPush": api.CustomerPush{}, "EntryProof": api.EntryProof{},
	"Cosignature": api.LedgerCosignature{}, "Cosigned": api.LedgerCosigned{}, "LedgerStatus": api.LedgerStatus{}, "Witness": api.LedgerWitness{}, "Copy": api.LedgerCopy{},
}

// TestOpenAPISchemas: each schema of an object has the fields of its Go type, with their types; what is not omitted when empty is
// required. Bodies of requests have no other fields; answers may get more.
func TestOpenAPISchemas(t *testing.T) {
	doc := document(t)
	for name, schema := range doc.Components.Schemas {
		if shape := shapes[name]; shape != nil {
			compareShape(t, name, schema.Value, reflect.TypeOf(shape))
		} else if schema.Value.Type.Is("object") {
			t.Errorf("%s has no Go type", name)
		}
	}
	for name := range shapes {
		if doc.Components.Schemas[name] == nil {
			t.Errorf("%s has no schema", name)
		}
	}
}

func compareShape(t *testing.T, name string, schema *openapi3.Schema, shape reflect.Type) {
	t.Helper()
	var fields, required []string
	for _, of := range reflect.VisibleFields(shape) {
		if of.Anonymous {
			continue
		}
		field, options, _ := strings.Cut(of.Tag.Get("json"), ",")
		fields = append(fields, field)
		if options != "omitempty" {
			required = append(required, field)
		}
		property := schema.Properties[field]
		if want := jsonType(of.Type); property != nil && of.Type != reflect.TypeFor[json.RawMessage]() && !property.Value.Type.Is(want) {
			t.Errorf("%s.%s is %v, want %s", name, field, property.Value.Type, want)
		}
	}
	slices.Sort(fields)
	slices.Sort(required)
	inSchema := slices.Sorted(slices.Values(schema.Required))
	if got := slices.Sorted(maps.Keys(schema.Properties)); !slices.Equal(got, fields) || !slices.Equal(inSchema, required) {
		t.Errorf("%s: fields %q, required %q\nwant    %q, required %q", name, got, inSchema, fields, required)
	}
	asked := slices.Contains([]string{"SignOrder", "CustomerChange", "FreezeOrder", "Decision"}, name)
	if closed := schema.AdditionalProperties.Has != nil && !*schema.AdditionalProperties.Has; closed != asked {
		t.Errorf("%s: additionalProperties: false is %v", name, closed)
	}
}

func jsonType(of reflect.Type) string {
	if of == reflect.TypeFor[time.Time]() {
		return "string"
	}
	switch of.Kind() {
	case reflect.Pointer:
		return jsonType(of.Elem())
	case reflect.Bool:
		return "boolean"
	case reflect.String:
		return "string"
	case reflect.Slice:
		return "array"
	case reflect.Struct:
		return "object"
	}
	return "integer"
}

// TestOpenAPIProblems: the types of problems are those of package fault, and docs/api.md explains the status of each.
func TestOpenAPIProblems(t *testing.T) {
	text := string(testkit.Value(os.ReadFile(filepath.Join("..", "docs", "api.md")))(t))
	var want, got []string
	for kind := fault.Interrupted; kind <= fault.Internal; kind++ {
		status := kind.Status()
		if kind == fault.Defects { // of the ledger; findings about a file are an answer
			status = http.StatusInternalServerError
		}
		if status < http.StatusBadRequest {
			continue
		}
		want = append(want, kind.Problem())
		if row := "(?m)^\\| " + strconv.Itoa(status) + " \\|.*`" + kind.String() + "`"; !regexp.MustCompile(row).MatchString(text) {
			t.Errorf("docs/api.md: the row of %d does not name %s", status, kind)
		}
	}
	for _, value := range document(t).Components.Schemas["Problem"].Value.Properties["type"].Value.Enum {
		got = append(got, value.(string))
	}
	if !slices.Equal(got, want) {
		t.Errorf("types %q\nwant  %q", got, want)
	}
}

// checker validates requests and answers against the document, and remembers which answers it has seen.
type checker struct {
	doc  *openapi3.T
	seen map[string]bool // "GET /v1/me 200"
}

// check validates a request and its answer. A request that the server refused because of its form must be invalid.
func (c *checker) check(t *testing.T, pattern string, a answered, invalid bool) {
	t.Helper()
	method, path, _ := strings.Cut(pattern, " ")
	item := c.doc.Paths.Find(path)
	if item == nil || item.GetOperation(method) == nil {
		t.Fatalf("%s has no operation", pattern)
	}
	input := &openapi3filter.RequestValidationInput{
		Request: a.request, PathParams: pathValues(path, a.request.URL.Path),
		Route:   &routers.Route{Spec: c.doc, Path: path, PathItem: item, Method: method, Operation: item.GetOperation(method)},
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true, RejectWhenRequestBodyNotSpecified: true, IncludeResponseStatus: true},
	}
	if err := openapi3filter.ValidateRequest(t.Context(), input); (err != nil) != invalid {
		t.Errorf("%s -> %d: request: %v; want an error: %v", pattern, a.status, err, invalid)
	}
	answer := &openapi3filter.ResponseValidationInput{RequestValidationInput: input, Status: a.status, Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), Options: input.Options}
	if err := openapi3filter.ValidateResponse(context.WithoutCancel(t.Context()), answer); err != nil {
		t.Errorf("%s -> %d: %v\n%v %s", pattern, a.status, err, a.header, a.body)
	}
	c.seen[pattern+" "+strconv.Itoa(a.status)] = true
	if a.header.Get("Content-Type") == "application/problem+json" {
		c.problem(t, a)
	}
}

// problem validates a problem, also of a request that no operation describes.
func (c *checker) problem(t *testing.T, a answered) {
	t.Helper()
	var value any
	testkit.OK(t, json.Unmarshal(a.body, &value))
	testkit.OK(t, c.doc.Components.Schemas["Problem"].Value.VisitJSON(value, openapi3.EnableJSONSchema2020()))
	var p api.Problem
	testkit.OK(t, json.Unmarshal(a.body, &p))
	if p.Status != a.status || p.RequestID != a.header.Get("X-Request-Id") || p.Type != "urn:hsmsign:problem:"+p.Title {
		t.Errorf("problem %+v of an answer with %d and %v", p, a.status, a.header)
	}
}

// pathValues returns the values of the path's parameters.
func pathValues(pattern, path string) map[string]string {
	values := map[string]string{}
	parts := strings.Split(path, "/")
	for i, part := range strings.Split(pattern, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			values[strings.TrimSuffix(name, "}")] = parts[i]
		}
	}
	return values
}
