package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// maxResumes bounds the requests that one range may take, so that a host
// which sends a byte per answer cannot keep us for ever.
const maxResumes = 64

// stream reads [off, end) of a blob through as many requests as it takes: a
// body that ends early is gone on with where it stopped, at the next host when
// the same one gave nothing.
type stream struct {
	b    *blob
	ctx  context.Context // of the one call that the stream is the reader of
	off  int64
	end  int64
	body *body
	last *endpoint       // who sends the current body
	got  int64           // bytes of the current body
	bad  map[string]bool // hosts that failed since the last byte
	errs []error         // why
	used int             // requests so far
	err  error           // sticky
}

// Read implements io.Reader. It gives exactly end-off bytes or an error.
func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil {
		if s.off == s.end {
			return 0, io.EOF
		}
		if len(p) == 0 {
			return 0, nil
		}
		if s.body == nil {
			if s.err = s.open(); s.err != nil {
				return 0, s.err
			}
		}
		n, err := s.body.Read(p)
		s.off += int64(n)
		s.got += int64(n)
		if err != nil {
			s.ended(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, s.err
}

// ended closes a body that gave all it had, and blames its host when that was
// less than it should have been.
func (s *stream) ended(err error) {
	url, left, got := s.body.url, s.body.left, s.got
	s.close()
	if s.off == s.end {
		return
	}
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return
	}
	eof := errors.Is(err, io.EOF)
	if eof && left == 0 && got > 0 {
		return
	}
	if eof {
		err = &ProtocolError{URL: url, Reason: fmt.Sprintf("body ends %d bytes early", left)}
	}
	s.b.health.penalise(s.last.id(), err)
	if got > 0 {
		s.bad, s.errs = nil, nil
		return
	}
	s.fail(s.last, err)
}

func (s *stream) fail(e *endpoint, err error) {
	if s.bad == nil {
		s.bad = make(map[string]bool)
	}
	s.bad[e.id()] = true
	s.errs = append(s.errs, err)
	s.b.health.penalise(e.id(), err)
}

// open finds a host that sends the rest of the range.
func (s *stream) open() error {
	es, err := s.b.endpoints()
	if err != nil {
		return fmt.Errorf("reading blob %s: %w", s.b.digest, err)
	}
	for _, e := range es {
		if s.bad[e.id()] {
			continue
		}
		if s.used++; s.used > maxResumes {
			break
		}
		ctx, w := newWatch(s.ctx, s.b.res.cfg.Timeouts)
		body, err := e.getRange(ctx, w, s.off, s.end, s.b.size)
		if err == nil {
			s.body, s.last, s.got = body, e, 0
			return nil
		}
		w.stop()
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		s.fail(e, err)
	}
	if len(s.errs) == 0 {
		s.errs = append(s.errs, &ProtocolError{URL: redactedOf(es), Reason: fmt.Sprintf("gave up after %d answers that were too short", maxResumes)})
	}
	return &ReadError{What: fmt.Sprintf("blob %s at %d+%d", s.b.digest, s.off, s.end-s.off), Errs: s.errs}
}

func redactedOf(es []*endpoint) string {
	if len(es) == 0 {
		return http.MethodGet
	}
	return es[0].key
}

func (s *stream) close() {
	if s.body != nil {
		_ = s.body.Close()
		s.body = nil
	}
}
