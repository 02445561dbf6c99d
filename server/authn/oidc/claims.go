package oidc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"hsmsign/fault"
)

// maxDepth is how deep objects and arrays of claims may be nested. Kubernetes needs three.
const maxDepth = 8

// Claims decodes the payload of a token: one JSON object. Numbers are json.Number, so that none loses digits. Programs differ
// in what a repeated name means, so it is an error, and so is a text that is not UTF-8.
func Claims(payload []byte) (map[string]any, error) {
	if !utf8.Valid(payload) {
		return nil, errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	d.UseNumber()
	value, err := decode(d, 0)
	if err != nil {
		return nil, err
	}
	claims, ok := value.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something after the JSON object")
	}
	return claims, nil
}

// decode reads one value.
func decode(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, notJSON(err)
	}
	bracket, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth == maxDepth {
		return nil, errors.New("nested too deep")
	}
	list, object := []any{}, map[string]any{}
	for d.More() {
		name := ""
		if bracket == '{' {
			key, err := d.Token()
			if err != nil {
				return nil, notJSON(err)
			}
			name, _ = key.(string) // the decoder refuses others
			if _, ok := object[name]; ok {
				return nil, fmt.Errorf("the name %q is repeated", fault.Clip(name, 64))
			}
		}
		value, err := decode(d, depth+1)
		if err != nil {
			return nil, err
		}
		object[name], list = value, append(list, value)
	}
	if _, err := d.Token(); err != nil {
		return nil, notJSON(err)
	}
	if bracket == '{' {
		return object, nil
	}
	return list, nil
}

func notJSON(err error) error { return fmt.Errorf("not JSON: %s", fault.Clip(err.Error(), 128)) }
