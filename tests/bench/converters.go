package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/pprof"

	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/tests/testenv"
)

// conversion is one layer that a system is to convert, with dir for its files.
type conversion struct {
	in    string
	input string // the form of in
	dir   string
	level int
}

// outcome is a layer, or several, as one system has made it.
type outcome struct {
	name  string
	steps []step
	cost
	size int64
}

// converter is one way from a tar to an EROFS image. It may have several
// outcomes: with and without its last step.
type converter struct {
	name    string
	convert func(context.Context, conversion) ([]outcome, error)
	once    bool // so slow that one round has to do
}

// Names of outcomes.
const (
	oursZstd    = "lazyerofs"
	oursRaw     = "lazyerofs, raw"
	mkfsRaw     = "mkfs"
	mkfsZstd1   = "mkfs, zstd -T1"
	mkfsZstd    = "mkfs, zstd"
	mkfsDigests = "mkfs, zstd, sha256"
	mkfsInside  = "mkfs -zzstd"
)

// converters take turns in this order.
var converters = []converter{
	{name: oursZstd, convert: ours(oursZstd, differ.Zstd)},
	{name: mkfsZstd, convert: mkfsThenZstd},
	{name: oursRaw, convert: ours(oursRaw, differ.Raw)},
	{name: mkfsInside, convert: mkfsCompressed, once: true},
}

// rival is the outcome of ours that another one is held against: a blob is
// compressed or it is not.
func rival(name string) string {
	if name == mkfsRaw || name == oursRaw {
		return oursRaw
	}
	return oursZstd
}

// addOutcomes adds another layer to what was done of an image.
func addOutcomes(sum, more []outcome) []outcome {
	if len(sum) == 0 {
		return more
	}
	for i := range sum {
		sum[i].cost = sum[i].then(more[i].cost)
		sum[i].size += more[i].size
		for k := range sum[i].steps {
			s := &sum[i].steps[k]
			s.cost = s.then(more[i].steps[k].cost)
		}
	}
	return sum
}

// outcomeOf is what the steps lead to.
func outcomeOf(name string, size int64, steps ...step) outcome {
	o := outcome{name: name, size: size}
	for _, s := range steps {
		o.cost = o.then(s.cost)
		o.steps = append(o.steps, s)
	}
	return o
}

// layerVerb makes this program convert one layer.
const layerVerb = "convert-layer"

// layerJob is one conversion of ours.
type layerJob struct {
	In, Out, Spool string
	Form           differ.Form
	Level          int
	Profile        string // file for a CPU profile; empty makes none
}

