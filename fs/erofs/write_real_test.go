package erofs

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// goroot is the directory of the Go toolchain that runs the test.
func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

// A real tree, the Go compiler's sources, equals its image in all that the
// kernel reports of both.
func TestWriteRealTree(t *testing.T) {
	src := filepath.Join(goroot(t), "src", "cmd", "compile")
	var files []wantFile
	require.NoError(t, filepath.WalkDir(src, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		f := wantFile{path: strings.TrimPrefix(rel, "."), attr: Attr{
			Mode: uint16(st.Mode), UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec),
		}}
		switch st.Mode & modeType {
		case modeLink:
			f.target, err = os.Readlink(p)
		case modeReg:
			f.data, err = os.ReadFile(p)
		}
		files = append(files, f)
		return err
	}))
	require.Greater(t, len(files), 100)
	img := buildImage(t, files, WriteOptions{})
	checkKernel(t, mountKernel(t, img.path), files)
	checkGoErofs(t, img.path, files)
	runFsck(t, img.path)
}

// Metadata comes first, then the data, at the addresses that were set.
func ExampleBuilder() {
	b := NewBuilder()
	content := []byte("hello\n")
	i, err := b.Put("etc/motd", Attr{Mode: 0o100644, Size: int64(len(content))})
	if err != nil {
		fmt.Println(err)
		return
	}
	b.SetExtents(i, []Extent{{Len: int64(len(content)), Addr: 0}})
	tree, err := b.Tree()
	if err != nil {
		fmt.Println(err)
		return
	}
	layout, err := NewLayout(tree, WriteOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	var image bytes.Buffer
	if _, err := layout.WriteMeta(&image, int64(len(content))); err != nil {
		fmt.Println(err)
		return
	}
	image.Write(content)
	fmt.Println(layout.MetaSize(), image.Len())
	// Output: 4096 4102
}
