package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/lazyerofs/lazyerofs/fs/erofs"
	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// rig is what all drivers are measured with: an image in a registry, a plain
// mount of it, and hosts that keep it in the states that last.
type rig struct {
	dir    string
	out    io.Writer
	bed    *coldstart.Bed
	ref    string // of the image at the registry
	shaped string // of the same behind the line
	plain  string // where the plain mount is

	large, small []string // files of the image

	usable, skipped []string         // drivers
	kept            map[string]*host // by driver and state
}

const (
	largeFile  = 2 << 20  // bytes from which a file is large
	smallFile  = 64 << 10 // bytes up to which a file is small
	smallFiles = 8000
	guardFile  = "zz-guard" // read by no workload
	guardBytes = 16 << 20   // more than the daemon reads ahead
)

// toolchain is the Go toolchain as one layer, with a file at its end that keeps
// the layer from being complete.
func toolchain(ctx context.Context) (testenv.Recipe, error) {
	r, err := testenv.GoToolchain(ctx)
	if err != nil {
		return r, err
	}
	last := r.Steps[len(r.Steps)-1]
	last.Script += "yes lazyerofs | head -c " + strconv.Itoa(guardBytes) + ` >"$ROOT/` + guardFile + "\"\n"
	return testenv.Recipe{Name: "go-layer", Steps: []testenv.Step{last}, Ready: []string{"/usr/local/go/bin/go", "version"}}, nil
}

func newRig(ctx context.Context, scratch string, out io.Writer) (_ *rig, err error) {
	dir, err := os.MkdirTemp(scratch, "lazyerofs-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the bench: %w", err)
	}
	r := &rig{dir: dir, out: out, kept: map[string]*host{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.close())
		}
	}()
	if r.bed, err = coldstart.NewBed(dir, lines["lan"]); err != nil {
		return nil, err
	}
	recipe, err := toolchain(ctx)
	if err != nil {
		return nil, err
	}
	image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
	if err != nil {
		return nil, err
	}
	if err := publish(ctx, r.bed, image); err != nil {
		return nil, err
	}
	name := "/" + image.Name + ":" + coldstart.TagLazy
	r.ref, r.shaped = r.bed.Registry.Addr()+name, r.bed.Line.Addr()+name
	return r, nil
}

// close ends and removes everything.
func (r *rig) close() error {
	var errs []error
	for _, h := range r.kept {
		errs = append(errs, h.stop())
	}
	errs = append(errs, testenv.UnmountAll(r.dir))
	if r.bed != nil {
		errs = append(errs, r.bed.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(r.dir))...)
}

// start finds out which drivers work here and brings their layers into the states
// that last.
func (r *rig) start(ctx context.Context, drivers []string) error {
	for _, d := range drivers {
		err := r.keep(ctx, d, stateComplete)
		var not *unusableError
		if errors.As(err, &not) {
			fmt.Fprintln(r.out, "skipped", not)
			r.skipped = append(r.skipped, not.Error())
			continue
		}
		if err != nil {
			return err
		}
		r.usable = append(r.usable, d)
		if r.plain == "" {
			if err := r.mountPlain(ctx, r.kept[d+" "+stateComplete]); err != nil {
				return err
			}
		}
		for _, state := range []string{stateResident, stateAgain} {
			if err := r.keep(ctx, d, state); err != nil {
				return err
			}
		}
	}
	if len(r.usable) == 0 {
		return fmt.Errorf("no driver of %s works here", strings.Join(drivers, ", "))
	}
	return nil
}

// keep starts a host that has the image in the given state.
func (r *rig) keep(ctx context.Context, driver, state string) error {
	h, err := startHost(ctx, r.dir, driver, nil)
	if err != nil {
		return err
	}
	r.kept[driver+" "+state] = h
	if err := h.mount(ctx, r.ref); err != nil {
		return err
	}
	files, err := r.files(h.root)
	if err != nil {
		return err
	}
	if state != stateResident {
		files = append(files, guardFile)
	}
	if _, err := reader(ctx, job{Kind: kindSequential, Root: h.root, Paths: files}); err != nil {
		return fmt.Errorf("filling a layer: %w", err)
	}
	if state == stateResident {
		return nil
	}
	if err := h.awaitComplete(ctx); err != nil || state != stateAgain {
		return err
	}
	return errors.Join(h.umount(ctx), h.mount(ctx, r.ref))
}

