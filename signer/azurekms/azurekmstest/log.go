package azurekmstest

import (
	"errors"
	"net/http"
	"time"
)

// maxLog is how many requests the log has; older ones are removed.
const maxLog = 4096

// Request is a request with a valid token that was answered. One that was never answered (Hang, Reset) has no entry.
type Request struct {
	ID        string // as in the header X-Ms-Request-Id of the answer
	Operation string
	Name      string
	Version   string
	Time      time.Time
	Status    int   // of the answer
	Fault     Fault // how the answer was changed
}

// Log returns the newest requests, the oldest first.
func (s *Server) Log() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request{}, s.log...)
}

func (s *Server) record(c call, err error) {
	r := Request{ID: c.id, Operation: c.operation, Name: c.name, Version: c.version, Time: time.Now().UTC(), Status: http.StatusOK, Fault: c.fault}
	if err != nil {
		r.Status = http.StatusInternalServerError
		if refused, ok := errors.AsType[*Error](err); ok {
			r.Status = refused.Status
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.log = append(s.log, r); len(s.log) > maxLog {
		s.log = s.log[1:]
	}
}
