package merge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lazyerofs/lazyerofs/cmd/lazyerofs/internal/imagedata"
	"github.com/lazyerofs/lazyerofs/differ/converter"
	"github.com/lazyerofs/lazyerofs/fs/erofs"
)

// blockSize is that of the merged image, and the unit of a device's length.
const blockSize = 4096

// maxTag is how many bytes the device table has for what identifies a device.
const maxTag = 64

// opened is how many layers are opened at once.
const opened = 4

// Config says what is merged, and where to.
type Config struct {
	// Layers opens the image.
	Layers *imagedata.Layers
	// Platform chooses an image of an index; nil takes what suits this machine best.
	Platform *ocispec.Platform
	// Output is the file that the metadata is written to.
	Output string
	// DataDir, if set, is a directory that gets the layers' image data, a file for
	// each.
	DataDir string
}

// Report is what was made.
type Report struct {
	Image    string        `json:"image"`
	Manifest digest.Digest `json:"manifest"`
	Platform string        `json:"platform"`
	// Output has Size bytes with the digest Digest and Inodes files.
	Output string        `json:"output"`
	Size   int64         `json:"size"`
	Digest digest.Digest `json:"digest"`
	Inodes int           `json:"inodes"`
	// Fetched counts the bytes of layers that were read for it.
	Fetched int64 `json:"fetched"`
	// Devices are in the order of the slots of the device table.
	Devices []Device `json:"devices"`
}

// Device is one slot of the device table.
type Device struct {
	// Slot counts from 1, the lowest layer.
	Slot  int           `json:"slot"`
	Layer digest.Digest `json:"layer"`
	// MediaType is the layer's: what its blob has to be decoded from.
	MediaType string `json:"mediaType"`
	// DiffID is in the device table, as hexadecimal digits. For a raw layer it is
	// the digest of the blob, which can be the device as it is; for a compressed one
	// that of the decompressed blob, which is the device.
	DiffID digest.Digest `json:"diffID"`
	// Size is the length of the device in bytes.
	Size int64 `json:"size"`
	// File is where its data is, when it was asked for.
	File string `json:"file,omitempty"`
}

// layer is one layer on its way into the merge.
type layer struct {
	desc ocispec.Descriptor
	data *converter.ImageData
}

