package server

import "context"

// ReadFigures reads the figures now, and not when their time comes.
func (s *Server) ReadFigures(ctx context.Context) { s.readFigures(ctx) }
