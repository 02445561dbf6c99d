package dropin

import (
	"encoding/json"

	"hsmsign/fault"
)

// ZentralOrder is what Zentral asks for. Its fully qualified domain name is a claim, which is not read.
type ZentralOrder struct {
	CSR []byte // DER
	// Signed is iam_request, a JSON object as it was sent: the request GetCallerIdentity of AWS STS that the client signed and did not
	// send. It is a credential: it must not be logged. It is not decoded here, because a decoder hides doubled headers. nil: there is none.
	Signed []byte
}

// maxSigned is the size limit of iam_request, in bytes; boto3's has about 2,000.
const maxSigned = 16 << 10

// zentralOrder is the body that Zentral sends.
type zentralOrder struct {
	CSR    string          `json:"b64_csr"`
	Signed json.RawMessage `json:"iam_request"`
}

// DecodeZentral reads a body that Zentral sends. The error is of kind usage or too large, and contains nothing of the body.
func DecodeZentral(data []byte) (ZentralOrder, error) {
	var o zentralOrder
	if err := decode(data, &o, "the string b64_csr and the object iam_request"); err != nil {
		return ZentralOrder{}, err
	}
	if string(o.Signed) == "null" {
		o.Signed = nil
	}
	if o.Signed != nil && o.Signed[0] != '{' {
		return ZentralOrder{}, fault.Usage.Errorf("iam_request is not a JSON object").Fix(ask)
	}
	if len(o.Signed) > maxSigned {
		return ZentralOrder{}, fault.TooLarge.Errorf("iam_request is larger than %d bytes", maxSigned).Fix(ask)
	}
	csr, err := decodeCSR("b64_csr", o.CSR)
	if err != nil {
		return ZentralOrder{}, err
	}
	return ZentralOrder{CSR: csr, Signed: o.Signed}, nil
}

// EncodeZentral returns the answer with a request file, which Zentral offers to its administrator as it is.
func EncodeZentral(file []byte) []byte {
	return encode(struct {
		CSR string `json:"signed_csr"`
	}{oneLine(file)})
}
