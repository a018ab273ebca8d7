package lifetime

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Config says how a mount lives and ends.
type Config struct {
	// Target is the mount point.
	Target string
	// Ended waits until nothing holds the mount, and lets go of what serves it; false
	// when Stop came first, and a successor is to see to it.
	Ended func() bool
	// Unmount detaches the mount at a target, which must not be looked at; EINVAL or ENOENT
	// when there is none. Nil means umount2(2).
	Unmount func(target string) error
	// Down is the error of Close after Stop.
	Down error
}

// Mount is one mount. It is the Target, Done, Close and Release of a driver.Mount.
type Mount struct {
	conf     Config
	watchers *Watchers
	done     chan struct{}

	mu      sync.Mutex
	state   state
	watched bool
}

type state uint8

const (
	mounted state = iota
	closing
	released
)

// Mount returns a mount whose end somebody has to wait for: from Watch on if the
// kernel tells of it, or else from Close on.
func (w *Watchers) Mount(conf Config) *Mount {
	if conf.Unmount == nil {
		conf.Unmount = func(target string) error {
			return unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
	return &Mount{conf: conf, watchers: w, done: make(chan struct{})}
}

// Target returns the mount point.
func (m *Mount) Target() string { return m.conf.Target }

// Done is closed when nothing holds the mount any more.
func (m *Mount) Done() <-chan struct{} { return m.done }

// Watch waits for the end from now on; false after Stop. Further calls do nothing.
func (m *Mount) Watch() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.watched {
		m.watched = m.watchers.Go(func() {
			if m.conf.Ended() {
				close(m.done)
			}
		})
	}
	return m.watched
}

// Close detaches the mount from its target. Whoever still reads goes on reading;
// Done says when nobody does.
func (m *Mount) Close(context.Context) error {
	if ok, err := m.claim(); !ok {
		return err
	}
	err := m.conf.Unmount(m.conf.Target)
	gone := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) // unmounted by someone else
	if err != nil && !gone {
		m.mu.Lock()
		m.state = mounted
		m.mu.Unlock()
		return m.failed(err)
	}
	if !m.Watch() {
		return m.failed(m.conf.Down)
	}
	return nil
}

// claim takes the mount for Close; false when there is nothing to do.
func (m *Mount) claim() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == closing:
		return false, nil
	case m.state == released || m.watchers.Stopped():
		return false, m.failed(m.conf.Down)
	}
	m.state = closing
	return true, nil
}

func (m *Mount) failed(err error) error {
	return fmt.Errorf("unmounting %s: %w", m.conf.Target, err)
}

// Release leaves the mount to a successor. It is meant for after Shutdown; before
// it, the mount is still served.
func (m *Mount) Release() error {
	m.Leave()
	return nil
}

// Leave is Release for a driver that has more to do then: true the first time,
// unless the mount is closed.
func (m *Mount) Leave() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != mounted {
		return false
	}
	m.state = released
	return true
}
