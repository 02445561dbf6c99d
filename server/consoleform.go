package server

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/url"

	"hsmsign/fault"
)

// upload is a file of a form.
type upload struct {
	Name string // as the browser says it: a stranger's text
	Data []byte
}

// posted is what a form has sent.
type posted struct {
	url.Values
	Files []upload // those that were chosen, in their order
}

// posted reads a form, which is multipart if it can have files. The body has the limit of the route, and is read into memory.
func (c *call) posted() (posted, error) {
	data, err := c.body()
	if err != nil {
		return posted{}, err
	}
	mediaType, parameters, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err == nil && mediaType == "application/x-www-form-urlencoded" {
		values, err := url.ParseQuery(string(data))
		if err != nil {
			return posted{}, notForm(err)
		}
		return posted{Values: values}, nil
	}
	if err != nil || mediaType != "multipart/form-data" {
		return posted{}, fault.WrongType.Errorf("the body has the type %q", fault.Clip(c.mediaType(), 64)).Fix("send the form of the page")
	}
	form, err := multipart.NewReader(bytes.NewReader(data), parameters["boundary"]).ReadForm(int64(len(data)) + 1) // never to a disk
	if err != nil {
		return posted{}, notForm(err)
	}
	p := posted{Values: url.Values(form.Value)}
	for _, header := range form.File["file"] {
		file, err := header.Open()
		if err != nil {
			return posted{}, notForm(err)
		}
		content, err := io.ReadAll(file)
		_ = file.Close() // it is in memory
		if err != nil {
			return posted{}, notForm(err)
		}
		if header.Filename != "" || len(content) > 0 { // a browser sends an empty file if none was chosen
			p.Files = append(p.Files, upload{header.Filename, content})
		}
	}
	return p, nil
}

func notForm(err error) error {
	return fault.Usage.Errorf("the form was not received: %s", fault.Clip(err.Error(), 128)).Fix("go back, load the page again, and send it once more")
}
