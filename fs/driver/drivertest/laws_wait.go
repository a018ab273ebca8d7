package drivertest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// killedReader: a reader whose range is not coming can be killed, and the range
// comes for the next one.
func killedReader(e *env) {
	name := "dir0/file9"
	release := e.layer.Hold()
	defer release()
	self, err := os.Executable()
	require.NoError(e, err)
	cmd := exec.CommandContext(e.ctx, self)
	cmd.Env = append(os.Environ(), timeEnv+"="+e.path(name), blockEnv+"=4096")
	require.NoError(e, cmd.Start())
	e.await(e.layer.Held(), "the reader to wait for a fill")
	require.NoError(e, cmd.Process.Kill())
	dead := make(chan struct{})
	go func() {
		defer close(dead)
		_ = cmd.Wait() // it says that the process was killed
	}()
	e.await(dead, "the killed reader to go away")
	require.Equal(e, -1, cmd.ProcessState.ExitCode(), "it ended by itself")
	release()
	for _, name := range e.paths() {
		require.NoError(e, e.compare(e.target, name))
	}
}

// residentMeanwhile: while one range is not coming, those that are there are
// read.
func residentMeanwhile(e *env) {
	names := []string{"dir1/file7", "small/100", "sparse"}
	for _, name := range names {
		require.NoError(e, e.compare(e.target, name))
	}
	release := e.layer.Hold()
	defer release()
	waiting := make(chan error, 1)
	go func() { waiting <- e.compare(e.target, "dir0/file9") }()
	e.await(e.layer.Held(), "the reader to wait for a fill")
	read := make(chan error, 1)
	for _, name := range names {
		go func() {
			if err := e.forget(name); err != nil {
				read <- err
				return
			}
			read <- e.compare(e.target, name)
		}()
	}
	for range names {
		select {
		case err := <-read:
			require.NoError(e, err)
		case <-time.After(deadline):
			require.Fail(e, "what is there waits for what is not")
			release()
		}
	}
	release()
	require.NoError(e, <-waiting)
}

// unmountUnderWaiter: a reader that waits for a fill while the layer is
// unmounted gets it.
func unmountUnderWaiter(e *env) {
	name := "dir0/file9"
	release := e.layer.Hold()
	defer release()
	got := make(chan error, 1)
	go func() { got <- e.compare(e.target, name) }()
	e.await(e.layer.Held(), "the reader to wait for a fill")
	require.NoError(e, e.mount.Close(e.ctx))
	select {
	case <-e.mount.Done():
		require.Fail(e, "done under a waiting reader")
	default:
	}
	release()
	require.NoError(e, <-got)
	e.await(e.mount.Done(), "the mount to be gone")
}

// manyMounts: layers in numbers, mounted, read and unmounted at once.
func manyMounts(e *env) {
	img := NewBigImage(e, 100_000)
	dir := e.TempDir()
	layers, mounts := make([]*Layer, manyLayers), make([]driver.Mount, manyLayers)
	errs := make([]error, manyLayers)
	each := func(do func(i int) error) {
		var all sync.WaitGroup
		for i := range manyLayers {
			all.Go(func() { errs[i] = do(i) })
		}
		all.Wait()
		require.NoError(e, errors.Join(errs...))
	}
	target := func(i int) string { return filepath.Join(dir, fmt.Sprint("at", i)) }
	e.Cleanup(func() { // what a failed law left
		for i := range manyLayers {
			_ = unix.Unmount(target(i), unix.MNT_DETACH)
		}
	})
	each(func(i int) (err error) {
		if err = os.Mkdir(target(i), 0o700); err != nil {
			return err
		}
		if layers[i], err = CreateLayer(dir, fmt.Sprint("many-", i), img); err != nil {
			return err
		}
		mounts[i], err = e.driver.Mount(e.ctx, target(i), layers[i])
		return err
	})
	require.GreaterOrEqual(e, e.driver.Stats().Served, manyLayers)
	each(func(i int) error { return compareWith(filepath.Join(target(i), "big"), img.Files["big"]) })
	each(func(i int) error { return mounts[i].Close(e.ctx) })
	for i, m := range mounts {
		e.await(m.Done(), "the mount to be gone")
		require.NoError(e, layers[i].Close())
	}
}
