package remote

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/stargz-snapshotter/fs/source"
	distref "github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// Our own labels: what a client that is not containerd's sets to say where a
// layer comes from.
const (
	// LabelImageRef is the image reference, as the user would type it in full.
	LabelImageRef = chunk.SnapshotPrefix + "image-ref"
	// LabelLayerDigest is the digest of the layer's blob.
	LabelLayerDigest = chunk.SnapshotPrefix + "layer-digest"
	// LabelManifestDigest is the digest of the manifest that lists the layer.
	LabelManifestDigest = chunk.SnapshotPrefix + "manifest-digest"
)

// maxNeighbours bounds how many layers of an image a label may name.
const maxNeighbours = 1024

// ErrNoSource means that labels do not say where a layer comes from.
var ErrNoSource = errors.New("labels name no image reference and layer digest; " +
	"set enable_remote_snapshot_annotations in the proxy plugin's exports")

// labelError is why labels that are there are not believed. It is an ErrNoSource.
type labelError struct{ reason string }

func (e *labelError) Error() string {
	return "labels do not say reliably where the layer comes from: " + e.reason
}

func (e *labelError) Is(target error) bool { return target == ErrNoSource }

// Sources is the chain by which every layer is found: containerd's labels,
// then stargz-snapshotter's, then ours.
func Sources(hosts source.RegistryHosts) source.GetSources {
	return Chain(FromCRILabels(hosts), fromStargzLabels(hosts), FromOwnLabels(hosts))
}

// Chain asks each of gets and returns the first answer, if all are sound and name
// the same blob of the same repository. Label values are attacker-controlled, and
// which kind of labels the client wrote is not to be seen: a manifest can carry
// those of the other kinds as annotations, to lead us and our credentials to
// another host. Where kinds disagree none is believed. Names and digests are
// validated, and URLs are dropped, so that a host is only ever the reference's.
func Chain(gets ...source.GetSources) source.GetSources {
	return func(labels map[string]string) ([]source.Source, error) {
		var found []source.Source
		for _, get := range gets {
			srcs, err := get(labels)
			if errors.Is(err, ErrNoSource) || (err == nil && len(srcs) == 0) {
				continue
			}
			if err == nil {
				srcs, err = sanitize(srcs, labels)
			}
			if err != nil {
				return nil, &labelError{fmt.Sprintf("%.200s", err.Error())}
			}
			if found == nil {
				found = srcs
			}
			have, also := found[0], srcs[0]
			if have.Name.Locator != also.Name.Locator || have.Target.Digest != also.Target.Digest {
				return nil, &labelError{fmt.Sprintf("they name both %.100s@%s and %.100s@%s",
					have.Name.Locator, have.Target.Digest, also.Name.Locator, also.Target.Digest)}
			}
		}
		if found == nil {
			return nil, ErrNoSource
		}
		return found, nil
	}
}

// FromCRILabels reads the labels of containerd's pkg/snapshotters.
func FromCRILabels(hosts source.RegistryHosts) source.GetSources {
	return fromLabels(hosts, snapshotters.TargetRefLabel, snapshotters.TargetLayerDigestLabel)
}

// labelStargzRef is the label that says whether stargz-snapshotter's are there.
const labelStargzRef = "containerd.io/snapshot/remote/stargz.reference"

// fromStargzLabels reads what stargz-snapshotter's clients write. Its own function
// does not tell labels that are absent from labels that are wrong.
func fromStargzLabels(hosts source.RegistryHosts) source.GetSources {
	get := source.FromDefaultLabels(hosts)
	return func(labels map[string]string) ([]source.Source, error) {
		if _, ok := labels[labelStargzRef]; !ok {
			return nil, ErrNoSource
		}
		return get(labels)
	}
}

// FromOwnLabels reads LabelImageRef and LabelLayerDigest.
func FromOwnLabels(hosts source.RegistryHosts) source.GetSources {
	return fromLabels(hosts, LabelImageRef, LabelLayerDigest)
}

