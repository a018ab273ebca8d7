package crash

import (
	"io"
	"net"
	"sync"
)

// gate is the way to the registry. While it is shut, the registry is as dead as a
// process that was killed: connections end and new ones are refused.
type gate struct {
	target string
	addr   string

	mu       sync.Mutex
	listener net.Listener // nil while shut
	conns    map[net.Conn]struct{}
	wg       sync.WaitGroup
}

func newGate(target string) (*gate, error) {
	g := &gate{target: target, addr: "127.0.0.1:0", conns: map[net.Conn]struct{}{}}
	return g, g.open()
}

// open accepts connections, at the same address every time.
func (g *gate) open() error {
	l, err := net.Listen("tcp", g.addr)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listener, g.addr = l, l.Addr().String()
	g.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.wg.Go(func() { g.relay(l, c) })
		}
	})
	return nil
}

// shut ends everything and waits for it.
func (g *gate) shut() error {
	g.mu.Lock()
	var err error
	if g.listener != nil {
		err = g.listener.Close()
	}
	g.listener = nil
	for c := range g.conns {
		_ = c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
	return err
}

// enter registers a connection of listener l; false when that was shut.
func (g *gate) enter(l net.Listener, c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.listener != l {
		return false
	}
	g.conns[c] = struct{}{}
	return true
}

func (g *gate) leave(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.conns, c)
}

func (g *gate) relay(l net.Listener, client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := net.Dial("tcp", g.target)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	for _, c := range []net.Conn{client, server} {
		if !g.enter(l, c) {
			return
		}
		defer g.leave(c)
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{client, server}, {server, client}} {
		both.Go(func() {
			// Without splice(2), whose pipes Go keeps for later.
			_, _ = io.Copy(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]})
			_ = client.Close()
			_ = server.Close()
		})
	}
	both.Wait()
}
