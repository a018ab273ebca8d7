package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/containerd/log"

	"github.com/lazyerofs/lazyerofs/fs/fdstore"
)

// listen returns the socket for containerd: the one that a predecessor or a
// service manager opened, if it is at our address, else a new one, which the
// keeper gets. Whoever connects while no daemon runs then waits for the next one
// instead of being refused. Its file stays when all have ended, for nobody knows
// that he is the last; the next daemon takes its place.
func (d *daemon) listen(ctx context.Context) (net.Listener, error) {
	if l := d.inheritListener(ctx); l != nil {
		return l, nil
	}
	l, err := listenUnix(ctx, d.c.Address)
	if err != nil || d.notify == nil {
		return l, err
	}
	if err := d.keepListener(l); err != nil {
		log.G(ctx).WithError(err).Warn("clients are refused while the daemon restarts")
		return l, nil
	}
	return l, nil
}

func (d *daemon) keepListener(l *net.UnixListener) error {
	f, err := l.File()
	if err != nil {
		return fmt.Errorf("keeping the socket: %w", err)
	}
	err = d.notify.Put(fdstore.ListenerName, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	return nil
}

// inheritListener returns the listener that was left to us, or nil when there is
// none of use.
func (d *daemon) inheritListener(ctx context.Context) net.Listener {
	var found *net.UnixListener
	left := d.left[fdstore.ListenerName]
	stale := len(left) > 0
	for i, f := range left {
		l, err := net.FileListener(f)
		err = errors.Join(err, f.Close())
		unix, ok := l.(*net.UnixListener)
		if err == nil && ok && found == nil && unix.Addr().String() == d.c.Address {
			unix.SetUnlinkOnClose(false)
			found = unix
			// A service manager hands over its own sockets before what it stores
			// (sd_listen_fds(3)): behind the first there is what we kept before there was
			// a socket unit.
			stale = i == 0 && len(left) > 1
			continue
		}
		if l != nil {
			err = errors.Join(err, l.Close())
		}
		log.G(ctx).WithError(err).Warn("a listening socket that was left to us is not at our address and is not used")
	}
	if stale && d.notify != nil {
		if err := d.notify.Remove(fdstore.ListenerName); err != nil {
			log.G(ctx).WithError(err).Warn("an old listening socket stays in the descriptor store")
		}
	}
	if found == nil {
		return nil // not a nil *net.UnixListener
	}
	return found
}

// listenUnix listens at path, in place of a socket that nobody serves any more.
// The lock of the root says that this is no other daemon's.
func listenUnix(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory of the socket: %w", err)
	}
	if conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("%s is served by another process, stop it or choose another --address", path), conn.Close())
	}
	st, err := os.Lstat(path)
	if err == nil && st.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%s exists and is no socket, remove it or choose another address", path)
	}
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listening for containerd: %w", err)
	}
	socket, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("listening at %s gave a %T", path, l), l.Close())
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting the socket: %w", err), l.Close())
	}
	return socket, nil
}
