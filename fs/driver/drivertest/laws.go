package drivertest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

func sequentialReads(e *env) {
	for _, name := range e.paths() {
		require.NoError(e, e.compare(e.target, name))
	}
	require.Positive(e, e.layer.Fills())
}

func randomReads(e *env) {
	name := "dir0/file9"
	want := e.img.Files[name]
	f, err := os.Open(e.path(name))
	require.NoError(e, err)
	defer func() { require.NoError(e, f.Close()) }()
	require.NoError(e, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
	for range 500 {
		off := rand.Int64N(int64(len(want)))
		got := make([]byte, 1+rand.IntN(10_000))
		n, err := f.ReadAt(got, off)
		if !errors.Is(err, io.EOF) {
			require.NoError(e, err)
		}
		require.Equal(e, want[off:off+int64(n)], got[:n])
	}
}

// directReads: O_DIRECT gives the right bytes, or is refused as the kernel
// refuses it on a layer that needs no driver.
func directReads(e *env) {
	plain := e.TempDir()
	l := NewLayer(e, e.TempDir(), "plain", e.img)
	require.NoError(e, l.Fill(e.ctx))
	m, err := e.driver.Mount(e.ctx, plain, l)
	require.NoError(e, err)
	name := "dir2/file8"
	want, wantErr := readDirect(filepath.Join(plain, name))
	got, err := readDirect(e.path(name))
	// A driver may know more than the kernel's EROFS, which then has a complete layer.
	switch {
	case e.h.NoDirect:
		require.ErrorIs(e, err, syscall.EINVAL)
	case err != nil || wantErr == nil:
		require.Equal(e, wantErr, err)
		require.Equal(e, want, got)
	}
	if err == nil {
		require.Equal(e, e.img.Files[name], got)
	}
	e.unmount(m)
	require.NoError(e, l.Close())
}

func readDirect(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(fd) }()
	// Anonymous memory is aligned to pages, as O_DIRECT wants it.
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(buf) }()
	n, err := unix.Pread(fd, buf, 0)
	if err != nil {
		return nil, err
	}
	return bytes.Clone(buf[:n]), nil
}

func mappedReads(e *env) {
	for _, name := range []string{"dir0/file9", "dir1/file7", "dir0/file0", "sparse"} {
		got, err := mapped(e.ctx, e.path(name))
		require.NoError(e, err)
		require.Equal(e, fmt.Sprintf("%x", sha256.Sum256(e.img.Files[name])), got, name)
	}
}

func execution(e *env) {
	out, err := executed(e.ctx, e.path(ProgramPath), "it runs")
	require.NoError(e, err)
	require.Equal(e, "it runs\n", out)
}

func parallelReads(e *env) {
	errs := make(chan error, 16)
	for range cap(errs) {
		names := e.paths()
		go func() {
			var all []error
			for _, name := range names {
				all = append(all, e.compare(e.target, name))
			}
			errs <- errors.Join(all...)
		}()
	}
	for range cap(errs) {
		require.NoError(e, <-errs)
	}
	require.LessOrEqual(e, e.layer.Fills(), int64(cap(errs)*len(e.layer.resident)))
}

func overlayReads(e *env) {
	merged := e.TempDir()
	top := e.TempDir()
	require.NoError(e, unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+e.target+":"+top))
	// The overlay keeps the superblock alive after the unmount of the layer.
	require.NoError(e, e.mount.Close(e.ctx))
	for _, name := range e.paths() {
		require.NoError(e, e.compare(merged, name))
	}
	select {
	case <-e.mount.Done():
		require.Fail(e, "done while an overlay uses the layer")
	default:
	}
	require.NoError(e, unix.Unmount(merged, 0))
	e.await(e.mount.Done(), "the mount to be gone")
}

func errorThenRecovery(e *env) {
	for _, failure := range []error{errors.New("registry is down"), syscall.ENOSPC, syscall.ETIMEDOUT, context.Canceled} {
		e.layer.Fail(failure)
		for _, name := range []string{"dir0/file9", "sparse", "small/150"} {
			_, err := os.ReadFile(e.path(name))
			// EROFS makes EIO of whatever its backing file answers.
			if !errors.Is(err, driver.Errno(failure)) {
				require.ErrorIs(e, err, syscall.EIO, "%s, %v", name, failure)
			}
		}
	}
	_, err := mapped(e.ctx, e.path("dir2/file8"))
	require.Error(e, err, "a page that could not be filled was mapped")
	e.layer.Fail(nil)
	for _, name := range e.paths() {
		require.NoError(e, e.compare(e.target, name))
	}
}

