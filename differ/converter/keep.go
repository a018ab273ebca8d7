package converter

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/lazyerofs/lazyerofs/differ"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
)

// keep is a directory with what earlier runs finished: for each layer KEY.blob,
// the blob, until the image has its name; KEY.meta, the start of the blob that
// holds the metadata; and KEY.json, the record, which is written last. A blob
// gets its name when it is whole, so a kill leaves whole files only. A nil *keep
// keeps nothing.
type keep struct{ dir string }

// maxKept is how long something stays that no run used.
const maxKept = 14 * 24 * time.Hour

// record is what is known of a converted layer.
type record struct {
	Desc      ocispec.Descriptor `json:"desc"`
	TarDiffID digest.Digest      `json:"tarDiffID"`
	Result    LayerResult        `json:"result"`
	// Meta is the digest of the file beside it.
	Meta digest.Digest `json:"meta"`
	// Repos are the repositories that got the blob, as "host/name".
	Repos []string `json:"repos,omitempty"`
}

// openKeep opens dir, makes it if need be, and removes what is old.
func openKeep(dir string) (*keep, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory for finished layers: %w", err)
	}
	k := &keep{dir: dir}
	return k, k.prune(time.Now().Add(-maxKept))
}

// prune removes records that were not used since before and files without one.
func (k *keep) prune(before time.Time) error {
	names, err := os.ReadDir(k.dir)
	if err != nil {
		return fmt.Errorf("reading the directory for finished layers: %w", err)
	}
	for _, n := range names {
		base, ext, _ := strings.Cut(n.Name(), ".")
		if ext == "blob" || ext == "meta" {
			if fi, err := os.Stat(k.path(base, "json")); err == nil && fi.ModTime().After(before) {
				continue
			}
		}
		// Another run may be removing it as well.
		if fi, err := n.Info(); err == nil && n.Type().IsRegular() && fi.ModTime().Before(before) {
			if err := os.Remove(filepath.Join(k.dir, n.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("removing an old layer: %w", err)
			}
		}
	}
	return nil
}

func (k *keep) path(key, ext string) string { return filepath.Join(k.dir, key+"."+ext) }

// keyOf names a layer by everything that decides the bytes of its conversion.
// The layers below count because they decide the attributes of directories that
// the layer does not name.
func keyOf(j *job, cfg differ.Config) string {
	h := sha256.New()
	put := func(s string) { fmt.Fprintf(h, "%d:%s,", len(s), s) }
	put("lazyerofs layer 2") // another number whenever the same layers give other bytes
	put(writerVersion())
	put(differ.ZstdEncoder)
	put(cfg.Form.String())
	put(strconv.FormatInt(cmp.Or(cfg.ChunkSize, differ.DefaultChunkSize), 10))
	put(strconv.Itoa(cmp.Or(cfg.Level, differ.DefaultLevel)))
	if cfg.Verity {
		put("dm-verity")
	}
	put(j.desc.Digest.String())
	put(strconv.Itoa(len(j.below)))
	for _, b := range j.below {
		put(b.desc.Digest.String())
	}
	for _, f := range cfg.First {
		put(f)
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// writerVersion tells builds apart: another one may write other bytes.
func writerVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" {
			v += " " + s.Value
		}
	}
	return v
}

// load returns the record of key and the metadata, if both are whole.
func (k *keep) load(key string) (*record, []byte, bool) {
	if k == nil {
		return nil, nil, false
	}
	raw, err := os.ReadFile(k.path(key, "json"))
	if err != nil {
		return nil, nil, false
	}
	rec, err := parseRecord(raw)
	if err != nil {
		return nil, nil, false
	}
	meta, err := os.ReadFile(k.path(key, "meta"))
	if err != nil || rec.Meta.Algorithm().FromBytes(meta) != rec.Meta {
		return nil, nil, false
	}
	now := time.Now()
	_ = os.Chtimes(k.path(key, "json"), now, now) // only delays its removal
	return rec, meta, true
}

// parseRecord reads a record. A torn or foreign one is an error.
func parseRecord(raw []byte) (*record, error) {
	rec := &record{}
	if err := json.Unmarshal(raw, rec); err != nil {
		return nil, fmt.Errorf("record of a finished layer: %w", err)
	}
	for _, d := range []digest.Digest{rec.Desc.Digest, rec.TarDiffID, rec.Meta, rec.Result.DiffID} {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("record of a finished layer: %w", err)
		}
	}
	if _, _, err := chunk.ParseEnds(rec.Desc.Annotations[chunk.LabelPinned]); err != nil || !chunk.IsNative(rec.Desc.MediaType) || rec.Desc.Size <= 0 {
		return nil, errors.New("record of a finished layer: it describes no native layer")
	}
	rec.Result.desc = rec.Desc
	return rec, nil
}

// blob opens the blob of a record, or returns nil.
func (k *keep) blob(key string) *os.File {
	f, err := os.Open(k.path(key, "blob"))
	if err != nil {
		return nil
	}
	return f
}

// whole reports whether f holds the bytes that desc describes.
func whole(f *os.File, desc ocispec.Descriptor) bool {
	v := desc.Digest.Verifier()
	n, err := io.Copy(v, io.NewSectionReader(f, 0, desc.Size+1))
	return err == nil && n == desc.Size && v.Verified()
}

// save keeps the finished layer in f, which tempFile made in the directory.
// Where the file system has no unnamed files, nothing is kept.
func (k *keep) save(key string, f *os.File, rec *record, meta []byte) error {
	if k == nil {
		return nil
	}
	rec.Meta = digest.FromBytes(meta)
	blob := k.path(key, "blob")
	// One without a record is of a run that was killed between here and there.
	if err := os.Remove(blob); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keeping a finished layer: %w", err)
	}
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, blob, unix.AT_SYMLINK_FOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return nil // no unnamed files here, or another run was faster with the same
	}
	if err != nil {
		return &os.PathError{Op: "keeping a finished layer as", Path: blob, Err: err}
	}
	if err := writeFile(k.path(key, "meta"), meta); err != nil {
		return fmt.Errorf("keeping a finished layer: %w", err)
	}
	return k.write(key, rec)
}

func (k *keep) write(key string, rec *record) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("keeping a finished layer: %w", err)
	}
	if err := writeFile(k.path(key, "json"), raw); err != nil {
		return fmt.Errorf("keeping a finished layer: %w", err)
	}
	return nil
}

// maxRepos bounds the repositories that a record names; the oldest go.
const maxRepos = 8

// published removes the blob, which is at its target, and notes where that is.
func (k *keep) published(key, repo string) error {
	if k == nil {
		return nil
	}
	if err := os.Remove(k.path(key, "blob")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a kept layer: %w", err)
	}
	rec, _, ok := k.load(key)
	if !ok || repo == "" || slices.Contains(rec.Repos, repo) {
		return nil
	}
	rec.Repos = append(rec.Repos, repo)
	rec.Repos = rec.Repos[max(0, len(rec.Repos)-maxRepos):]
	return k.write(key, rec)
}

// tempFile returns a file in dir that has no name: nothing is left of it when
// the process ends, unless it is given one.
func tempFile(dir string) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(blob)")), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, fmt.Errorf("making a file for the blob: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	f, err := os.CreateTemp(dir, "lazyerofs-blob-*")
	if err != nil {
		return nil, fmt.Errorf("making a file for the blob: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
