package vm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// diskSize is that of the data disk in bytes; the file is sparse.
const diskSize = 4 << 30

// features are those of a guest's data disk.
func (g Guest) features() string {
	// What the oldest kernel does not know would keep it from mounting.
	f := "^orphan_file,^metadata_csum_seed"
	if g.Verity {
		f += ",verity"
	}
	return f
}

// program is a file that goes onto the data disk.
type program struct{ from, to string }

// buildDisk makes the data disk of a plan in the file disk, with the programs at
// their places below SourceRoot. features are as mke2fs has them, tree is scratch.
func buildDisk(ctx context.Context, disk, tree, features string, p Plan, programs []program) error {
	src := filepath.Join(tree, SourceRoot)
	if err := os.MkdirAll(src, 0o755); err != nil {
		return fmt.Errorf("laying out the data disk: %w", err)
	}
	plan, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("writing the plan: %w", err)
	}
	err = errors.Join(
		os.MkdirAll(filepath.Join(tree, "tmp"), 0o777),
		os.WriteFile(filepath.Join(tree, PlanFile), plan, 0o644),
		// Tests look for the module's root by this file.
		os.WriteFile(filepath.Join(src, "go.mod"), nil, 0o644))
	for _, f := range programs {
		to := filepath.Join(src, f.to)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.Link(f.from, to))
	}
	if err != nil {
		return fmt.Errorf("laying out the data disk: %w", err)
	}
	f, err := os.Create(disk)
	if err != nil {
		return fmt.Errorf("making the data disk: %w", err)
	}
	if err := errors.Join(f.Truncate(diskSize), f.Close()); err != nil {
		return fmt.Errorf("making the data disk: %w", err)
	}
	out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-O", features,
		"-E", "lazy_itable_init=1,nodiscard", "-d", tree, disk).CombinedOutput()
	if err != nil {
		return fmt.Errorf("making the data disk: %w\n%s", err, out)
	}
	return nil
}

// testdata returns the files of a package's testdata directory, if it has one.
func testdata(root, pkg string) ([]program, error) {
	var list []program
	top := filepath.Join(root, pkg, "testdata")
	err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		list = append(list, program{path, rel})
		return err
	})
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return list, err
}
