package converter

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archiveSource reads "docker save" archives, old and new, and OCI layouts in a
// tar, compressed or not. The tar is unpacked into a directory of its own below
// the work directory, which Close removes.
type archiveSource struct {
	name, file, ref, workDir string

	once    sync.Once
	scratch *scratch
	store   content.Store
	entries []ocispec.Descriptor
	root    ocispec.Descriptor
	err     error
}

func (s *archiveSource) String() string { return s.name }

func (s *archiveSource) unpackBelow(dir string) { s.workDir = dir }

func (s *archiveSource) Root(ctx context.Context) (ocispec.Descriptor, error) {
	s.once.Do(func() { s.root, s.err = s.unpack(ctx) })
	if s.err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading %s: %w", s.name, s.err)
	}
	return s.root, nil
}

func (s *archiveSource) unpack(ctx context.Context) (ocispec.Descriptor, error) {
	var none ocispec.Descriptor
	f, err := os.Open(s.file)
	if err != nil {
		return none, err
	}
	defer f.Close()
	r, err := compression.DecompressStream(f)
	if err != nil {
		return none, err
	}
	defer r.Close()
	if s.scratch, err = newScratch(s.workDir, "lazyerofs-archive-"); err != nil {
		return none, err
	}
	if s.store, err = local.NewStore(s.scratch.dir); err != nil {
		return none, err
	}
	top, err := archive.ImportIndex(ctx, s.store, r)
	if err != nil {
		return none, fmt.Errorf("not a docker or OCI image archive: %w", err)
	}
	raw, err := content.ReadBlob(ctx, s.store, top)
	if err != nil {
		return none, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(raw, &idx); err != nil {
		return none, err
	}
	s.entries = idx.Manifests
	return choose(idx.Manifests, s.ref)
}

// referrers implements referrerLister.
func (s *archiveSource) referrers(ctx context.Context, subject digest.Digest) ([]Referrer, error) {
	return referrersIn(s.entries, subject, func(d ocispec.Descriptor) (digest.Digest, error) { return subjectOf(ctx, s, d) })
}

func (s *archiveSource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	ra, err := s.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{content.NewReader(ra), ra}, nil
}

// ReaderAt implements RandomAccess.
func (s *archiveSource) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if s.store == nil {
		return nil, fmt.Errorf("reading %s: archive is not open", s.name)
	}
	return s.store.ReaderAt(ctx, desc)
}

func (s *archiveSource) Close() error {
	return s.scratch.Close()
}

// archiveTarget collects a layout and packs it into a tar at the end.
type archiveTarget struct {
	*layoutTarget
	scratch *scratch
	file    string
}

func newArchiveTarget(name, file, tag string) (*archiveTarget, error) {
	file, dir, err := Replaceable(file)
	var place *PlaceError
	if errors.As(err, &place) {
		return nil, fmt.Errorf("%w: %s: %w", ErrLocation, name, err)
	}
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	// Beside the file, so that the space is where the user wants the image.
	s, err := newScratch(dir, ".lazyerofs-archive-")
	if err != nil {
		return nil, fmt.Errorf("writing %s: %w", name, err)
	}
	t, err := newLayoutTarget(name, filepath.Join(s.dir, "layout"), tag)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &archiveTarget{layoutTarget: t, scratch: s, file: file}, nil
}

func (t *archiveTarget) Close() error { return t.scratch.Close() }

func (t *archiveTarget) Finish(ctx context.Context, root ocispec.Descriptor, raw []byte) error {
	if err := t.layoutTarget.Finish(ctx, root, raw); err != nil {
		return err
	}
	tmp, err := os.Create(filepath.Join(t.scratch.dir, "packed"))
	if err != nil {
		return fmt.Errorf("writing %s: %w", t.name, err)
	}
	err = errors.Join(packDir(ctx, tmp, t.dir), tmp.Chmod(0o644), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), t.file)
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", t.name, errors.Join(err, os.Remove(tmp.Name())))
	}
	return nil
}

// packDir writes the files below dir as a tar, in lexical order and without
// times or owners, so that the same image gives the same archive.
func packDir(ctx context.Context, w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir || d.IsDir() {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	return errors.Join(err, tw.Close())
}
