package awsiam

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"hsmsign/fault"
)

// maxSigned is the size of what a caller signed, as JSON: session tokens have up to a few KiB.
const maxSigned = 12 << 10

// Decode reads what follows Prefix in a bearer value. The error is of kind unauthenticated.
func Decode(value string) (Signed, error) {
	if len(value) > base64.RawURLEncoding.EncodedLen(maxSigned) {
		return Signed{}, refusef("the bearer value is larger than %d bytes", maxSigned)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(value)
	if err != nil || strings.ContainsAny(value, "\r\n") { // which the decoder skips
		return Signed{}, refusef("the bearer value is not base64url without padding")
	}
	var s Signed
	if err := s.UnmarshalJSON(data); err != nil {
		return Signed{}, refusef("the bearer value: %w", err)
	}
	return s, nil
}

// UnmarshalJSON reads an object with the members method, url, headers and body. An unknown or repeated member is an error, also one
// that differs in case only.
func (s *Signed) UnmarshalJSON(data []byte) error {
	if len(data) > maxSigned {
		return fmt.Errorf("what was signed is larger than %d bytes", maxSigned)
	}
	members, err := object(data)
	if err != nil {
		return err
	}
	var read Signed
	for _, m := range members {
		switch m.name {
		case "method":
			read.Method, err = text(m.value)
		case "url":
			read.URL, err = text(m.value)
		case "body":
			read.Body, err = text(m.value)
		case "headers":
			read.Headers, err = headers(m.value)
		default:
			err = errors.New("it is unknown")
		}
		if err != nil {
			return fmt.Errorf("the member %q: %w", fault.Clip(m.name, 32), err)
		}
	}
	*s = read
	return nil
}

// headers reads an object of strings.
func headers(data []byte) ([]Header, error) {
	members, err := object(data)
	if err != nil {
		return nil, err
	}
	all := make([]Header, 0, len(members))
	for _, m := range members {
		value, err := text(m.value)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", fault.Clip(m.name, 64), err)
		}
		all = append(all, Header{m.name, value})
	}
	return all, nil
}

// member is one member of a JSON object.
type member struct {
	name  string
	value json.RawMessage
}

// object reads a JSON object whose members have different names, also without regard to case, and nothing after it.
// encoding/json accepts repeated members and the last one counts.
func object(data []byte) ([]member, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	var all []member
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("it is not JSON")
		}
		folded := strings.ToLower(name)
		if seen[folded] {
			return nil, fmt.Errorf("the member %q is repeated", fault.Clip(name, 64))
		}
		seen[folded] = true
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errors.New("it is not JSON")
		}
		all = append(all, member{name, value})
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("it is not JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the object")
	}
	return all, nil
}

// text reads a JSON string.
func text(data []byte) (value string, err error) {
	if len(data) == 0 || data[0] != '"' || json.Unmarshal(data, &value) != nil {
		return "", errors.New("it is not a string")
	}
	return value, nil
}