// Run merges an image. What must not be replaced at the places that are to be written
// gives a *converter.PlaceError before anything is read.
func Run(ctx context.Context, c Config) (_ *Report, err error) {
	if err := c.places(); err != nil {
		return nil, err
	}
	picked, err := converter.Pick(ctx, c.Layers.Source, c.Platform)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Image: c.Layers.Source.String(), Manifest: picked.Desc.Digest,
		Platform: platforms.Format(picked.Config.Platform), Output: c.Output,
	}
	if err := c.dataPlaces(picked.Manifest.Layers); err != nil {
		return nil, err
	}
	layers, err := open(ctx, c.Layers, picked.Manifest.Layers)
	defer func() {
		for _, l := range layers {
			if l.data != nil {
				err = errors.Join(err, l.data.Close())
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	for i, l := range layers {
		r.Devices = append(r.Devices, Device{
			Slot: i + 1, Layer: l.desc.Digest, MediaType: l.desc.MediaType,
			DiffID: picked.Config.RootFS.DiffIDs[i], Size: l.data.Size,
		})
		if counted, ok := l.data.Data.(interface{ Fetched() int64 }); ok {
			r.Fetched += counted.Fetched()
		}
	}
	layout, err := r.merge(layers)
	if err != nil {
		return nil, err
	}
	if c.DataDir != "" {
		if err := r.writeData(ctx, layers, c.DataDir); err != nil {
			return nil, err
		}
	}
	return r, r.write(layout) // last: who finds it finds all that it needs
}

// places looks at what is there already where something is to be written.
func (c *Config) places() error {
	_, dir, err := converter.Replaceable(c.Output)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("making %s: %w", c.Output, err)
	}
	if c.DataDir == "" {
		return nil
	}
	if st, err := os.Stat(c.DataDir); err == nil && !st.IsDir() {
		return &converter.PlaceError{Name: c.DataDir, Problem: "is not a directory; name one for the image data"}
	}
	return nil
}

// dataPlaces is places for the files of image data.
func (c *Config) dataPlaces(list []ocispec.Descriptor) error {
	if c.DataDir == "" {
		return nil
	}
	for i, desc := range list {
		if err := desc.Digest.Validate(); err != nil {
			return fmt.Errorf("layer %d, digest %.80q: %w", i+1, desc.Digest, err)
		}
		if _, _, err := converter.Replaceable(dataFile(c.DataDir, desc.Digest)); err != nil {
			return err
		}
	}
	return nil
}

// dataFile is where the image data of a layer is written to.
func dataFile(dir string, layer digest.Digest) string {
	return filepath.Join(dir, layer.Encoded()+".erofs")
}

// open opens all layers. What it opened is returned also with an error.
func open(ctx context.Context, from *imagedata.Layers, list []ocispec.Descriptor) ([]layer, error) {
	for i, desc := range list {
		if images.IsLayerType(desc.MediaType) && strings.Contains(desc.MediaType, "tar") {
			return nil, fmt.Errorf("layer %d, %s, is a tar; convert the image first", i+1, desc.Digest)
		}
	}
	layers := make([]layer, len(list))
	g := errgroup.Group{} // without a context of its own: readers live longer
	g.SetLimit(opened)
	for i, desc := range list {
		g.Go(func() (err error) {
			layers[i].desc = desc
			if layers[i].data, err = from.Open(ctx, desc); err != nil {
				return fmt.Errorf("layer %d: %w", i+1, err)
			}
			return nil
		})
	}
	return layers, g.Wait()
}

// merge merges the trees and lays out the metadata.
func (r *Report) merge(layers []layer) (*erofs.Layout, error) {
	trees := make([]*erofs.Tree, len(layers))
	id := sha256.New()
	var o erofs.WriteOptions
	for i, l := range layers {
		trees[i] = l.data.Tree
		tag := r.Devices[i].DiffID.Encoded()
		o.Devices = append(o.Devices, erofs.Device{
			Tag: tag[:min(maxTag, len(tag))], Blocks: uint64((l.data.Size + blockSize - 1) / blockSize),
		})
		fmt.Fprintln(id, r.Devices[i].DiffID)
	}
	// A UUID of the kind that is for anyone's own use (RFC 9562, version 8), from
	// what the image is made of.
	copy(o.UUID[:], id.Sum(nil))
	o.UUID[6] = o.UUID[6]&0x0f | 0x80
	o.UUID[8] = o.UUID[8]&0x3f | 0x80
	tree, err := erofs.Merge(trees...)
	if err != nil {
		return nil, err
	}
	r.Inodes = tree.Len()
	return erofs.NewLayout(tree, o)
}

// write writes the metadata.
func (r *Report) write(layout *erofs.Layout) error {
	sum := digest.SHA256.Digester()
	err := create(r.Output, func(w io.Writer) (err error) {
		r.Size, err = layout.WriteMeta(io.MultiWriter(w, sum.Hash()), 0)
		return err
	})
	r.Digest = sum.Digest()
	return err
}

// writeData writes the devices. Every chunk is checked on the way.
func (r *Report) writeData(ctx context.Context, layers []layer, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the directory of image data: %w", err)
	}
	for i, l := range layers {
		d := &r.Devices[i]
		d.File = dataFile(dir, d.Layer)
		if err := create(d.File, func(w io.Writer) error {
			_, err := io.Copy(w, imagedata.Stoppable(ctx, io.NewSectionReader(l.data.Data, 0, l.data.Size)))
			return err
		}); err != nil {
			return fmt.Errorf("image data of layer %s: %w", d.Layer, err)
		}
	}
	return nil
}