// files lists all regular files below root but the guard, and remembers which are
// large and small. The tree is the same everywhere, and listing it reads no file.
func (r *rig) files(root string) ([]string, error) {
	var all []string
	r.large, r.small = nil, nil
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || d.Name() == guardFile {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		all = append(all, name)
		switch n := info.Size(); {
		case n >= largeFile:
			r.large = append(r.large, name)
		case n > 0 && n <= smallFile && len(r.small) < smallFiles:
			r.small = append(r.small, name)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing the image: %w", err)
	}
	if len(r.small) < smallFiles {
		return nil, fmt.Errorf("the image has %d small files, not %d", len(r.small), smallFiles)
	}
	return all, nil
}

// mountPlain mounts a copy of the data file of h, which is complete, with the
// read-ahead of the lazy mounts: what differs then is the driver.
func (r *rig) mountPlain(ctx context.Context, h *host) error {
	data, err := h.dataFile()
	if err != nil {
		return err
	}
	image, at := filepath.Join(r.dir, "plain.erofs"), filepath.Join(r.dir, "plain")
	if err := errors.Join(copyFile(data, image), os.Mkdir(at, 0o755)); err != nil {
		return fmt.Errorf("making the plain mount: %w", err)
	}
	ahead, err := readAhead(h.root)
	if err != nil {
		return err
	}
	if _, err := erofs.Mount(ctx, erofs.MountConfig{Source: image, Target: at, ReadAheadKB: ahead}); err != nil {
		return err
	}
	r.plain = at
	return nil
}

// readAhead returns that of the EROFS mounted at root, in KiB, and 0, for the
// kernel's own, when it is none.
func readAhead(root string) (int, error) {
	sb, err := erofs.SuperblockOf(root)
	if err != nil {
		return 0, nil //nolint:nilerr // a tree that user space serves has no superblock of EROFS
	}
	sb, _, _ = strings.Cut(sb, "@")
	b, err := os.ReadFile(filepath.Join("/sys/class/bdi", sb, "read_ahead_kb"))
	if err != nil {
		return 0, fmt.Errorf("reading the read-ahead of %s: %w", sb, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// measure empties the caches, the registry's files apart, and runs a job.
func (r *rig) measure(ctx context.Context, j job) ([]sample, error) {
	if err := testenv.DropCaches(); err != nil {
		return nil, err
	}
	if err := r.bed.WarmRegistry(ctx); err != nil {
		return nil, err
	}
	return reader(ctx, j)
}

// check says whether the layers stayed in their states.
func (r *rig) check() error {
	for name, h := range r.kept {
		not, err := h.incomplete()
		if err != nil {
			return err
		}
		if !slices.Contains(strings.Fields(name), stateResident) == not {
			return fmt.Errorf("%s: the layer is complete: %t", name, !not)
		}
	}
	return nil
}

// workload is one thing that is measured, in every state.
type workload struct {
	name  string
	warms bool // it reads all that it measures beforehand
	job   func(root string, round int) job
}

// work are the workloads.
func (r *rig) work() []workload {
	reads := func(kind string, readers, n int) func(string, int) job {
		return func(root string, round int) job {
			return job{Kind: kind, Root: root, Paths: r.large, Readers: readers, Reads: n, Seed: uint64(round)}
		}
	}
	whole := func(kind string, paths []string) func(string, int) job {
		return func(root string, _ int) job { return job{Kind: kind, Root: root, Paths: paths} }
	}
	return []workload{
		{name: "sequential", job: whole(kindSequential, r.large)},
		{name: "random-1", job: reads(kindRandom, 1, 4000)},
		{name: "random-8", job: reads(kindRandom, 8, 4000)},
		{name: "pages-1", warms: true, job: reads(kindPages, 1, 16000)},
		{name: "pages-8", warms: true, job: reads(kindPages, 8, 16000)},
		{name: "stream", warms: true, job: whole(kindStream, r.large)},
		{name: "walk", job: whole(kindWalk, nil)},
		{name: "exec", job: whole(kindExec, []string{"usr/local/go/bin/go", "version"})},
		{name: "small", job: whole(kindSequential, r.small)},
	}
}

// workNames are the names of all workloads.
func workNames() []string {
	var names []string
	for _, w := range new(rig).work() {
		names = append(names, w.name)
	}
	return names
}
