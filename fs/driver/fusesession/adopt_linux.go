package fusesession

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Adopt serves a connection that a predecessor left with the Keeper under
// conf.Name. target is where it is mounted, for Unmount and Abort, or empty.
// The descriptors among inherited are used up, also on error. What the
// predecessor took and did not answer is answered once: the kernel sends it
// again (Linux 6.9 and newer), or it is in the journal.
//
// ErrUnborn says that the connection was never used; Discard it.
func Adopt(ctx context.Context, target string, conf Config, inherited driver.Inheritance) (*Session, error) {
	if err := conf.defaults(); err != nil {
		return nil, err
	}
	s, err := adopt(ctx, conf, inherited)
	if err != nil {
		return nil, fmt.Errorf("adopting FUSE session %s: %w", conf.Name, err)
	}
	s.target = target
	s.resume()
	return s, nil
}

func adopt(ctx context.Context, conf Config, inherited driver.Inheritance) (*Session, error) {
	dev, err := only(inherited, conf.Name)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	state, err := only(inherited, StateName(conf.Name))
	if err != nil {
		return nil, err
	}
	j, err := openJournal(state)
	if err != nil {
		return nil, err
	}
	s := newSession(ctx, conf, j)
	if s.agreed, err = j.agreed(); err == nil {
		err = s.agree()
	}
	if err == nil {
		err = s.openDevice(dev)
	}
	if err != nil {
		s.cancel()
		return nil, errors.Join(err, j.close())
	}
	return s, nil
}

// only takes the descriptor of a name, and closes others that it may have.
func only(inherited driver.Inheritance, name string) (*os.File, error) {
	files := inherited[name]
	delete(inherited, name)
	if len(files) == 0 {
		return nil, fmt.Errorf("%s was not inherited: %w", name, os.ErrNotExist)
	}
	for _, f := range files[1:] {
		_ = f.Close() // a duplicate
	}
	return files[0], nil
}

// agree brings go-fuse to the state in which the predecessor's was, by the
// request that started the connection, with the answer that was given then.
func (s *Session) agree() error {
	opts := s.conf.Options
	opts.ExtraCapabilities, opts.DisabledCapabilities = s.agreed.flags, ^s.agreed.flags
	s.conf.MaxRead = int(s.agreed.maxRead)
	s.protocol(opts)
	var in [inHeaderLen + 64]byte
	le := binary.NativeEndian
	le.PutUint32(in[:], uint32(len(in)))
	le.PutUint32(in[4:], opInit)
	for i, v := range s.agreed.init {
		le.PutUint32(in[inHeaderLen+4*i:], v)
	}
	var out [plainRoom]byte
	if n, code := s.call(in[:], out[:]); n < outHeaderLen+initOutLen || code != 0 {
		return fmt.Errorf("%w: protocol %d.%d", errState, s.agreed.init[0], s.agreed.init[1])
	}
	return nil
}

// resume answers what the predecessor took, and serves.
func (s *Session) resume() {
	if s.canResend() && !s.conf.ReplayJournal && s.resend() {
		for _, i := range s.journal.left {
			if _, ok := s.journal.taken(i); ok {
				s.journal.clear(i)
				s.journal.free <- i
			}
		}
	} else {
		s.replay()
	}
	s.serve()
}

// resend makes the kernel queue again what was taken and not answered.
func (s *Session) resend() bool {
	var b [outHeaderLen]byte
	putNotify(b[:], notifyResend, len(b))
	err := s.write(b[:], nil)
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOTCONN) {
		s.trouble("asking for the requests in progress", err)
	}
	return err == nil
}

// canResend reports whether the kernel said that it can (FUSE_HAS_RESEND).
func (s *Session) canResend() bool { return s.agreed.flags&capHasResend != 0 }

// replay answers what is in the journal. The kernel still waits for it, or
// refuses an answer that it has (ENOENT).
func (s *Session) replay() {
	for _, i := range s.journal.left {
		in, ok := s.journal.taken(i)
		if !ok {
			continue
		}
		req, err := parseRequest(in)
		if err != nil || req.silent() || req.op == opInit {
			if err != nil {
				s.trouble("reading the journal", err)
			}
			s.journal.clear(i)
			s.journal.free <- i
			continue
		}
		s.work.Go(func() {
			s.answer(req, in)
			s.journal.clear(i)
			s.journal.free <- i
		})
	}
}

// Discard ends a connection that a predecessor left and nobody will adopt: it
// gives the descriptors back. Readers get ENOTCONN.
func Discard(conf Config, inherited driver.Inheritance) error {
	var errs []error
	for _, name := range []string{conf.Name, StateName(conf.Name)} {
		for _, f := range inherited[name] {
			errs = append(errs, f.Close())
		}
		delete(inherited, name)
	}
	return errors.Join(append(errs, unkeep(conf))...)
}
