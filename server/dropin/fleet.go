package dropin

import (
	"encoding/base64"
	"net/url"

	"hsmsign/fault"
)

// fleetOrder is the body that Fleet sends. The older path had another name for the CSR.
type fleetOrder struct {
	CSR   string `json:"unsignedCsrData"` // base64 of PEM
	Older string `json:"csr"`
}

// DecodeFleet returns the CSR of a body that Fleet sends, usually PEM, for request.DecodeCSR. The error is of kind usage.
func DecodeFleet(data []byte) ([]byte, error) {
	var o fleetOrder
	if err := decode(data, &o, "the string unsignedCsrData"); err != nil {
		return nil, err
	}
	if o.CSR == "" {
		o.CSR = o.Older
	}
	return decodeCSR("unsignedCsrData", o.CSR)
}

// CheckFleetQuery returns an error of kind usage unless the query of Fleet's request asks for the answer itself. Without that, Fleet
// expects that the answer is mailed to the address in the CSR, which is a claim of the sender.
func CheckFleetQuery(query url.Values) error {
	for name, values := range query {
		if name != "deliveryMethod" && name != "alt" || len(values) > 1 || values[0] != "json" {
			return fault.Usage.Errorf("the query has another parameter than deliveryMethod=json").Fix("set only the base URL in Fleet, without a query")
		}
	}
	if len(query) == 0 {
		return fault.Usage.Errorf("this server sends no mail to the address in a CSR").
			Fix("use a version of Fleet that asks for the answer itself (deliveryMethod=json)")
	}
	return nil
}

// EncodeFleet returns the answer with a request file, which Fleet decodes once and shows its administrator.
func EncodeFleet(file []byte) []byte {
	return encode(struct {
		CSR string `json:"csr"`
	}{base64.StdEncoding.EncodeToString([]byte(oneLine(file)))})
}