func fromLabels(hosts source.RegistryHosts, refKey, digestKey string) source.GetSources {
	return func(labels map[string]string) ([]source.Source, error) {
		ref, okRef := labels[refKey]
		dgst, okDgst := labels[digestKey]
		if !okRef || !okDgst {
			return nil, ErrNoSource
		}
		name, err := reference.Parse(ref)
		if err != nil {
			return nil, fmt.Errorf("label %s: %w", refKey, err)
		}
		target := ocispec.Descriptor{Digest: digest.Digest(dgst), Annotations: labels}
		return []source.Source{{
			Hosts: hosts, Name: name, Target: target,
			Manifest: ocispec.Manifest{Layers: layerList(target, labels[snapshotters.TargetImageLayersLabel])},
		}}, nil
	}
}

// layerList returns target and its neighbours from a comma separated list.
// Neighbours are a hint for reading ahead, so what is malformed is left out.
func layerList(target ocispec.Descriptor, list string) []ocispec.Descriptor {
	layers := []ocispec.Descriptor{target}
	for s := range strings.SplitSeq(list, ",") {
		d := digest.Digest(s)
		if len(layers) >= maxNeighbours {
			break
		}
		if d != target.Digest && checkDigest(d) == nil {
			layers = append(layers, ocispec.Descriptor{Digest: d})
		}
	}
	return layers
}

// sanitize checks every source and fills in what the labels say of the target.
func sanitize(srcs []source.Source, labels map[string]string) ([]source.Source, error) {
	out := make([]source.Source, 0, len(srcs))
	for _, s := range srcs {
		if err := checkName(s.Name); err != nil {
			return nil, err
		}
		if err := checkDigest(s.Target.Digest); err != nil {
			return nil, err
		}
		s.Target.URLs = nil
		s.Target.MediaType = labels[chunk.LabelMediaType]
		s.Target.Size = 0
		if v, ok := labels[chunk.LabelBlobSize]; ok {
			n, ok := parseSize(v)
			if !ok || n == 0 {
				return nil, fmt.Errorf("label %s: %.32q is not a size", chunk.LabelBlobSize, v)
			}
			s.Target.Size = n
		}
		s.Target.Annotations = annotations(labels)
		layers := make([]ocispec.Descriptor, 0, len(s.Manifest.Layers))
		for _, l := range s.Manifest.Layers {
			l.URLs = nil
			layers = append(layers, l)
		}
		if len(layers) > 0 && layers[0].Digest == s.Target.Digest {
			layers[0] = s.Target
		}
		s.Manifest.Layers = layers
		out = append(out, s)
	}
	return out, nil
}

// labelToAnnotation maps the keys that reach a snapshotter to those of the
// image spec draft, which formats read.
var labelToAnnotation = map[string]string{
	chunk.LabelIndexRange:         chunk.AnnotationIndexRange,
	chunk.LabelIndexDigest:        chunk.AnnotationIndexDigest,
	chunk.LabelUncompressedDigest: chunk.AnnotationUncompressedDigest,
	chunk.LabelVerityOffset:       chunk.AnnotationVerityOffset,
	chunk.LabelVerityRoot:         chunk.AnnotationVerityRoot,
	chunk.LabelVerityBlock:        chunk.AnnotationVerityBlock,
}

// annotations returns labels plus the spec's keys where only ours are set.
func annotations(labels map[string]string) map[string]string {
	out := maps.Clone(labels)
	for from, to := range labelToAnnotation {
		if v, ok := labels[from]; ok {
			out[to] = v
		}
	}
	return out
}

// checkDigest accepts well-formed SHA-256 and SHA-512 digests.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("layer digest %.80q: %w", string(d), err)
	}
	if a := d.Algorithm(); a != digest.SHA256 && a != digest.SHA512 {
		return fmt.Errorf("layer digest %.80q: algorithm not supported, use sha256", string(d))
	}
	return nil
}

// checkName accepts a host and repository as the distribution spec has them.
// The name becomes part of a URL, so nothing else may pass.
func checkName(ref reference.Spec) error {
	if _, err := distref.WithName(ref.Locator); err != nil {
		return fmt.Errorf("image name %.100q: %w", ref.Locator, err)
	}
	if !strings.Contains(ref.Locator, "/") {
		return fmt.Errorf("image name %.100q has no repository", ref.Locator)
	}
	return nil
}
