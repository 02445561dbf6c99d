package awskmstest

import (
	"encoding/xml"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// assumed is the answer to AssumeRole.
type assumed struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ AssumeRoleResponse"`
	Result  struct {
		Credentials struct {
			AccessKeyID     string `xml:"AccessKeyId"`
			SecretAccessKey string
			SessionToken    string
			Expiration      string
		}
		AssumedRoleUser struct {
			Arn, AssumedRoleID string
		}
	} `xml:"AssumeRoleResult"`
}

// refused is an error of STS.
type refused struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Error   struct {
		Type, Code, Message string
	}
	RequestID string `xml:"RequestId"`
}

// serveSTS answers AssumeRole with new session credentials, or with err.
func (s *Server) serveSTS(w http.ResponseWriter, c call, err error) {
	var answer any
	if err == nil {
		answer, err = s.assumeRole(c)
	}
	status := http.StatusOK
	if err != nil {
		var e *Error
		if !errors.As(err, &e) {
			e = &Error{Code: "InternalFailure", Message: err.Error()}
		}
		status = http.StatusForbidden
		r := refused{RequestID: requestID()}
		// The codes of the query protocol do not end with "Exception".
		r.Error.Type, r.Error.Code, r.Error.Message = "Sender", strings.TrimSuffix(e.Code, "Exception"), strings.ReplaceAll(e.Message, "kms:", "sts:")
		switch e.Code {
		case "UnrecognizedClientException":
			r.Error.Code = "InvalidClientTokenId"
		case "InvalidSignatureException":
			r.Error.Code = "SignatureDoesNotMatch"
		case "KMSInternalException", "InternalFailure":
			status, r.Error.Code = http.StatusInternalServerError, "InternalFailure"
		case "ThrottlingException", "ValidationException":
			status = http.StatusBadRequest
		}
		answer = r
	}
	body, err := xml.Marshal(answer)
	if err != nil {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client may be gone
}

func (s *Server) assumeRole(c call) (any, error) {
	form, err := url.ParseQuery(string(c.body))
	role, session := form.Get("RoleArn"), form.Get("RoleSessionName")
	if err != nil || c.operation != "AssumeRole" || !strings.Contains(role, ":role/") || session == "" {
		return nil, fail("ValidationException", "AssumeRole needs RoleArn and RoleSessionName")
	}
	lifetime := time.Hour
	if v := form.Get("DurationSeconds"); v != "" {
		seconds, err := strconv.Atoi(v)
		if err != nil || seconds < 900 || seconds > 43200 { // AssumeRole, STS API reference
			return nil, fail("ValidationException", "DurationSeconds is not from 900 to 43200")
		}
		lifetime = time.Duration(seconds) * time.Second
	}
	fresh := Credentials{
		AccessKeyID: "ASIA" + strings.ToUpper(random()[:16]), SecretAccessKey: random(), SessionToken: random() + random(),
		Expires: time.Now().Add(lifetime),
	}
	s.AddCredentials(fresh)
	var a assumed
	to := &a.Result.Credentials
	to.AccessKeyID, to.SecretAccessKey, to.SessionToken = fresh.AccessKeyID, fresh.SecretAccessKey, fresh.SessionToken
	to.Expiration = fresh.Expires.UTC().Format(time.RFC3339)
	a.Result.AssumedRoleUser.Arn = strings.Replace(strings.Replace(role, ":iam:", ":sts:", 1), ":role/", ":assumed-role/", 1) + "/" + session
	a.Result.AssumedRoleUser.AssumedRoleID = fresh.AccessKeyID + ":" + session
	return a, nil
}
