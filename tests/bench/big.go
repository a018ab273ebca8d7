package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// bigReport is what became of one large layer. The layer comes out of a
// generator each time, over loopback to the command line, and no file holds it.
type bigReport struct {
	machine
	Size   int64    `json:"size"` // asked for
	Layer  int64    `json:"layer_size"`
	Digest string   `json:"layer_digest"`
	Rows   []bigRow `json:"rows"`
}

// bigRow is one way to take the layer in.
type bigRow struct {
	Way string `json:"way"`
	cost
	Out int64 `json:"out_size"` // of what was made, in bytes on disk
}

func runBig(ctx context.Context, report *bigReport, dir string, o convertOptions, out io.Writer) (err error) {
	fmt.Fprintf(out, "generating %d MiB for its digest\n", o.size>>20)
	src, err := startOrigin(ctx, o.size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	report.Layer, report.Digest = src.layer.Size, src.layer.Digest.String()
	for _, way := range []func(context.Context, *origin, string, convertOptions) (bigRow, error){bigConvert, bigApply} {
		row, err := way(ctx, src, dir, o)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: %.1f s, %.1f s of CPU, peak %.1f MiB\n", row.Way, row.Wall.Seconds(), row.CPU.Seconds(), float64(row.Peak)/1024)
		report.Rows = append(report.Rows, row)
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "big", report)
}

// bigConvert is "lazyerofs convert" from a registry to an OCI layout.
func bigConvert(ctx context.Context, src *origin, dir string, o convertOptions) (row bigRow, err error) {
	row.Way = "lazyerofs convert"
	path, err := testenv.Tool("lazyerofs")
	if err != nil {
		return row, err
	}
	to := filepath.Join(dir, "layout")
	defer func() { err = errors.Join(err, os.RemoveAll(to)) }()
	row.cost, _, err = command(ctx, nil, path, "convert", "--quiet", "--plain-http", "--work-dir", filepath.Join(dir, "work"),
		"--level", fmt.Sprint(o.level), src.ref(), "oci:"+to+":lazy")
	if err != nil {
		return row, err
	}
	row.Out, err = testenv.DiskUsage(to)
	return row, errors.Join(err, os.RemoveAll(filepath.Join(dir, "work")))
}

// applyVerb makes this program take in a generated layer as containerd's diff
// service does.
const applyVerb = "apply-layer"

// applyJob is one layer to be applied to a snapshot in Dir.
type applyJob struct {
	Dir   string
	Size  int64 // as generate has it
	Layer ocispec.Descriptor
}

func bigApply(ctx context.Context, src *origin, dir string, o convertOptions) (row bigRow, err error) {
	row.Way = "Apply"
	at := filepath.Join(dir, "snapshot")
	defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
	if err := os.MkdirAll(filepath.Join(at, differ.MountDir), 0o755); err != nil {
		return row, fmt.Errorf("preparing a snapshot: %w", err)
	}
	if err := os.WriteFile(filepath.Join(at, differ.MarkerFile), nil, 0o644); err != nil {
		return row, fmt.Errorf("preparing a snapshot: %w", err)
	}
	var applied ocispec.Descriptor
	row.cost, err = worker(ctx, applyVerb, applyJob{Dir: at, Size: o.size, Layer: src.layer}, &applied)
	if err != nil {
		return row, err
	}
	if applied.Digest != src.layer.Digest {
		return row, fmt.Errorf("the layer %s was applied as %s", src.layer.Digest, applied.Digest)
	}
	row.Out, err = testenv.DiskUsage(at)
	return row, err
}

// applyLayer is the process that applies. The generator runs in it as well.
func applyLayer(ctx context.Context, j applyJob) (ocispec.Descriptor, error) {
	d := differ.New(generatedStore{size: j.Size, layer: j.Layer}, differ.ServiceConfig{})
	mounts := []mount.Mount{{Type: "bind", Source: filepath.Join(j.Dir, differ.MountDir), Options: []string{"rw", "rbind"}}}
	return d.Apply(ctx, j.Layer, mounts)
}

// generatedStore is a content store with one generated layer.
type generatedStore struct {
	content.Store // nothing else of it is used
	size          int64
	layer         ocispec.Descriptor
}

// ReaderAt returns the layer, which can only be read from front to back.
func (s generatedStore) ReaderAt(ctx context.Context, _ ocispec.Descriptor) (content.ReaderAt, error) {
	return &generatedAt{src: generated(ctx, s.size), size: s.layer.Size}, nil
}

type generatedAt struct {
	src  io.ReadCloser
	at   int64
	size int64
}

// ReadAt implements io.ReaderAt where the last one ended.
func (g *generatedAt) ReadAt(p []byte, off int64) (int, error) {
	if off != g.at {
		return 0, fmt.Errorf("a generated layer is at %d and cannot be read at %d", g.at, off)
	}
	n, err := io.ReadFull(g.src, p)
	g.at += int64(n)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return n, err
}

func (g *generatedAt) Close() error { return g.src.Close() }

func (g *generatedAt) Size() int64 { return g.size }

func (r *bigReport) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "a layer of GB\tby\ts\tCPU s\tMB/s\tpeak MiB\tGB made\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%.2f\t%s\t%.1f\t%.1f\t%.0f\t%.1f\t%.2f\t\n", float64(r.Layer)/1e9, x.Way, x.Wall.Seconds(), x.CPU.Seconds(),
			float64(r.Layer)/1e6/max(x.Wall, time.Millisecond).Seconds(), float64(x.Peak)/1024, float64(x.Out)/1e9)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}