func completion(e *env) {
	require.NotEmpty(e, e.keeper.Names(), "an incomplete mount is not guarded")
	require.NoError(e, e.compare(e.target, "dir0/file9"))
	require.NoError(e, e.layer.Fill(e.ctx))
	if e.h.LeavesAtOnce {
		require.Eventually(e, func() bool { return len(e.keeper.Names()) == 0 }, deadline, time.Millisecond,
			"a complete layer is still guarded")
	}
	fills := e.layer.Fills()
	e.layer.Fail(errors.New("a complete layer was asked"))
	for _, name := range e.paths() {
		e.dropCache(name)
		require.NoError(e, e.compare(e.target, name))
	}
	require.Equal(e, fills, e.layer.Fills())
}

func completeFromTheStart(e *env) {
	target := e.TempDir()
	l := NewLayer(e, e.TempDir(), "complete", e.img)
	require.NoError(e, l.Fill(e.ctx))
	names := e.keeper.Names()
	m, err := e.driver.Mount(e.ctx, target, l)
	require.NoError(e, err)
	require.ElementsMatch(e, names, e.keeper.Names())
	for _, name := range e.paths() {
		require.NoError(e, e.compare(target, name))
	}
	e.unmount(m)
	require.NoError(e, l.Close())
}

func twoMounts(e *env) {
	second := e.TempDir()
	m, err := e.driver.Mount(e.ctx, second, e.layer)
	require.NoError(e, err)
	require.NoError(e, e.compare(e.target, "dir0/file9"))
	require.NoError(e, e.compare(second, "dir1/file7"))
	e.unmount(m)
	require.NoError(e, e.compare(e.target, "small/199")) // still served
	require.NoError(e, e.compare(e.target, "dir2/file8"))
}

func unmountUnderReader(e *env) {
	name := "dir0/file9"
	f, err := os.Open(e.path(name))
	require.NoError(e, err)
	require.NoError(e, e.mount.Close(e.ctx))
	_, err = os.Stat(e.path(name))
	require.ErrorIs(e, err, os.ErrNotExist)
	got, err := io.ReadAll(f)
	require.NoError(e, err)
	require.True(e, bytes.Equal(e.img.Files[name], got), "%s differs", name)
	select {
	case <-e.mount.Done():
		require.Fail(e, "done while a file is open")
	default:
	}
	require.NotEmpty(e, e.keeper.Names())
	require.NoError(e, f.Close())
	e.await(e.mount.Done(), "the mount to be gone")
}

// adoption: readers that ask while nobody answers get the right bytes from the
// successor, which comes with the kept descriptors only.
func adoption(e *env) {
	require.NoError(e, e.compare(e.target, "dir1/file7"))
	require.NoError(e, e.driver.Shutdown(e.ctx))
	require.NoError(e, e.mount.Release())

	names := []string{"dir0/file9", "dir2/file8", "sparse", "small/100"}
	errs := make(chan error, len(names))
	var started sync.WaitGroup
	for _, name := range names {
		started.Add(1)
		go func() {
			started.Done()
			errs <- e.compare(e.target, name)
		}()
	}
	started.Wait()

	e.succeed()
	for range names {
		require.NoError(e, <-errs)
	}
	for _, name := range e.paths() {
		require.NoError(e, e.compare(e.target, name))
	}
}

// succeed makes a driver of a successor, which has the kept descriptors only,
// and lets it adopt the mount.
func (e *env) succeed() {
	inherited, err := e.keeper.Inherited()
	require.NoError(e, err)
	old := e.layer
	e.layer = old.Successor(e.successorData(inherited))
	e.driver = e.h.New(e, e.keeper, inherited)
	e.mount, err = e.driver.Adopt(e.ctx, e.target, e.layer)
	require.NoError(e, err)
	require.NoError(e, old.data.Close())
}

// successorData is the data file as a successor opens it.
func (e *env) successorData(inherited driver.Inheritance) *os.File {
	if e.h.DataOf != nil {
		return e.h.DataOf(inherited, e.layer.ID())
	}
	f, err := os.OpenFile(e.layer.Data().Name(), os.O_RDWR, 0)
	require.NoError(e, err)
	return f
}

// refusedMount: a mount that cannot be made, or not be guarded, leaves nothing.
func refusedMount(e *env) {
	guards := e.keeper.Names()
	l := NewLayer(e, e.TempDir(), "refused", e.img)
	_, err := e.driver.Mount(e.ctx, filepath.Join(e.target, "no such directory"), l)
	require.Error(e, err)
	require.ElementsMatch(e, guards, e.keeper.Names())

	e.keeper.Refuse(errors.New("store is full"))
	target := e.TempDir()
	_, err = e.driver.Mount(e.ctx, target, l)
	require.ErrorContains(e, err, "store is full")
	require.ElementsMatch(e, guards, e.keeper.Names())
	entries, err := os.ReadDir(target)
	require.NoError(e, err)
	require.Empty(e, entries)

	e.keeper.Refuse(nil)
	m, err := e.driver.Mount(e.ctx, target, l)
	require.NoError(e, err)
	require.NoError(e, e.compare(target, "sparse"))
	e.unmount(m)
	require.NoError(e, l.Close())
}
