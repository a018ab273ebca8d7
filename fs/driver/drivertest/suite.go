package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/fs/driver"
)

// Harness is how the suite gets at a driver.
type Harness struct {
	// Name tells it from the others that Main is given.
	Name string
	// New returns a driver whose process inherited these descriptors from k.
	New func(tb testing.TB, k *Keeper, inherited driver.Inheritance) driver.Server
	// DataOf returns the descriptor on which a successor must open the layer. Nil
	// when it may open the data file as it likes: then no writers are kept.
	DataOf func(inherited driver.Inheritance, layerID string) *os.File
	// LeavesAtOnce says that a layer that becomes complete while it is mounted is
	// out of the driver's hands then, and not only when it is mounted again.
	LeavesAtOnce bool
	// SurvivesKill says that a successor answers what a daemon had taken when it
	// was killed. The harness must be given to Main.
	SurvivesKill bool
	// NoDirect says that the kernel knows no O_DIRECT on mounts of incomplete layers.
	NoDirect bool
}

// imageSeed is that of the images of the laws.
const imageSeed = 1

// law is one of the laws.
type law struct {
	name  string
	check func(*env)
}

// Run checks every law, with the metadata in the data file and beside it.
func Run(t *testing.T, h Harness) {
	for _, split := range []bool{false, true} {
		img := NewImage(t, imageSeed, split)
		name := map[bool]string{false: "one file", true: "with device"}[split]
		t.Run(name, func(t *testing.T) {
			for _, law := range h.laws() {
				if split && law.name == "many mounts" {
					continue // as many more say nothing new
				}
				t.Run(law.name, func(t *testing.T) { check(t, h, img, law.check) })
			}
		})
	}
}

// laws are those that the driver must obey.
func (h Harness) laws() []law {
	all := []law{
		{"sequential reads", sequentialReads},
		{"random reads", randomReads},
		{"direct reads", directReads},
		{"mapped reads", mappedReads},
		{"execution", execution},
		{"parallel reads", parallelReads},
		{"reads through overlay", overlayReads},
		{"error, then recovery", errorThenRecovery},
		{"killed reader", killedReader},
		{"resident meanwhile", residentMeanwhile},
		{"completion", completion},
		{"complete from the start", completeFromTheStart},
		{"two mounts", twoMounts},
		{"many mounts", manyMounts},
		{"unmount under a reader", unmountUnderReader},
		{"unmount under a waiting reader", unmountUnderWaiter},
		{"adoption", adoption},
		{"refused mount", refusedMount},
	}
	if h.SurvivesKill {
		all = append(all, law{"killed daemon", killedDaemon})
	}
	return all
}

// env is one mounted layer under test.
type env struct {
	*testing.T
	ctx    context.Context
	h      Harness
	img    *Image
	keeper *Keeper
	driver driver.Server
	layer  *Layer
	target string
	mount  driver.Mount
}

// check runs one law on a fresh mount and looks for leaked descriptors.
func check(t *testing.T, h Harness, img *Image, law func(*env)) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	defer cancel()
	before, running := openFiles(t), goleak.IgnoreCurrent()
	e := &env{T: t, ctx: ctx, h: h, img: img, keeper: &Keeper{}, target: t.TempDir()}
	e.driver = h.New(t, e.keeper, nil)
	e.layer = NewLayer(t, t.TempDir(), "layer-"+filepath.Base(e.target), img)
	var err error
	e.mount, err = e.driver.Mount(ctx, e.target, e.layer)
	require.NoError(t, err)
	ended := false
	t.Cleanup(func() { // a law that failed leaves readers that nobody answers
		if !ended {
			_ = unix.Unmount(e.target, unix.MNT_DETACH)
			_ = e.keeper.Close()
		}
	})
	law(e)
	e.unmount(e.mount)
	require.NoError(t, e.driver.Shutdown(ctx))
	require.Empty(t, e.keeper.Names(), "a mount that is gone is still guarded")
	require.NoError(t, e.layer.Close())
	ended = true
	require.Empty(t, added(before, openFiles(t)), "leaked descriptors")
	require.NoError(t, goleak.Find(running), "leaked goroutines")
}

func openFiles(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	var list []string
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && to != "anon_inode:[pidfd]" { // the one that ReadDir used is gone
			list = append(list, to)
		}
	}
	sort.Strings(list)
	return list
}

// added returns what is in now and was not in before. Less is no leak: what
// earlier tests dropped is closed by the garbage collector at any time.
func added(before, now []string) []string {
	count := map[string]int{}
	for _, f := range before {
		count[f]++
	}
	var more []string
	for _, f := range now {
		if count[f]--; count[f] < 0 {
			more = append(more, f)
		}
	}
	return more
}

// unmount closes a mount and waits until nothing serves it.
func (e *env) unmount(m driver.Mount) {
	e.Helper()
	require.NoError(e, m.Close(e.ctx))
	require.NoError(e, m.Close(e.ctx), "closing twice")
	e.await(m.Done(), "the mount to be gone")
}

func (e *env) await(c <-chan struct{}, what string) {
	e.Helper()
	select {
	case <-c:
	case <-time.After(deadline):
		require.FailNow(e, "waited too long for "+what)
	}
}

func (e *env) path(name string) string { return filepath.Join(e.target, name) }

// paths are all paths of the image in a random order.
func (e *env) paths() []string {
	var list []string
	for p := range e.img.Files {
		list = append(list, p)
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	return list
}

// compare reads a whole file below root.
func (e *env) compare(root, name string) error {
	return compareWith(filepath.Join(root, name), e.img.Files[name])
}

func compareWith(path string, want []byte) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s differs", path)
	}
	return nil
}

// dropCache makes the next read of a file go to the driver again.
func (e *env) dropCache(name string) { require.NoError(e, e.forget(name)) }

func (e *env) forget(name string) error {
	f, err := os.Open(e.path(name))
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
}