// convertLayer is the process that converts, as the command line does.
func convertLayer(ctx context.Context, j layerJob) (_ differ.Result, err error) {
	in, err := os.Open(j.In)
	if err != nil {
		return differ.Result{}, fmt.Errorf("opening the layer: %w", err)
	}
	defer in.Close()
	out, err := os.Create(j.Out)
	if err != nil {
		return differ.Result{}, fmt.Errorf("creating the native layer: %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return differ.Result{}, fmt.Errorf("creating a profile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return differ.Result{}, fmt.Errorf("starting a profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	st, err := in.Stat()
	if err != nil {
		return differ.Result{}, fmt.Errorf("looking at the layer: %w", err)
	}
	return differ.ConvertAt(ctx, in, st.Size(), out, differ.Config{Form: j.Form, Level: j.Level, SpoolDir: j.Spool})
}

func ours(name string, form differ.Form) func(context.Context, conversion) ([]outcome, error) {
	return func(ctx context.Context, c conversion) ([]outcome, error) {
		to := filepath.Join(c.dir, "native")
		var r differ.Result
		spent, err := worker(ctx, layerVerb, layerJob{In: c.in, Out: to, Spool: c.dir, Form: form, Level: c.level}, &r)
		if err != nil {
			return nil, err
		}
		return []outcome{outcomeOf(name, r.Descriptor.Size, step{"convert", spent})}, os.Remove(to)
	}
}

// mkfsArgs are the options that containerd's differ gives to mkfs.erofs, with an
// identity and a time of our choice, and more.
func mkfsArgs(c conversion, to string, more ...string) []string {
	args := append([]string{"--tar=f", "--aufs", "--quiet", "-Enoinline_data", "-T0", "--mkfs-time", "--sort=none",
		"-Uc1b9d5a2-f162-11cf-9ece-0020afc76f16"}, more...)
	if c.input == inputGzip {
		args = append(args, "--ungzip")
	}
	return append(args, to, c.in)
}

// mkfsThenZstd makes an image, compresses it on one core, which is what zstd does
// when nothing is said, and on all, and takes the digests that a manifest needs.
// Not even the index of a lazy layer is made.
func mkfsThenZstd(ctx context.Context, c conversion) ([]outcome, error) {
	mkfs, err := testenv.Tool("mkfs.erofs")
	if err != nil {
		return nil, err
	}
	image, blob := filepath.Join(c.dir, "image"), filepath.Join(c.dir, "image.zst")
	made, _, err := command(ctx, nil, mkfs, mkfsArgs(c, image)...)
	if err != nil {
		return nil, err
	}
	onOne, size, err := compress(ctx, c.level, 1, image, blob)
	if err != nil {
		return nil, err
	}
	// What the one before has written is not to be in the time of this one.
	unix.Sync()
	packed, _, err := compress(ctx, c.level, runtime.NumCPU(), image, blob)
	if err != nil {
		return nil, err
	}
	var sums []string
	summed, err := worker(ctx, digestVerb, []string{c.in, image, blob}, &sums)
	if err != nil {
		return nil, err
	}
	sizes, err := sizesOf(image, blob)
	if err != nil {
		return nil, err
	}
	steps := []step{{"mkfs", made}, {"zstd", packed}, {"sha256", summed}}
	return []outcome{
		outcomeOf(mkfsRaw, sizes[0], steps[:1]...),
		outcomeOf(mkfsZstd1, size, steps[0], step{"zstd", onOne}),
		outcomeOf(mkfsZstd, sizes[1], steps[:2]...),
		outcomeOf(mkfsDigests, sizes[1], steps...),
	}, errors.Join(os.Remove(image), os.Remove(blob))
}

// compress lets zstd make blob of image on some cores and returns what that took
// and the length of blob in bytes.
func compress(ctx context.Context, level, cores int, image, blob string) (cost, int64, error) {
	spent, _, err := command(ctx, nil, "zstd", "-q", "-f", fmt.Sprintf("-%d", level), "--ultra", fmt.Sprintf("-T%d", cores), image, "-o", blob)
	if err != nil {
		return spent, 0, err
	}
	sizes, err := sizesOf(blob)
	if err != nil {
		return spent, 0, err
	}
	return spent, sizes[0], nil
}

// mkfsCompressed lets mkfs.erofs compress, in units as long as our chunks. Such
// an image cannot be loaded lazily: a read does not say which bytes it needs.
func mkfsCompressed(ctx context.Context, c conversion) ([]outcome, error) {
	mkfs, err := testenv.Tool("mkfs.erofs")
	if err != nil {
		return nil, err
	}
	image := filepath.Join(c.dir, "image")
	made, _, err := command(ctx, nil, mkfs, mkfsArgs(c, image, fmt.Sprintf("-zzstd,level=%d", c.level), fmt.Sprintf("-C%d", differ.DefaultChunkSize))...)
	if err != nil {
		return nil, err
	}
	sizes, err := sizesOf(image)
	if err != nil {
		return nil, err
	}
	return []outcome{outcomeOf(mkfsInside, sizes[0], step{"mkfs", made})}, os.Remove(image)
}

func sizesOf(files ...string) ([]int64, error) {
	var all []int64
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			return nil, fmt.Errorf("looking at what was made: %w", err)
		}
		all = append(all, fi.Size())
	}
	return all, nil
}

// digestVerb makes this program digest files: the system's own program does it
// without the processor's instructions for it.
const digestVerb = "digest"

// digests returns the SHA-256 of each file, in hexadecimal.
func digests(_ context.Context, files []string) ([]string, error) {
	var all []string
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("digesting: %w", err)
		}
		h := sha256.New()
		_, err = io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, make([]byte, block))
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("digesting %s: %w", name, err)
		}
		all = append(all, fmt.Sprintf("%x", h.Sum(nil)))
	}
	return all, nil
}
