package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long a daemon waits for the lock of its root. One that was
// killed holds it until the kernel has taken it apart, which a busy machine makes
// longer than its successor needs to start.
const lockPatience = 5 * time.Second

// lockRoot keeps a second daemon away from the same root: both would answer the
// same events and write the same files.
func (d *daemon) lockRoot(ctx context.Context) error {
	if err := os.MkdirAll(d.c.Root, 0o700); err != nil {
		return fmt.Errorf("creating the root directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(d.c.Root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("locking the root directory: %w", err)
	}
	if err := flock(ctx, lock); err != nil {
		return errors.Join(fmt.Errorf("another lazyerofsd serves %s, stop it or choose another --root: %w", d.c.Root, err), lock.Close())
	}
	d.onEnd(func(context.Context) error { return lock.Close() })
	return nil
}

// flock takes the lock or gives up after lockPatience.
func flock(ctx context.Context, f *os.File) error {
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	limit := time.NewTimer(lockPatience)
	defer limit.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-again.C:
		case <-limit.C:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
