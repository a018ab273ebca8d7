package testenv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/continuity/fs"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// prelude lays the earlier layers and the new one over each other and enters
// the namespaces' own /proc. All of it goes with the namespaces.
//
// Before that it lets go of what others have mounted: a copy of a mount keeps its
// superblock alive, and a step may take minutes in which a daemon that is told to
// stop would wait for the end of its layers. What its owner takes away meanwhile is
// gone from here too (rmdir(2) of a mount point detaches it everywhere).
const prelude = `set -e
awk '$5 != "/" && / - (erofs|overlay|fuse[^ ]*) / {print $5}' /proc/self/mountinfo | sort -r | xargs -r -n 1 umount -l 2>/dev/null || :
mount -t overlay overlay -o "redirect_dir=off,metacopy=off,index=off,xino=off,lowerdir=$LOWER,upperdir=$UPPER,workdir=$WORK" "$ROOT"
`

// runStep runs one step over the trees of the earlier ones, the lowest first,
// and leaves what it changed in dir/upper, in the form of an overlayfs layer.
func runStep(ctx context.Context, s Step, lowers []string, dir string) error {
	for _, sub := range []string{"upper", "work", "root", "empty"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return fmt.Errorf("preparing the step %q: %w", s.Name, err)
		}
	}
	// overlayfs wants the topmost first, and at least one.
	order := filepath.Join(dir, "empty")
	for _, l := range lowers {
		order = l + ":" + order
	}
	script, path := prelude+s.Script, os.Getenv("PATH")
	if s.Chroot {
		path = defaultPath
		if err := os.WriteFile(filepath.Join(dir, "script"), []byte("set -e\n"+s.Script), 0o600); err != nil {
			return fmt.Errorf("preparing the step %q: %w", s.Name, err)
		}
		// A machine whose registries sit behind a gateway trusts an authority that
		// the tree has never heard of; the mount leaves no trace in the layer.
		script = prelude + `mount -t proc proc "$ROOT/proc"
ca=/etc/ssl/certs/ca-certificates.crt
[ ! -f $ca ] || [ ! -f "$ROOT$ca" ] || mount --bind $ca "$ROOT$ca"
exec chroot "$ROOT" sh <"$SCRIPT"`
	}
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script)
	cmd.Env = append(hostEnv(path), "LOWER="+order, "UPPER="+filepath.Join(dir, "upper"), "WORK="+filepath.Join(dir, "work"),
		"ROOT="+filepath.Join(dir, "root"), "SCRIPT="+filepath.Join(dir, "script"))
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("building the layer %q: %w\n%s", s.Name, err, tail(string(out), 20))
	}
	return nil
}

// hostEnv is what a step sees of this machine's environment: where to look for
// registries and proxies, and nothing else that could change a layer.
func hostEnv(path string) []string {
	env := []string{"PATH=" + path, "HOME=/root", "LC_ALL=C"}
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(strings.ToLower(kv), "=")
		if strings.HasSuffix(name, "_proxy") || name == "npm_config_registry" {
			env = append(env, kv)
		}
	}
	return env
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// layerBlob is a gzip-compressed tar as a registry holds it.
type layerBlob struct {
	Digest digest.Digest `json:"digest"` // of the compressed bytes
	DiffID digest.Digest `json:"diffID"` // of the tar
	Size   int64         `json:"size"`   // compressed, bytes
	Tar    int64         `json:"tar"`    // uncompressed, bytes
}

// packLayer writes the overlayfs layer at upper as a gzip-compressed tar to file.
func packLayer(ctx context.Context, upper, file string) (_ layerBlob, err error) {
	out, err := os.Create(file)
	if err != nil {
		return layerBlob{}, fmt.Errorf("packing %s: %w", upper, err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	blobSum, diffSum := digest.SHA256.Digester(), digest.SHA256.Digester()
	compressed := &counter{w: io.MultiWriter(out, blobSum.Hash())}
	zw := gzip.NewWriter(compressed)
	plain := &counter{w: io.MultiWriter(zw, diffSum.Hash())}
	tw := archive.NewChangeWriter(plain, upper)
	if err := walkLayer(ctx, upper, tw.HandleChange); err != nil {
		return layerBlob{}, fmt.Errorf("packing %s: %w", upper, err)
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		return layerBlob{}, fmt.Errorf("packing %s: %w", upper, err)
	}
	return layerBlob{Digest: blobSum.Digest(), DiffID: diffSum.Digest(), Size: compressed.n, Tar: plain.n}, nil
}

// walkLayer tells change of everything in an overlayfs layer, its whiteouts as
// deletions. continuity's own walk needs the lower tree mounted as well.
func walkLayer(ctx context.Context, upper string, change fs.ChangeFunc) error {
	return filepath.Walk(upper, func(path string, info os.FileInfo, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || path == upper {
			return err
		}
		name := strings.TrimPrefix(path, upper)
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&os.ModeCharDevice != 0 && st.Rdev == 0 {
			return change(fs.ChangeKindDelete, name, info, nil)
		}
		if err := change(fs.ChangeKindAdd, name, info, nil); err != nil || !info.IsDir() {
			return err
		}
		var opaque [1]byte
		if n, err := unix.Lgetxattr(path, "trusted.overlay.opaque", opaque[:]); err == nil && n == 1 && opaque[0] == 'y' {
			// The tar name of an opaque mark is that of a deleted ".wh..opq".
			return change(fs.ChangeKindDelete, filepath.Join(name, ".wh..opq"), info, nil)
		}
		return nil
	})
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
