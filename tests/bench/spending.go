package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/pprof/profile"

	"github.com/lazyerofs/lazyerofs/differ"
)

// spending is on what a program spent its processor time.
type spending struct {
	Image string  `json:"image"`
	Input string  `json:"input,omitempty"`
	Total float64 `json:"cpu_seconds"`
	// Parts are shares of Total by the names in parts, and "other".
	Parts map[string]float64 `json:"parts"`
}

// part is a kind of work and the functions that do it, by prefixes of their
// names.
type part struct {
	name  string
	funcs []string
}

// partOther is what no part names.
const partOther = "other"

// parts are looked for from the innermost function of a sample outwards; of
// several that name the same function the first counts. So a digest is a digest
// whoever takes it, and a copy of memory belongs to whoever makes it.
var parts = []part{
	{"sha-256", []string{"crypto/internal/fips140/sha256.", "crypto/sha256."}},
	{"garbage collector", []string{"runtime.gcBgMarkWorker", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcAssistAlloc", "runtime.gcStart"}},
	{"goroutines", []string{"runtime.schedule", "runtime.mcall", "runtime.park_m", "runtime.futex", "runtime.goready", "runtime.sysmon", "runtime.chan", "runtime.selectgo"}},
	{"decompress input", []string{"github.com/klauspost/compress/flate.", "github.com/klauspost/compress/gzip.", "github.com/lazyerofs/lazyerofs/differ.openInput"}},
	{"receive blob", []string{"google.golang.org/grpc", "github.com/containerd/containerd/v2/core/content/proxy."}},
	{"write layer", []string{"github.com/lazyerofs/lazyerofs/differ.(*sparseWriter)", "github.com/lazyerofs/lazyerofs/differ.writeLayer"}},
	{"compress", []string{"github.com/lazyerofs/lazyerofs/differ.(*encoder).encode"}},
	{"decompress again", []string{"github.com/lazyerofs/lazyerofs/differ.(*codec).unpack"}},
	{"write spool", []string{"github.com/lazyerofs/lazyerofs/differ.(*spool).Write", "github.com/lazyerofs/lazyerofs/differ.(*spool).flush"}},
	{"read spool", []string{"github.com/lazyerofs/lazyerofs/differ.(*spool).readFull"}},
	{"write blob", []string{"github.com/lazyerofs/lazyerofs/differ.(*emitter).put"}},
	{"index", []string{"github.com/lazyerofs/lazyerofs/fs/chunk."}},
	{"metadata", []string{"github.com/lazyerofs/lazyerofs/fs/erofs.", "github.com/lazyerofs/lazyerofs/differ.planData"}},
	{"read tar", []string{"github.com/lazyerofs/lazyerofs/differ.(*input)", "archive/tar.", "github.com/lazyerofs/lazyerofs/differ.(*ingest)", "github.com/lazyerofs/lazyerofs/differ.(*window)", "github.com/lazyerofs/lazyerofs/differ.(*sweep)"}},
	{"fill chunks", []string{"github.com/lazyerofs/lazyerofs/differ.(*store)", "github.com/lazyerofs/lazyerofs/differ.(*direct)", "github.com/lazyerofs/lazyerofs/differ.(*emitter)", "github.com/lazyerofs/lazyerofs/differ.scan"}},
}

// partOf finds the part that a sample belongs to.
func partOf(s *profile.Sample) string {
	for _, l := range s.Location {
		for _, line := range l.Line {
			for _, p := range parts {
				if slices.ContainsFunc(p.funcs, func(f string) bool { return strings.HasPrefix(line.Function.Name, f) }) {
					return p.name
				}
			}
		}
	}
	return partOther
}

// addProfile adds the CPU profile in file to w. Until finish the parts are in
// seconds.
func (w *spending) addProfile(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return fmt.Errorf("reading a profile: %w", err)
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		return fmt.Errorf("reading the profile %s: %w", file, err)
	}
	at := slices.IndexFunc(p.SampleType, func(t *profile.ValueType) bool { return t.Type == "cpu" && t.Unit == "nanoseconds" })
	if at < 0 {
		return fmt.Errorf("the profile %s does not say how much time was spent", file)
	}
	for _, s := range p.Sample {
		sec := time.Duration(s.Value[at]).Seconds()
		w.Parts[partOf(s)] += sec
		w.Total += sec
	}
	return nil
}

// finish turns seconds into shares.
func (w *spending) finish() {
	for k := range w.Parts {
		w.Parts[k] /= max(w.Total, 1e-9)
	}
}

// spendingTable has a column for each of all, under the name that title gives.
func spendingTable(all []spending, title func(spending) string) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(name string, value func(spending) string) {
		fmt.Fprintf(w, "%s\t", name)
		for _, x := range all {
			fmt.Fprintf(w, "%s\t", value(x))
		}
		fmt.Fprintln(w)
	}
	line("", title)
	for _, name := range append(partNames(), partOther) {
		if slices.ContainsFunc(all, func(x spending) bool { return x.Parts[name] > 0 }) {
			line(name, func(x spending) string { return fmt.Sprintf("%.1f", 100*x.Parts[name]) })
		}
	}
	line("CPU s", func(x spending) string { return fmt.Sprintf("%.2f", x.Total) })
	_ = w.Flush() // a bytes.Buffer takes everything
	return b.String()
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// profileOf converts an image once more, with a profile.
func profileOf(ctx context.Context, image, input string, layers []layerFiles, dir string, o convertOptions) (spending, error) {
	w := spending{Image: image, Input: input, Parts: make(map[string]float64)}
	for n, l := range layers {
		file := filepath.Join(dir, "profile")
		if o.keep != "" {
			file = filepath.Join(o.keep, fmt.Sprintf("%s-%s-%d.pprof", image, input, n))
		}
		out := filepath.Join(dir, "native")
		var r differ.Result
		_, err := worker(ctx, layerVerb, layerJob{In: l.in(input), Out: out, Spool: dir, Level: o.level, Profile: file}, &r)
		if err == nil {
			err = w.addProfile(file)
		}
		if o.keep == "" {
			err = errors.Join(err, os.Remove(file))
		}
		if err = errors.Join(err, os.Remove(out)); err != nil {
			return w, err
		}
	}
	w.finish()
	return w, nil
}
