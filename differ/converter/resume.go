package converter

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// errAbsent is what a Put meets when the target lacks a blob and its bytes are
// not at hand.
var errAbsent = errors.New("the bytes of the blob are not here")

// finder is implemented by targets that can look for a blob without taking it.
type finder interface {
	// find looks for the blob of desc in the target and then in repos, as
	// "host/name", that the target could mount it from. The name of the repository
	// is empty when the target itself has it, and has no host otherwise.
	find(ctx context.Context, desc ocispec.Descriptor, repos []string) (repo string, found bool)
	// mountFrom makes a Put of the result ask for the blob of repo.
	mountFrom(desc ocispec.Descriptor, repo string) ocispec.Descriptor
	// repository is "host/name" of the target itself.
	repository() string
}

// resume does with a layer that an earlier run converted what is left to do. It
// reports whether that was possible.
func (c *conversion) resume(ctx context.Context, j *job) (bool, error) {
	start := time.Now()
	rec, meta, ok := c.keep.load(j.key)
	if !ok {
		return false, nil
	}
	for _, id := range j.diffIDs {
		if id != rec.TarDiffID {
			return false, nil // whose fault it is, the conversion will tell
		}
	}
	j.result = rec.Result
	blob := c.keep.blob(j.key)
	if blob != nil {
		defer blob.Close()
	}
	existed, err := c.deliver(ctx, j, rec, blob)
	if errors.Is(err, errAbsent) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	j.dirs.restore(meta, c.opts.Layer.Form, rec.Result)
	j.result.Existed, j.result.Resumed, j.result.Seconds = existed, true, time.Since(start).Seconds()
	return true, nil
}

// deliver puts a layer whose bytes, if any are left, are in blob.
func (c *conversion) deliver(ctx context.Context, j *job, rec *record, blob *os.File) (bool, error) {
	d := rec.Desc
	if f, ok := c.dst.(finder); ok {
		repo, found := f.find(ctx, d, rec.Repos)
		switch {
		case found:
			d = f.mountFrom(d, repo)
		case blob == nil:
			return false, errAbsent
		}
	}
	return c.dst.Put(ctx, d, func(ctx context.Context) (io.ReadCloser, error) {
		if blob == nil || !whole(blob, d) {
			return nil, errAbsent
		}
		return &counting{ctx: ctx, r: io.NewSectionReader(blob, 0, d.Size), report: c.progress(j, Push, d.Size)}, nil
	})
}

// forget ends the keeping of blobs once the image has its name.
func (c *conversion) forget() {
	repo := ""
	if f, ok := c.dst.(finder); ok {
		repo = f.repository()
	}
	for _, j := range c.jobs {
		if j.key == "" {
			continue
		}
		if err := c.keep.published(j.key, repo); err != nil {
			c.warn("%v", err) // the image is there all the same
		}
	}
}
