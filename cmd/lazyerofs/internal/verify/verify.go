package verify

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"oras.land/oras-go/v2/errdef"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// Config says what is checked.
type Config struct {
	// Layers opens the image.
	Layers *imagedata.Layers
	// Platforms limits the check to these entries of an index, and not those of older
	// machines that they could run; empty means all.
	Platforms []ocispec.Platform
	// Parallel is how many layers are checked at once; 0 means 2.
	Parallel int
	// Progress is told how layers get on, from several goroutines; may be nil.
	Progress func(converter.Event)
}

// Report is what was checked and what was wrong with it.
type Report struct {
	Image  string        `json:"image"`
	Digest digest.Digest `json:"digest"`
	// Sound says that there are no faults.
	Sound bool `json:"sound"`
	// Documents counts indexes, manifests and configs; Bytes is what all objects
	// have together.
	Documents int     `json:"documents"`
	Bytes     int64   `json:"bytes"`
	Layers    []Layer `json:"layers"`
	Faults    []Fault `json:"faults,omitempty"`
}

// Layer is a blob of a manifest.
type Layer struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
	// Kind is "native", "tar" or "other", which is only held against its digest.
	Kind string `json:"kind"`
	// Chunks and Inodes of a native layer; NotLazy says why it has no chunks.
	Chunks  int    `json:"chunks,omitempty"`
	Inodes  int    `json:"inodes,omitempty"`
	NotLazy string `json:"notLazy,omitempty"`
	// Verity is the root of its dm-verity hash tree, if it has one that is right.
	Verity digest.Digest `json:"verity,omitempty"`
	Faults int           `json:"faults"`
}

// Fault is one thing that is wrong.
type Fault struct {
	// Object is what it is in, by the digest that the image gives it.
	Object digest.Digest `json:"object"`
	// Check is the check that failed: digest, size, document, index, chunk,
	// diff-id, parser, verity or annotation.
	Check string `json:"check"`
	// Text is one sentence about it.
	Text string `json:"text"`
}

const (
	maxDocument = 8 << 20 // bytes; as the converter reads them
	maxDepth    = 4       // of indexes in indexes, the manifest counted
	maxEntries  = 1000    // of one index
	maxFaults   = 100     // of one layer; one flipped byte per chunk is enough to know
)

// task is a blob to be checked, with what a config says about it.
type task struct {
	desc   ocispec.Descriptor
	diffID digest.Digest // "" if no config has one
	layer  *Layer
	gone   bool // the source has no such blob
}

type run struct {
	cfg   Config
	tasks []*task
	seen  map[string]bool

	mu     sync.Mutex
	report *Report
}

