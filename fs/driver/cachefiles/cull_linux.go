package cachefiles

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// cullTries bounds the wait for a cache file to get its name: the kernel gives it
// after it has closed the object, and tells nobody.
const cullTries = 12

// cull removes the cache files of cookies that are closed. Nothing asks for them
// again; what stays behind goes when the directory is bound next.
func (d *Driver) cull(keys []string) error {
	var errs []error
	for _, key := range keys {
		tries := 0
		var err error
		d.watchers.Await(func() bool {
			tries++
			var n int
			n, err = d.cullFiles(key)
			return (n > 0 && err == nil) || tries >= cullTries
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// cullFiles removes the files of one cookie and returns how many there were. The
// kernel writes a printable key as it is, behind the letter D, into one of 256
// directories.
func (d *Driver) cullFiles(key string) (int, error) {
	found, err := filepath.Glob(filepath.Join(d.conf.Dir, "cache", "Ierofs,"+domain, "@*", "D"+key))
	if err != nil {
		return 0, fmt.Errorf("looking for cache files: %w", err)
	}
	for _, f := range found {
		if err := d.cullFile(f); err != nil {
			return len(found), fmt.Errorf("removing %s: %w", f, err)
		}
	}
	return len(found), nil
}

// cullFile says cull, which names a file in the working directory: that of a
// thread of its own, which ends with it.
func (d *Driver) cullFile(file string) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(filepath.Dir(file))
		}
		if err == nil {
			err = d.dev.command("cull " + filepath.Base(file))
		}
		if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
			err = nil // gone already
		}
		result <- err
	}()
	return <-result
}
