package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/stargz-snapshotter/fs/source"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// maxManifest is the size that registries must accept for a manifest
// (distribution spec) and the most that we read.
const maxManifest = 4 << 20

// ManifestDigest returns the digest of the manifest that a source's labels
// name, or "" when they name none.
func ManifestDigest(src source.Source) digest.Digest {
	for _, key := range []string{snapshotters.TargetManifestDigestLabel, LabelManifestDigest} {
		if d := digest.Digest(src.Target.Annotations[key]); checkDigest(d) == nil {
			return d
		}
	}
	return ""
}

// Describe returns the layer's descriptor with size, media type and the
// annotations of the image spec draft. It costs no request when the labels
// hold them; otherwise the manifest is fetched, if the labels name it.
func (r *Resolver) Describe(ctx context.Context, src source.Source) (ocispec.Descriptor, error) {
	desc := src.Target
	a := desc.Annotations
	if desc.Size > 0 && desc.MediaType != "" && a[chunk.AnnotationIndexRange] != "" && a[chunk.AnnotationIndexDigest] != "" {
		return desc, nil
	}
	dgst := ManifestDigest(src)
	if dgst == "" {
		return desc, nil
	}
	m, err := r.FetchManifest(ctx, src, dgst)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, l := range m.Layers {
		if l.Digest == desc.Digest {
			l.URLs = nil
			// The manifest is verified, labels are not: it wins.
			merged := maps.Clone(a)
			if merged == nil {
				merged = make(map[string]string, len(l.Annotations))
			}
			maps.Copy(merged, l.Annotations)
			l.Annotations = annotations(merged)
			return l, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("manifest %s does not list layer %s", dgst, desc.Digest)
}

// FetchManifest returns the image manifest dgst of the source's repository.
// Its bytes are verified against dgst. Concurrent calls share one fetch, and
// manifests are remembered. The result is shared: do not write to it.
func (r *Resolver) FetchManifest(ctx context.Context, src source.Source, dgst digest.Digest) (*ocispec.Manifest, error) {
	if err := checkDigest(dgst); err != nil {
		return nil, err
	}
	if err := checkName(src.Name); err != nil {
		return nil, err
	}
	// The repository is part of the key: a name that may not be read must not
	// give what another name gave.
	key := src.Name.Locator + "@" + dgst.String()
	if m, ok := r.manifests.Get(key); ok {
		return m, nil
	}
	rp := r.repo(src)
	ch := r.flight.DoChan(key, func() (any, error) {
		if !r.begin() {
			return nil, fmt.Errorf("fetching manifest %s: resolver is closed", dgst)
		}
		defer r.shared.Done()
		m, err := r.fetchManifest(r.ctx, rp, dgst)
		if err == nil {
			r.manifests.Add(key, m)
		}
		return m, err
	})
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		m, ok := res.Val.(*ocispec.Manifest)
		if !ok {
			return nil, fmt.Errorf("fetching manifest %s: shared fetch gave %T", dgst, res.Val)
		}
		return m, nil
	}
}

// fetchManifest tries each host once.
func (r *Resolver) fetchManifest(ctx context.Context, rp *repo, dgst digest.Digest) (*ocispec.Manifest, error) {
	hosts, _, err := rp.list()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, h := range hosts {
		e := &endpoint{res: r, repo: rp, key: hostKey(h), rest: "manifests/" + dgst.String()}
		m, err := e.manifest(ctx, dgst)
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	return nil, &ReadError{What: fmt.Sprintf("manifest %s@%s", rp.name.Locator, dgst), Errs: errs}
}

func (e *endpoint) manifest(ctx context.Context, dgst digest.Digest) (*ocispec.Manifest, error) {
	ctx, w := newWatch(ctx, e.res.cfg.Timeouts)
	defer w.stop()
	hdr := baseHeader()
	hdr.Set("Accept", strings.Join([]string{ocispec.MediaTypeImageManifest, images.MediaTypeDockerSchema2Manifest}, ", "))
	resp, err := e.do(ctx, http.MethodGet, hdr)
	if err != nil {
		return nil, err
	}
	rd := &body{rc: resp.Body, w: w, left: maxManifest + 1, url: redact(resp.Request.URL)}
	w.body()
	raw, err := io.ReadAll(rd)
	_ = resp.Body.Close()
	if err != nil {
		return nil, err
	}
	if len(raw) > maxManifest {
		return nil, &ProtocolError{URL: rd.url, Reason: fmt.Sprintf("manifest is larger than %d bytes", maxManifest)}
	}
	if dgst.Algorithm().FromBytes(raw) != dgst {
		return nil, &ProtocolError{URL: rd.url, Reason: "manifest does not match its digest"}
	}
	var m ocispec.Manifest
	if err := json.NewDecoder(bytes.NewReader(raw)).Decode(&m); err != nil {
		return nil, fmt.Errorf("manifest %s is not JSON: %w", dgst, err)
	}
	if len(m.Layers) == 0 || m.Config.Digest == "" {
		return nil, fmt.Errorf("%s is not an image manifest", dgst)
	}
	return &m, nil
}
