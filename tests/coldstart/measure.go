package coldstart

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// Bed is what measurements share: a registry with the images behind a line.
type Bed struct {
	Registry *testenv.Registry
	Line     *testenv.Shaper
	Dir      string // scratch; the registry's files are in Dir/registry
}

// NewBed starts a registry and a line to it, with everything below dir.
func NewBed(dir string, p testenv.Profile) (*Bed, error) {
	reg, err := testenv.StartRegistry(filepath.Join(dir, "registry"))
	if err != nil {
		return nil, err
	}
	line, err := testenv.StartShaper(reg.Addr(), p)
	if err != nil {
		return nil, errors.Join(err, reg.Close())
	}
	return &Bed{Registry: reg, Line: line, Dir: dir}, nil
}

// Close ends the line and the registry.
func (b *Bed) Close() error { return errors.Join(b.Line.Close(), b.Registry.Close()) }

// Result is one cold start.
type Result struct {
	System   string            `json:"system"`
	Pull     time.Duration     `json:"pull_ns"`     // of the pull command
	Run      time.Duration     `json:"run_ns"`      // create, start, workload, removal
	CPU      time.Duration     `json:"pull_cpu_ns"` // of containerd, the daemon and what they ran, for the pull
	Disk     int64             `json:"disk"`        // bytes that the node occupies in the end
	Received int64             `json:"received"`    // bytes over the line until then, headers included
	Requests int               `json:"requests"`    // answered by the registry until then
	Output   string            `json:"-"`           // what the workload printed
	Log      []testenv.Request `json:"-"`           // the registry's
	Start    time.Time         `json:"-"`           // when the pull began
}

// Ready is the whole time from the pull command to the workload's end.
func (r Result) Ready() time.Duration { return r.Pull + r.Run }

// Measure starts the system on an empty node, empties the machine's caches, and
// times one pull of image and one run of args. What the node held is removed.
func (b *Bed) Measure(ctx context.Context, s System, image string, args []string) (_ Result, err error) {
	dir, err := os.MkdirTemp(b.Dir, s.Name()+"-")
	if err != nil {
		return Result{}, fmt.Errorf("preparing a node: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	node, err := s.Start(ctx, dir)
	if err != nil {
		return Result{}, fmt.Errorf("starting %s: %w", s.Name(), err)
	}
	defer func() { err = errors.Join(err, node.Stop()) }()
	if err := testenv.DropCaches(); err != nil {
		return Result{}, err
	}
	if err := b.WarmRegistry(ctx); err != nil {
		return Result{}, err
	}
	r, err := b.time(ctx, s, node, b.Line.Addr()+"/"+image+":"+s.Tag(), args)
	if err != nil {
		return Result{}, err
	}
	r.Disk, err = testenv.DiskUsage(dir)
	return r, err
}

func (b *Bed) time(ctx context.Context, s System, node Node, ref string, args []string) (Result, error) {
	b.Registry.Reset()
	before := b.Line.Received()
	cpu, err := node.CPU()
	if err != nil {
		return Result{}, err
	}
	r := Result{System: s.Name(), Start: time.Now()}
	if err := node.Pull(ctx, ref); err != nil {
		return Result{}, fmt.Errorf("pulling %s with %s: %w", ref, s.Name(), err)
	}
	pulled := time.Now()
	used, err := node.CPU()
	if err != nil {
		return Result{}, err
	}
	running := time.Now()
	out, err := node.Run(ctx, ref, args)
	if err != nil {
		return Result{}, fmt.Errorf("running %s with %s: %w", ref, s.Name(), err)
	}
	r.Pull, r.Run, r.Output = pulled.Sub(r.Start), time.Since(running), out
	r.CPU = used - cpu
	r.Received = b.Line.Received() - before
	r.Log = b.Registry.Log()
	r.Requests = len(r.Log)
	return r, nil
}

// WarmRegistry reads the registry's files into the page cache: its disk is not
// what is measured.
func (b *Bed) WarmRegistry(ctx context.Context) error {
	return readAll(ctx, filepath.Join(b.Dir, "registry"))
}

// readAll reads every file below dir, to have it in the page cache.
func readAll(ctx context.Context, dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("warming the registry: %w", err)
		}
		defer f.Close()
		_, err = io.Copy(io.Discard, f)
		return err
	})
}