// Run checks the image.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Progress == nil {
		cfg.Progress = func(converter.Event) {}
	}
	src := cfg.Layers.Source
	r := &run{cfg: cfg, seen: map[string]bool{}, report: &Report{Image: src.String()}}
	root, err := src.Root(ctx)
	if err != nil {
		return nil, fmt.Errorf("finding %s: %w", src, err)
	}
	r.report.Digest = root.Digest
	if err := r.walk(ctx, root, 0); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(cmp.Or(max(cfg.Parallel, 0), 2))
	for _, t := range r.tasks {
		g.Go(func() error {
			if err := r.blob(ctx, t); err != nil {
				return fmt.Errorf("reading %s of %s: %w", t.desc.Digest, src, err)
			}
			cfg.Progress(converter.Event{Layer: t.desc.Digest, Phase: converter.Done, Bytes: t.desc.Size, Total: t.desc.Size})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, t := range r.tasks {
		r.report.Layers = append(r.report.Layers, *t.layer)
	}
	slices.SortStableFunc(r.report.Faults, func(a, b Fault) int { return strings.Compare(a.Object.String(), b.Object.String()) })
	r.report.Sound = len(r.report.Faults) == 0
	return r.report, nil
}

// fault notes what is wrong.
func (r *run) fault(object digest.Digest, check, format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.report.Faults = append(r.report.Faults, Fault{object, check, fmt.Sprintf(format, args...)})
}

// absent tells an object that is not there from a source that does not answer.
func absent(err error) bool {
	var status *remote.HTTPError
	if errors.As(err, &status) {
		return status.Status == http.StatusNotFound
	}
	return errdefs.IsNotFound(err) || errors.Is(err, os.ErrNotExist) || errors.Is(err, errdef.ErrNotFound)
}

// document reads an object whole and holds it against its descriptor. It
// returns nil when there is a fault.
func (r *run) document(ctx context.Context, d ocispec.Descriptor, what string) ([]byte, error) {
	r.report.Documents++
	r.report.Bytes += max(d.Size, 0)
	if err := d.Digest.Validate(); err != nil {
		r.fault(d.Digest, "document", "the digest %.80q of a %s is malformed: %v", d.Digest, what, err)
		return nil, nil
	}
	if d.Size < 0 || d.Size > maxDocument {
		r.fault(d.Digest, "size", "%s %s is said to have %d bytes; at most %d are read", what, d.Digest, d.Size, maxDocument)
		return nil, nil
	}
	rc, err := r.cfg.Layers.Source.Open(ctx, d)
	if err == nil {
		defer rc.Close()
		var b []byte
		if b, err = io.ReadAll(io.LimitReader(rc, d.Size+1)); err == nil {
			return r.checked(d, b, what), nil
		}
	}
	if absent(err) {
		r.fault(d.Digest, "digest", "%s %s is not there", what, d.Digest)
		return nil, nil
	}
	return nil, fmt.Errorf("reading %s %s: %w", what, d.Digest, err)
}

func (r *run) checked(d ocispec.Descriptor, b []byte, what string) []byte {
	switch {
	case int64(len(b)) != d.Size:
		r.fault(d.Digest, "size", "%s %s does not have the %d bytes that its descriptor says", what, d.Digest, d.Size)
	case d.Digest.Algorithm().FromBytes(b) != d.Digest:
		r.fault(d.Digest, "digest", "%s %s has other bytes than its digest says", what, d.Digest)
	default:
		return b
	}
	return nil
}

// parse decodes a document.
func (r *run) parse(d ocispec.Descriptor, b []byte, what string, to any) bool {
	if b == nil {
		return false
	}
	if err := json.Unmarshal(b, to); err != nil {
		r.fault(d.Digest, "document", "%s %s is not what its media type says: %v", what, d.Digest, err)
		return false
	}
	return true
}

// walk follows indexes to manifests and notes the blobs that are to be checked.
func (r *run) walk(ctx context.Context, d ocispec.Descriptor, depth int) error {
	key := "document " + d.Digest.String()
	if r.seen[key] {
		return nil
	}
	r.seen[key] = true
	switch {
	case images.IsManifestType(d.MediaType):
		return r.manifest(ctx, d)
	case !images.IsIndexType(d.MediaType):
		r.fault(d.Digest, "document", "%s is a %.80q, neither an index nor a manifest", d.Digest, d.MediaType)
		return nil
	case depth == maxDepth:
		r.fault(d.Digest, "document", "index %s is more than %d indexes deep", d.Digest, maxDepth)
		return nil
	}
	b, err := r.document(ctx, d, "index")
	if err != nil {
		return err
	}
	var idx ocispec.Index
	if !r.parse(d, b, "index", &idx) {
		return nil
	}
	if len(idx.Manifests) > maxEntries {
		r.fault(d.Digest, "document", "index %s has %d entries; at most %d are checked", d.Digest, len(idx.Manifests), maxEntries)
		return nil
	}
	before := len(r.seen)
	for _, m := range idx.Manifests {
		if r.wanted(m) {
			if err := r.walk(ctx, m, depth+1); err != nil {
				return err
			}
		}
	}
	if len(r.seen) == before && len(r.cfg.Platforms) > 0 && depth == 0 {
		return fmt.Errorf("%s has no image for the platforms that were asked for: %w", r.report.Image, converter.ErrPlatform)
	}
	return nil
}

// wanted reports whether an entry of an index is to be checked.
func (r *run) wanted(m ocispec.Descriptor) bool {
	if len(r.cfg.Platforms) == 0 || m.Platform == nil {
		return true
	}
	p := *m.Platform
	p.OSFeatures = nil
	return slices.ContainsFunc(r.cfg.Platforms, func(want ocispec.Platform) bool { return platforms.OnlyStrict(want).Match(platforms.Normalize(p)) })
}

// manifest checks a manifest and its config, and notes its layers.
func (r *run) manifest(ctx context.Context, d ocispec.Descriptor) error {
	b, err := r.document(ctx, d, "manifest")
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if !r.parse(d, b, "manifest", &m) {
		return nil
	}
	diffIDs, err := r.config(ctx, d, m)
	if err != nil {
		return err
	}
	for i, l := range m.Layers {
		t := &task{desc: l, layer: &Layer{Digest: l.Digest, MediaType: l.MediaType, Size: l.Size, Kind: kindOf(l.MediaType)}}
		if i < len(diffIDs) {
			t.diffID = diffIDs[i]
		}
		notes, err := json.Marshal(l) // map keys are sorted
		if err != nil {
			return err
		}
		key := fmt.Sprintf("%s %s", t.diffID, notes)
		if r.seen[key] {
			continue
		}
		r.seen[key] = true
		if err := l.Digest.Validate(); err != nil || l.Size < 0 {
			r.fault(d.Digest, "document", "manifest %s has a layer with digest %.80q and size %d", d.Digest, l.Digest, l.Size)
			continue
		}
		r.report.Bytes += l.Size
		r.tasks = append(r.tasks, t)
	}
	return nil
}

// config checks the config of a manifest and returns its diff ids, if it is the
// config of an image.
func (r *run) config(ctx context.Context, d ocispec.Descriptor, m ocispec.Manifest) ([]digest.Digest, error) {
	b, err := r.document(ctx, m.Config, "config")
	if err != nil || b == nil || !images.IsConfigType(m.Config.MediaType) {
		return nil, err
	}
	var img ocispec.Image
	if !r.parse(m.Config, bytes.Clone(b), "config", &img) {
		return nil, nil
	}
	layers := slices.ContainsFunc(m.Layers, func(l ocispec.Descriptor) bool { return kindOf(l.MediaType) != "other" })
	if len(img.RootFS.DiffIDs) != len(m.Layers) && layers {
		r.fault(d.Digest, "diff-id", "manifest %s has %d layers, but its config %d diff ids", d.Digest, len(m.Layers), len(img.RootFS.DiffIDs))
		return nil, nil
	}
	if !layers {
		return nil, nil // an attestation; what its config says of statements is of no use
	}
	return img.RootFS.DiffIDs, nil
}
