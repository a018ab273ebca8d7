package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// segment is what one connection gives to the line at a time. It then waits
	// until that has been sent, so connections take turns.
	segment = 32 << 10
	// inFlight bounds the segments that travel on one connection: 8 MiB, more
	// than 50 ms of 100 MB/s. A reader that does not read stops its sender there.
	inFlight = 256
)

// Profile is what a Shaper makes of loopback.
type Profile struct {
	RTT            time.Duration // half of it in each direction
	BytesPerSecond int64         // shared by all connections, each direction; 0 is unlimited
}

func (p Profile) String() string {
	if p.BytesPerSecond == 0 {
		return fmt.Sprintf("%s RTT, unlimited", p.RTT)
	}
	return fmt.Sprintf("%s RTT, %d MB/s", p.RTT, p.BytesPerSecond/1_000_000)
}

// Shaper relays TCP connections to one address as a line of a given round trip
// and bandwidth would. It models the handshake (a first round trip), the
// propagation delay and one queue per direction that all connections share; it
// does not model loss or slow start.
type Shaper struct {
	profile  Profile
	target   string
	listener net.Listener
	down, up link

	received, sent atomic.Int64 // bytes delivered to clients, to the target
	conns          atomic.Int64

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// StartShaper relays connections made to Addr to target until Close.
func StartShaper(target string, p Profile) (*Shaper, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for the shaper: %w", err)
	}
	s := &Shaper{profile: p, target: target, listener: listener}
	s.down.bytesPerSecond, s.up.bytesPerSecond = p.BytesPerSecond, p.BytesPerSecond
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(s.accept)
	return s, nil
}

// Addr is host:port, on loopback.
func (s *Shaper) Addr() string { return s.listener.Addr().String() }

// Received is the number of bytes delivered to clients so far, HTTP headers
// included.
func (s *Shaper) Received() int64 { return s.received.Load() }

// Sent is the number of bytes delivered to the target so far.
func (s *Shaper) Sent() int64 { return s.sent.Load() }

// Conns is the number of connections accepted so far.
func (s *Shaper) Conns() int64 { return s.conns.Load() }

// Close ends every connection and returns when nothing runs any more.
func (s *Shaper) Close() error {
	s.cancel()
	err := s.listener.Close()
	s.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (s *Shaper) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return // closed; a loopback listener has no passing errors
		}
		s.conns.Add(1)
		s.wg.Go(func() { s.relay(conn) })
	}
}

// relay serves one connection until both directions have ended or one failed.
func (s *Shaper) relay(client net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer client.Close()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.target)
	if err != nil {
		return
	}
	defer server.Close()
	// Blocked reads and writes know no context; closing ends them.
	stop := context.AfterFunc(ctx, func() {
		_ = client.Close()
		_ = server.Close()
	})
	defer stop()

	var both sync.WaitGroup
	both.Go(func() {
		// The kernel's own handshake took no time: the first byte pays for it.
		if wait(ctx, s.profile.RTT) != nil || s.pump(ctx, server, client, &s.up, &s.sent) != nil {
			cancel()
		}
	})
	both.Go(func() {
		if s.pump(ctx, client, server, &s.down, &s.received) != nil {
			cancel()
		}
	})
	both.Wait()
}

// packet is a segment on its way.
type packet struct {
	data    []byte
	arrives time.Time
}

// pump moves bytes from src to dst through line and closes dst for writing at
// the end of src.
func (s *Shaper) pump(ctx context.Context, dst, src net.Conn, line *link, count *atomic.Int64) error {
	flight := make(chan packet, inFlight)
	delivered := make(chan error, 1)
	go func() {
		delivered <- deliver(ctx, dst, flight, count)
	}()
	readErr := s.send(ctx, src, line, flight)
	close(flight)
	if err := <-delivered; err != nil {
		return err
	}
	if !errors.Is(readErr, io.EOF) {
		return readErr
	}
	if half, ok := dst.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// send puts what it reads from src onto the line; it returns io.EOF at its end.
func (s *Shaper) send(ctx context.Context, src net.Conn, line *link, flight chan<- packet) error {
	buf := make([]byte, segment)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			sent := line.reserve(time.Now(), n)
			p := packet{data: append([]byte(nil), buf[:n]...), arrives: sent.Add(s.profile.RTT / 2)}
			select {
			case flight <- p:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := wait(ctx, time.Until(sent)); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
}

// deliver writes each packet when it arrives, and drains flight after a failure
// so that send never blocks on it.
func deliver(ctx context.Context, dst net.Conn, flight <-chan packet, count *atomic.Int64) error {
	var failed error
	for p := range flight {
		if failed != nil {
			continue
		}
		if failed = wait(ctx, time.Until(p.arrives)); failed != nil {
			continue
		}
		// Counted first: who has read a byte finds it in the count.
		count.Add(int64(len(p.data)))
		if _, err := dst.Write(p.data); err != nil {
			failed = err
		}
	}
	return failed
}

// wait returns after d, or with the context's error when that ends first.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
