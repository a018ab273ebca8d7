package wire

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

// Lock creates the root directory and keeps a second process away from it: both
// would answer the same events and write the same files. It returns what unlocks.
func Lock(ctx context.Context, root string) (unlock func(context.Context) error, err error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("creating the root directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(root, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the root directory: %w", err)
	}
	if err := flock(ctx, lock); err != nil {
		return nil, errors.Join(fmt.Errorf("another lazyerofsd serves %s, stop it or choose another root: %w", root, err), lock.Close())
	}
	return func(context.Context) error { return lock.Close() }, nil
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
