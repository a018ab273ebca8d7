package dmverity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// SidecarSuffix ends the name of the file beside an image that says that a hash tree
// follows the image, as containerd's erofs snapshotter has it.
const SidecarSuffix = ".dmverity"

// maxSidecar bounds what is read of one, in bytes.
const maxSidecar = 4096

// sidecar is containerd's form of it.
type sidecar struct {
	RootHash   string `json:"roothash"`
	HashOffset int64  `json:"hashoffset"`
}

// WriteSidecar says beside the image that v describes its tree. It is on disk when
// WriteSidecar returns; a crash leaves the old one or this one.
func WriteSidecar(image string, v chunk.Verity) (err error) {
	b, err := json.Marshal(sidecar{RootHash: v.Hex(), HashOffset: v.HashOffset})
	if err != nil {
		return fmt.Errorf("encoding the root of a hash tree: %w", err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("writing the root of a hash tree: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(image), filepath.Base(image)+SidecarSuffix+".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), image+SidecarSuffix)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// ReadSidecar returns what WriteSidecar or containerd wrote beside the image: nil when
// there is none. Trees with blocks of chunk.VerityBlockSize only, which is what
// containerd makes of images with such blocks.
func ReadSidecar(image string) (_ *chunk.Verity, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("reading the root of the hash tree of %s: %w", image, err)
		}
	}()
	f, err := os.Open(image + SidecarSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSidecar))
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(image)
	if err != nil {
		return nil, err
	}
	return parseSidecar(b, st.Size())
}

func parseSidecar(b []byte, size int64) (*chunk.Verity, error) {
	var s sidecar
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	notes := map[string]string{}
	chunk.Verity{HashOffset: s.HashOffset, Root: digest.Digest(s.RootHash), BlockSize: blockSize}.Annotate(notes)
	v, err := chunk.ParseVerity(notes, size)
	if err == nil && v == nil {
		err = errors.New("it names no root")
	}
	return v, err
}
