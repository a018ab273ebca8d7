package converter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Source gives the content of an image. Its methods are safe for concurrent use.
type Source interface {
	// String is what messages call it.
	String() string
	// Root returns the descriptor of the image's manifest or index.
	Root(ctx context.Context) (ocispec.Descriptor, error)
	// Open returns the content of desc. The caller verifies it.
	Open(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// Close releases what the source holds.
	Close() error
}

// Target takes the content of an image. Put is safe for concurrent use.
type Target interface {
	// String is what messages call it.
	String() string
	// Put stores the content of desc unless it is there already, which it
	// reports. It may call open more than once, and verifies what it reads.
	Put(ctx context.Context, desc ocispec.Descriptor, open func(context.Context) (io.ReadCloser, error)) (existed bool, err error)
	// Finish gives the image its name; root was Put before.
	Finish(ctx context.Context, root ocispec.Descriptor, raw []byte) error
	// Close releases what the target holds. Without Finish nothing is published.
	Close() error
}

// RandomAccess is implemented by sources whose blobs are files of this machine, where
// a read of a few bytes at random costs no more than the bytes.
type RandomAccess interface {
	// ReaderAt opens the blob of desc. Nothing is verified.
	ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error)
}

// origin is implemented by sources whose blobs a registry can mount from one
// repository into another.
type origin interface {
	// Origin returns the registry and the repository.
	Origin() (host, repo string)
}

// Prefixes of locations that are not references to a registry.
const (
	prefixLayout        = "oci:"
	prefixArchive       = "oci-archive:"
	prefixDockerArchive = "docker-archive:"
)

// ErrLocation marks a source or target that cannot be understood.
var ErrLocation = errors.New("not a usable image location")

// ParseSource opens the image that s names: a registry reference
// ("python:3.13" as docker writes it), "oci:DIR[:TAG]", "oci-archive:FILE[:TAG]"
// or "docker-archive:FILE[:REF]". hosts is used for registry references.
func ParseSource(s string, hosts docker.RegistryHosts) (Source, error) {
	switch {
	case strings.HasPrefix(s, prefixLayout):
		dir, tag := splitTag(strings.TrimPrefix(s, prefixLayout))
		if dir == "" {
			return nil, fmt.Errorf("%w: %q names no directory; write oci:DIR or oci:DIR:TAG", ErrLocation, s)
		}
		return &layoutSource{name: s, dir: dir, tag: tag}, nil
	case strings.HasPrefix(s, prefixArchive), strings.HasPrefix(s, prefixDockerArchive):
		_, rest, _ := strings.Cut(s, ":")
		file, tag := splitTag(rest)
		if file == "" {
			return nil, fmt.Errorf("%w: %q names no file", ErrLocation, s)
		}
		return &archiveSource{name: s, file: file, ref: tag}, nil
	}
	ref, err := parseReference(s)
	if err != nil {
		return nil, err
	}
	at := place{reference.Domain(ref), reference.Path(ref)}
	return &registrySource{name: s, ref: ref.String(), place: at, resolver: newResolver(hosts)}, nil
}

// ParseTarget opens the place that s names for writing: a registry reference
// with a tag, "oci:DIR[:TAG]" or "oci-archive:FILE[:TAG]". A tag left out is
// "latest". hosts is used for registry references.
func ParseTarget(s string, hosts docker.RegistryHosts) (Target, error) {
	switch {
	case strings.HasPrefix(s, prefixDockerArchive):
		return nil, fmt.Errorf("%w: %q: a docker archive cannot hold EROFS layers; write oci-archive:FILE instead", ErrLocation, s)
	case strings.HasPrefix(s, prefixLayout), strings.HasPrefix(s, prefixArchive):
		_, rest, _ := strings.Cut(s, ":")
		path, tag := splitTag(rest)
		if path == "" {
			return nil, fmt.Errorf("%w: %q names no path", ErrLocation, s)
		}
		if tag == "" {
			tag = "latest"
		}
		if strings.HasPrefix(s, prefixLayout) {
			return newLayoutTarget(s, path, tag)
		}
		return newArchiveTarget(s, path, tag)
	}
	ref, err := parseReference(s)
	if err != nil {
		return nil, err
	}
	tagged, ok := ref.(reference.NamedTagged)
	if _, digested := ref.(reference.Digested); digested || !ok {
		return nil, fmt.Errorf("%w: %q: a target needs a tag, not a digest: what comes out has a digest of its own", ErrLocation, s)
	}
	return &registryTarget{
		name: s, tag: tagged.Tag(), place: place{reference.Domain(ref), reference.Path(ref)}, hosts: hosts, resolver: newResolver(hosts),
	}, nil
}

// parseReference reads a reference as docker does; "docker://" is allowed
// because other tools want it.
func parseReference(s string) (reference.Named, error) {
	ref, err := reference.ParseDockerRef(strings.TrimPrefix(s, "docker://"))
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w; write HOST/NAME:TAG, oci:DIR, oci-archive:FILE or docker-archive:FILE", ErrLocation, s, err)
	}
	return ref, nil
}

// splitTag splits PATH[:TAG]. A path that exists as it is has no tag.
func splitTag(s string) (path, tag string) {
	if _, err := os.Stat(s); err == nil {
		return s, ""
	}
	// A reference after an archive may itself hold colons and slashes, but a
	// path rarely holds a colon: the first one that follows an existing path,
	// otherwise the last, is the separator.
	for i := range len(s) {
		if s[i] == ':' {
			if _, err := os.Stat(s[:i]); err == nil {
				return s[:i], s[i+1:]
			}
		}
	}
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.Contains(s[i:], "/") {
		return s[:i], s[i+1:]
	}
	return s, ""
}
