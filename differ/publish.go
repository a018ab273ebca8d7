package differ

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeLayer makes LayerFile in dir with what fill writes. It is there whole and
// on disk, or not at all: until it is whole it has no name where the file system
// can do that, so that nothing of it is left by a process that is killed.
func writeLayer(dir string, fill func(*os.File) (ocispec.Descriptor, error)) (ocispec.Descriptor, error) {
	f, err := createNameless(dir)
	if errors.Is(err, errNamed) {
		f, err = os.CreateTemp(dir, LayerFile+".new-*")
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("creating layer file: %w", err)
	}
	temp := f.Name() // of a nameless one, no file
	out, err := fill(f)
	if err == nil {
		err = publish(f, filepath.Join(dir, LayerFile))
	}
	if cerr := f.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("closing layer file: %w", cerr)
	}
	if err != nil {
		// Gone already if it got its name; nothing else can be done about an error.
		_ = os.Remove(temp)
		return ocispec.Descriptor{}, err
	}
	return out, nil
}

// publish gives f its final name after its content is on disk.
func publish(f *os.File, name string) error {
	if err := f.Chmod(0o644); err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("syncing layer file: %w", err)
	}
	if err := giveName(f, name); err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return fmt.Errorf("publishing layer file: %w", err)
	}
	err = dir.Sync()
	if cerr := dir.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("syncing the directory of the layer file: %w", err)
	}
	return nil
}
