package caches

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Drop writes back and empties the page, dentry and inode caches of the whole
// machine, so that the next reads come from the disk. It waits for those that hold
// the caches; who holds them must not call it.
func Drop() error {
	free, err := lock(unix.LOCK_EX)
	if err != nil {
		return err
	}
	unix.Sync()
	err = os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200)
	if err != nil {
		err = fmt.Errorf("dropping the page cache (it needs root): %w", err)
	}
	return errors.Join(err, free())
}

// Hold keeps Drop waiting, in all processes, until the returned function is called,
// or the test has ended.
func Hold(t testing.TB) (release func()) {
	t.Helper()
	free, err := lock(unix.LOCK_SH)
	require.NoError(t, err)
	release = sync.OnceFunc(func() { require.NoError(t, free()) })
	t.Cleanup(release)
	return release
}

// lock locks the directory of temporary files, which all processes have: nothing
// need be made in it for that.
func lock(how int) (free func() error, err error) {
	dir, err := os.Open(os.TempDir())
	if err != nil {
		return nil, fmt.Errorf("locking the caches: %w", err)
	}
	for {
		if err = unix.Flock(int(dir.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("locking %s: %w", dir.Name(), err), dir.Close())
	}
	return dir.Close, nil
}
