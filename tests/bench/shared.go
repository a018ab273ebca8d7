package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/coldstart"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// release is an image in two versions, each with its own name.
type release struct {
	name   string
	images func(context.Context) (older, newer testenv.Recipe, err error)
}

// releases are what the bench knows: a toolchain, of which every program differs
// in what the compiler wrote into it, and an application with a security patch.
var releases = []release{{"go", goReleases}, {"next", nextReleases}}

// goReleases are the two patch releases before the toolchain of this machine, as
// the module proxy has them.
func goReleases(ctx context.Context) (older, newer testenv.Recipe, err error) {
	out, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return older, newer, fmt.Errorf("finding the Go toolchain: %w", err)
	}
	m := regexp.MustCompile(`^(go\d+\.\d+)\.(\d+)\s*$`).FindStringSubmatch(string(out))
	if m == nil {
		return older, newer, fmt.Errorf("%q is no release of Go", out)
	}
	patch, err := strconv.Atoi(m[2])
	if err != nil || patch < 3 {
		return older, newer, fmt.Errorf("%s has no two patch releases before it", strings.TrimSpace(string(out)))
	}
	if older, err = goRelease(ctx, fmt.Sprintf("%s.%d", m[1], patch-2)); err == nil {
		newer, err = goRelease(ctx, fmt.Sprintf("%s.%d", m[1], patch-1))
	}
	return older, newer, err
}

// goRelease is an image of one toolchain and nothing else.
func goRelease(ctx context.Context, version string) (testenv.Recipe, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Env = append(os.Environ(), "GOTOOLCHAIN="+version)
	out, err := cmd.Output()
	if err != nil {
		return testenv.Recipe{}, fmt.Errorf("fetching %s: %w", version, err)
	}
	script := "mkdir -p \"$ROOT/usr/local\"\ncp -a " + strings.TrimSpace(string(out)) + " \"$ROOT/usr/local/go\"\n"
	return testenv.Recipe{Name: version, Steps: []testenv.Step{{Name: version, Script: script}}}, nil
}

// nextReleases differ in one patch release of a package; npm brings the same
// versions of the others.
func nextReleases(ctx context.Context) (older, newer testenv.Recipe, err error) {
	const others = " react@18.3.1 react-dom@18.3.1 lodash@4.17.21"
	if older, err = testenv.NodeWith(ctx, "next-24", "next@14.2.24"+others); err == nil {
		newer, err = testenv.NodeWith(ctx, "next-25", "next@14.2.25"+others)
	}
	return older, newer, err
}

type sharedOptions struct {
	chunk    int64
	dir, out string
}

func parseShared(args []string) (sharedOptions, error) {
	var o sharedOptions
	var size string
	f := flags("shared")
	f.StringVar(&size, "chunk-size", fmt.Sprintf("%dK", differ.DefaultChunkSize>>10), "length of a chunk")
	f.StringVar(&o.dir, "dir", scratchDir, "directory for scratch files")
	f.StringVar(&o.out, "out", resultsDir, "directory for the JSON result")
	if err := onlyFlags(f, args); err != nil {
		return o, err
	}
	var err error
	if o.chunk, err = parseSize(size); err != nil {
		return o, err
	}
	return o, differ.Config{ChunkSize: o.chunk}.Check()
}

// sharedReport is what a bench of releases found.
type sharedReport struct {
	machine
	ChunkSize int64       `json:"chunk_size"`
	Rows      []sharedRow `json:"rows"`
}

// sharedRow compares the topmost layers of two images; the ones below are the
// same. Sizes are of stored bytes.
type sharedRow struct {
	Name         string  `json:"name"`
	Older        string  `json:"older"`
	Newer        string  `json:"newer"`
	Chunks       int     `json:"chunks"` // of the newer one
	Bytes        int64   `json:"bytes"`
	SharedChunks int     `json:"shared_chunks"` // that the older one has
	SharedBytes  int64   `json:"shared_bytes"`
	Share        float64 `json:"share"` // of the bytes
}

func runShared(ctx context.Context, args []string, out io.Writer) (err error) {
	o, err := parseShared(args)
	if err != nil {
		return err
	}
	m, err := newMachine()
	if err != nil {
		return err
	}
	report := &sharedReport{machine: m, ChunkSize: o.chunk}
	dir, err := os.MkdirTemp(o.dir, "lazyerofs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	bed, err := coldstart.NewBed(dir, testenv.Profile{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bed.Close()) }()
	for _, r := range releases {
		row, err := r.compare(ctx, bed, o, out)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		report.Rows = append(report.Rows, row)
	}
	if err := report.noteLoad(); err != nil {
		return err
	}
	fmt.Fprint(out, report.table())
	return store(o.out, report.Date, "shared", report)
}

// compare converts both images and asks the command line what they share.
func (r release) compare(ctx context.Context, bed *coldstart.Bed, o sharedOptions, out io.Writer) (sharedRow, error) {
	older, newer, err := r.images(ctx)
	if err != nil {
		return sharedRow{}, err
	}
	var refs []string
	for _, recipe := range []testenv.Recipe{older, newer} {
		image, err := recipe.Build(ctx, func(layer string) { fmt.Fprintln(out, "building the layer:", layer) })
		if err != nil {
			return sharedRow{}, err
		}
		ref := bed.Registry.Addr() + "/" + image.Name + ":" + coldstart.TagLazy
		if _, err := lazyerofs(ctx, "convert", "--quiet", "--work-dir", bed.Dir, "--chunk-size", fmt.Sprint(o.chunk), "oci:"+image.Dir+":latest", ref); err != nil {
			return sharedRow{}, err
		}
		refs = append(refs, ref)
	}
	found, err := lazyerofs(ctx, "inspect", "--json", "--diff", refs[0], refs[1])
	if err != nil {
		return sharedRow{}, err
	}
	row, err := topLayer(found)
	row.Name, row.Older, row.Newer = r.name, older.Name, newer.Name
	return row, err
}

// topLayer reads what "inspect --diff" says about the topmost layer of the second
// image.
func topLayer(diff string) (sharedRow, error) {
	var d struct {
		B struct {
			Layers []struct {
				Chunks, SharedChunks int
				Bytes, SharedBytes   int64
			}
		}
	}
	if err := json.Unmarshal([]byte(diff), &d); err != nil {
		return sharedRow{}, fmt.Errorf("reading what two images share: %w", err)
	}
	if len(d.B.Layers) == 0 {
		return sharedRow{}, errors.New("the newer image has no layers")
	}
	l := d.B.Layers[len(d.B.Layers)-1]
	return sharedRow{
		Chunks: l.Chunks, Bytes: l.Bytes, SharedChunks: l.SharedChunks, SharedBytes: l.SharedBytes,
		Share: float64(l.SharedBytes) / float64(max(l.Bytes, 1)),
	}, nil
}

func (r *sharedReport) table() string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "image\tolder\tnewer\tchunks\tMB\tof them in the older\tMB\tshare\t")
	for _, x := range r.Rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%.1f\t%d\t%.1f\t%.0f %%\t\n", x.Name, x.Older, x.Newer,
			x.Chunks, float64(x.Bytes)/1e6, x.SharedChunks, float64(x.SharedBytes)/1e6, 100*x.Share)
	}
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}
