package converter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
)

// maxJSON bounds every JSON document that is read into memory.
const maxJSON = 8 << 20

// layoutSource reads an image from an OCI layout directory.
type layoutSource struct{ name, dir, tag string }

func (s *layoutSource) String() string { return s.name }

func (s *layoutSource) Close() error { return nil }

func (s *layoutSource) Root(context.Context) (ocispec.Descriptor, error) {
	idx, err := readIndex(s.dir)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %s: %w", s.dir, err)
	}
	desc, err := choose(idx.Manifests, s.tag)
	if err != nil {
		return desc, fmt.Errorf("%s: %w", s.name, err)
	}
	return desc, nil
}

func (s *layoutSource) Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return oci.NewStorageFromFS(os.DirFS(s.dir)).Fetch(ctx, desc)
}

// ReaderAt implements RandomAccess.
func (s *layoutSource) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("descriptor in %s: %w", s.name, err)
	}
	return local.OpenReader(filepath.Join(s.dir, ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
}

// referrers implements referrerLister.
func (s *layoutSource) referrers(ctx context.Context, subject digest.Digest) ([]Referrer, error) {
	idx, err := readIndex(s.dir)
	if err != nil {
		return nil, fmt.Errorf("reading OCI layout %s: %w", s.dir, err)
	}
	return referrersIn(idx.Manifests, subject, func(d ocispec.Descriptor) (digest.Digest, error) { return subjectOf(ctx, s, d) })
}

// subjectOf reads what the manifest or index d says that it refers to.
func subjectOf(ctx context.Context, src Source, d ocispec.Descriptor) (digest.Digest, error) {
	c := &conversion{src: src}
	raw, err := c.readJSON(ctx, d)
	if err != nil {
		return "", err
	}
	var m struct {
		Subject *ocispec.Descriptor `json:"subject"`
	}
	if err := json.Unmarshal(raw, &m); err != nil || m.Subject == nil {
		return "", nil //nolint:nilerr // what is no JSON refers to nothing
	}
	return m.Subject.Digest, nil
}

// refName is where layouts and archives keep the name of an image.
var refNames = []string{ocispec.AnnotationRefName, "io.containerd.image.name"}

// choose returns the entry that tag names, or the only one.
func choose(ms []ocispec.Descriptor, tag string) (ocispec.Descriptor, error) {
	var names []string
	for _, m := range ms {
		for _, key := range refNames {
			name := m.Annotations[key]
			if name != "" && name == tag {
				return m, nil
			}
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		if tag != "" && m.Digest.String() == tag {
			return m, nil
		}
	}
	same := len(ms) > 0 && !slices.ContainsFunc(ms, func(m ocispec.Descriptor) bool { return m.Digest != ms[0].Digest })
	switch {
	case len(ms) == 0:
		return ocispec.Descriptor{}, errors.New("it holds no image")
	case tag != "":
		return ocispec.Descriptor{}, fmt.Errorf("no image is named %q; it holds %q", tag, names)
	case same:
		return ms[0], nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("it holds %d images; add :TAG with one of %q", len(ms), names)
}

func readIndex(dir string) (ocispec.Index, error) {
	var idx ocispec.Index
	f, err := os.Open(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return idx, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxJSON))
	if err != nil {
		return idx, err
	}
	if err := json.Unmarshal(raw, &idx); err != nil {
		return idx, fmt.Errorf("%s is not JSON: %w", ocispec.ImageIndexFile, err)
	}
	return idx, nil
}

// layoutTarget writes an image into an OCI layout directory, beside what that
// already holds.
type layoutTarget struct {
	name, dir, tag string
	store          *oci.Storage
}

func newLayoutTarget(name, dir, tag string) (*layoutTarget, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making OCI layout %s: %w", dir, err)
	}
	store, err := oci.NewStorage(dir)
	if err != nil {
		return nil, fmt.Errorf("opening OCI layout %s: %w", dir, err)
	}
	return &layoutTarget{name: name, dir: dir, tag: tag, store: store}, nil
}

func (t *layoutTarget) String() string { return t.name }

func (t *layoutTarget) Close() error { return nil }

func (t *layoutTarget) Put(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (bool, error) {
	if ok, err := t.store.Exists(ctx, desc); err != nil || ok {
		return ok, err
	}
	for again := true; ; {
		rc, err := open(ctx)
		if err != nil {
			return false, err
		}
		err = errors.Join(t.store.Push(ctx, desc, rc), rc.Close())
		switch {
		case err == nil:
			return false, nil
		case errors.Is(err, errdef.ErrAlreadyExists):
			return true, nil
		case errors.Is(err, fs.ErrNotExist) && again: // who has just finished took the directory away
			again = false
			continue
		}
		t.sweepIngest(desc.Digest.Encoded() + "_") // where oras leaves what it began, and with it the space
		return false, fmt.Errorf("writing %s into %s: %w", desc.Digest, t.name, err)
	}
}

// Finish names root in index.json, in place of what had the name before. Others who
// write a name into the same layout wait for each other.
func (t *layoutTarget) Finish(_ context.Context, root ocispec.Descriptor, _ []byte) (err error) {
	lock, err := lockDir(t.dir, unix.LOCK_EX)
	switch {
	case err == nil:
		defer func() { err = errors.Join(err, lock.Close()) }()
	case errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EBADF):
		// NFS has no locks on directories. There it is as it is with other tools.
	default:
		return fmt.Errorf("naming an image in OCI layout %s: %w", t.dir, err)
	}
	idx, err := readIndex(t.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading OCI layout %s: %w", t.dir, err)
	}
	idx.Versioned = specs.Versioned{SchemaVersion: 2}
	idx.MediaType = ocispec.MediaTypeImageIndex
	idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m ocispec.Descriptor) bool {
		return m.Annotations[ocispec.AnnotationRefName] == t.tag
	})
	root.Annotations = map[string]string{ocispec.AnnotationRefName: t.tag}
	idx.Manifests = append(idx.Manifests, root)
	raw, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	if err := writeFile(filepath.Join(t.dir, ocispec.ImageLayoutFile), layout); err != nil {
		return err
	}
	t.sweepIngest("")
	return writeFile(filepath.Join(t.dir, ocispec.ImageIndexFile), raw)
}

// sweepIngest removes what conversions that failed or were killed left in the
// directory where blobs are written before they have their names: the files whose
// name starts with prefix and that nobody writes any more. Those that are whole are
// about to get their names. Without files the directory goes, too.
func (t *layoutTarget) sweepIngest(prefix string) {
	dir := filepath.Join(t.dir, "ingest")
	names, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		fi, err := n.Info()
		if err != nil || !strings.HasPrefix(n.Name(), prefix) {
			continue
		}
		whole := fi.Mode()&0o222 == 0
		if time.Since(fi.ModTime()) > maxIngest || !whole && unused(path) {
			_ = os.Remove(path)
		}
	}
	if prefix == "" {
		_ = os.Remove(dir)
	}
}

// maxIngest is how long a whole blob without its name stays in ingest.
const maxIngest = 24 * time.Hour

// unused reports whether nobody has the file open; false where the file system
// cannot tell. A lease on writing is given only then (fcntl(2), F_SETLEASE).
func unused(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK)
	return err == nil
}

// writeFile replaces a file in one step, so that a reader sees the old or the
// new content.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
