package cache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

const (
	recordVersion = 1
	// maxRecordLen and maxIndexLen bound what is read from disk, in bytes.
	maxRecordLen = 1 << 20
	maxIndexLen  = 256 << 20
)

// Record is what must survive a restart so that a layer is opened again without
// a network. It is pure data.
type Record struct {
	// Version is the version of this structure; SaveRecord sets it.
	Version int `json:"version"`
	// Descriptor is the layer's descriptor with its annotations.
	Descriptor ocispec.Descriptor `json:"descriptor"`
	// Format is the Name of the format that opened the layer.
	Format string `json:"format"`
	// Size is the length of the image data in bytes.
	Size int64 `json:"size"`
	// Refs are the image references under which the blob can be found.
	Refs []string `json:"refs,omitempty"`
	// Mounts are the names of the drivers that mounted the layer, by mount point. An
	// entry may outlive its mount.
	Mounts map[string]string `json:"mounts,omitempty"`
	// Driver is the name of the driver of mounts that Mounts does not have, "" when
	// there was no choice. Records of before Mounts have it.
	Driver string `json:"driver,omitempty"`
	// Condemned is why the complete layer is not what Descriptor says, "" while
	// nothing is known against it.
	Condemned string `json:"condemned,omitempty"`
	// Suspect is set while mounts of the layer may show zeros for data.
	Suspect *Suspect `json:"suspect,omitempty"`
}

// Suspect says that superblocks of a layer read while nobody guarded them.
type Suspect struct {
	// Boot is the id of the boot in which they were mounted: they end with it.
	Boot string `json:"boot"`
	// Why is the reason, in words.
	Why string `json:"why"`
}

// SaveRecord writes r into the layer directory dir. It is on disk when
// SaveRecord returns, and a crash leaves the old or the new one.
func SaveRecord(dir string, r Record) error {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the record in %s: %w", dir, err)
	}
	return writeFile(filepath.Join(dir, recordName), append(b, '\n'))
}

// LoadRecord reads what SaveRecord wrote: os.ErrNotExist when there is none, a
// *chunk.CorruptError when it makes no sense.
func LoadRecord(dir string) (Record, error) {
	path := filepath.Join(dir, recordName)
	b, err := readFile(path, maxRecordLen)
	if err != nil {
		return Record{}, err
	}
	r, err := decodeRecord(b)
	if err != nil {
		return Record{}, badFile(path, err)
	}
	return r, nil
}

func decodeRecord(b []byte) (Record, error) {
	var r Record
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&r); err != nil {
		return Record{}, err
	}
	if _, err := d.Token(); err != io.EOF {
		return Record{}, errors.New("something follows the record")
	}
	if r.Version != recordVersion {
		return Record{}, fmt.Errorf("version %d is not known", r.Version)
	}
	if err := r.Descriptor.Digest.Validate(); err != nil {
		return Record{}, err
	}
	if r.Size < 0 || r.Descriptor.Size < 0 || r.Format == "" {
		return Record{}, errors.New("a size is negative or the format is missing")
	}
	return r, nil
}

// SaveIndex writes what a format needs to open the layer again into the layer
// directory dir, with the guarantees of SaveRecord.
func SaveIndex(dir string, b []byte) error { return writeFile(filepath.Join(dir, indexName), b) }

// LoadIndex reads what SaveIndex wrote; the caller's format verifies it. When
// there is none it gives os.ErrNotExist.
func LoadIndex(dir string) ([]byte, error) {
	return readFile(filepath.Join(dir, indexName), maxIndexLen)
}

// readFile reads at most limit bytes; a longer file is corrupt.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading layer state: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading layer state: %w", err)
	}
	if int64(len(b)) > limit {
		return nil, badFile(path, fmt.Errorf("it is longer than %d bytes", limit))
	}
	return b, nil
}

func badFile(path string, reason error) error {
	return &chunk.CorruptError{Origin: chunk.OriginDisk, What: path, Reason: reason.Error()}
}

// writeFile replaces path by a file that holds b: written and synced under
// another name, renamed, and the directory synced.
func writeFile(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	defer func() {
		if isNoSpace(err) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		if err != nil {
			err = fmt.Errorf("writing layer state: %w", err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
