package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// origin is a registry of one image with one generated layer, of which no file is
// ever made.
type origin struct {
	size  int64 // as generate has it
	layer ocispec.Descriptor
	blobs map[digest.Digest]originBlob // config and manifest
	top   digest.Digest                // the manifest
	ctx   context.Context              // ends what is being served
	stop  context.CancelFunc
	srv   *http.Server
	lis   net.Listener
	done  chan error
}

type originBlob struct {
	mediaType string
	data      []byte
}

// startOrigin generates the layer once, for its digest, and serves.
func startOrigin(ctx context.Context, size int64) (*origin, error) {
	o := &origin{size: size, blobs: make(map[digest.Digest]originBlob), done: make(chan error, 1)}
	src := generated(ctx, size)
	sum := sha256.New()
	n, err := io.Copy(sum, src)
	if err = errors.Join(err, src.Close()); err != nil {
		return nil, fmt.Errorf("digesting a generated layer: %w", err)
	}
	o.layer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, sum), Size: n}
	config, err := o.add(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{o.layer.Digest}},
	})
	if err != nil {
		return nil, err
	}
	top, err := o.add(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{o.layer},
	})
	if err != nil {
		return nil, err
	}
	o.top = top.Digest
	if o.lis, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return nil, fmt.Errorf("starting a registry: %w", err)
	}
	o.ctx, o.stop = context.WithCancel(context.WithoutCancel(ctx))
	o.srv = &http.Server{Handler: o} //nolint:gosec // G112: loopback, for the length of one measurement
	go func() { o.done <- o.srv.Serve(o.lis) }()
	return o, nil
}

func (o *origin) add(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encoding a %s: %w", mediaType, err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	o.blobs[d.Digest] = originBlob{mediaType, data}
	return d, nil
}

// ref names the image.
func (o *origin) ref() string { return o.lis.Addr().String() + "/generated:tar" }

// ServeHTTP implements the part of the distribution spec that a pull needs.
func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	if name == "tar" {
		name = o.top.String()
	}
	id := digest.Digest(name)
	b, known := o.blobs[id]
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		http.Error(w, "read only", http.StatusMethodNotAllowed)
	case r.URL.Path == "/v2/":
	case known:
		w.Header().Set("Docker-Content-Digest", name)
		w.Header().Set("Content-Type", b.mediaType)
		w.Header().Set("Content-Length", fmt.Sprint(len(b.data)))
		_, _ = io.Copy(w, bytes.NewReader(b.data)) // the client sees that it is short
	case id == o.layer.Digest:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", fmt.Sprint(o.layer.Size))
		if r.Method == http.MethodGet {
			src := generated(o.ctx, o.size)
			defer src.Close()
			_, _ = io.Copy(w, src) // the client sees that it is short
		}
	default:
		http.NotFound(w, r)
	}
}

// close ends the registry.
func (o *origin) close() error {
	o.stop()
	err := o.srv.Close()
	if serr := <-o.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}
