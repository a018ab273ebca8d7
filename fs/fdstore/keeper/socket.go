package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// maxFDs is how many descriptors one datagram can carry (SCM_MAX_FD).
const maxFDs = 253

// packet is one datagram, who sent it and what came along.
type packet struct {
	pid int
	msg fdstore.Message
	fds []int
	err error // the datagram is not usable; fds are closed already
}

// socket is the $NOTIFY_SOCKET that the keeper makes for its child.
type socket struct {
	dir     string
	addr    *net.UnixAddr
	conn    *net.UnixConn
	packets chan packet
	done    chan struct{}
}

// listen makes the socket in a directory of its own that only root may enter:
// an abstract address could be reached by every process of the host network.
func listen(dir string) (*socket, error) {
	own, err := os.MkdirTemp(dir, "lazyerofs-notify-")
	if err != nil {
		return nil, fmt.Errorf("making the directory of the notify socket: %w", err)
	}
	addr := &net.UnixAddr{Name: filepath.Join(own, "socket"), Net: "unixgram"}
	conn, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("making the notify socket: %w", err), os.RemoveAll(own))
	}
	s := &socket{dir: own, addr: addr, conn: conn, packets: make(chan packet), done: make(chan struct{})}
	if err := s.passCredentials(); err != nil {
		return nil, errors.Join(err, conn.Close(), os.RemoveAll(own))
	}
	go s.receive()
	return s, nil
}

// passCredentials makes the kernel say which process sent a datagram.
func (s *socket) passCredentials() error {
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("reaching the notify socket: %w", err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	})
	if err = errors.Join(err, optErr); err != nil {
		return fmt.Errorf("asking for credentials on the notify socket: %w", err)
	}
	return nil
}

// receive hands packets over one by one until the socket is closed.
func (s *socket) receive() {
	defer close(s.packets)
	buf := make([]byte, fdstore.MaxMessage+1)
	oob := make([]byte, unix.CmsgSpace(maxFDs*4)+unix.CmsgSpace(unix.SizeofUcred))
	for {
		n, oobn, flags, _, err := s.conn.ReadMsgUnix(buf, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		p := packet{err: err}
		if err == nil {
			p = open(buf[:n], oob[:oobn], flags)
		}
		select {
		case s.packets <- p:
		case <-s.done:
			return
		}
	}
}

// open takes a datagram apart.
func open(data, oob []byte, flags int) packet {
	var p packet
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		p.err = fmt.Errorf("reading control messages: %w", err)
		return p
	}
	for i := range msgs {
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			p.pid = int(cred.Pid)
		}
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			p.fds = append(p.fds, fds...)
		}
	}
	p.msg, p.err = fdstore.Parse(data)
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		p.err = fmt.Errorf("cut datagram: %w", fdstore.ErrBadMessage)
	}
	if p.err != nil {
		p.drop()
	}
	return p
}

func (p *packet) drop() {
	for _, fd := range p.fds {
		p.err = errors.Join(p.err, closeFD(fd))
	}
	p.fds = nil
}

// knock sends an empty datagram to the socket itself: when it arrives, so has
// everything that was sent before.
func (s *socket) knock() error {
	conn, err := net.DialUnix("unixgram", nil, s.addr)
	if err != nil {
		return fmt.Errorf("knocking at the notify socket: %w", err)
	}
	_, err = conn.Write([]byte("KNOCK=1"))
	return errors.Join(err, conn.Close())
}

// close stops receive and removes the socket.
func (s *socket) close() error {
	close(s.done)
	err := s.conn.Close()
	for range s.packets { // until receive has returned
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
