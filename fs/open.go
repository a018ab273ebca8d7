package fs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/containerd/stargz-snapshotter/fs/source"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazyerofs/lazyerofs/fs/cache"
	"github.com/lazyerofs/lazyerofs/fs/chunk"
	"github.com/lazyerofs/lazyerofs/fs/format"
	"github.com/lazyerofs/lazyerofs/fs/layer"
	"github.com/lazyerofs/lazyerofs/fs/remote"
)

// metaName is the file of locally written metadata in a layer's directory.
const metaName = "meta.erofs"

// open opens the layer of srcs, from its record when there is one. The lock of s
// is held.
func (f *FS) open(ctx context.Context, s *shared, srcs []source.Source, labels map[string]string) error {
	dir, err := f.c.Store.Dir(s.id)
	if err != nil {
		return &MountError{Reason: ReasonSource, Err: err}
	}
	err = f.recall(ctx, s, srcs, dir, labels)
	if !damaged(err) {
		return err
	}
	if !errors.Is(err, os.ErrNotExist) {
		log.G(ctx).WithError(err).WithField("layer", s.id).Warn("fetching the description of a layer again")
	}
	desc, err := f.describe(ctx, srcs, labels)
	if err != nil {
		return err
	}
	for _, form := range f.c.Formats {
		if form.Match(desc) {
			f.ahead(srcs[0])
			return f.first(ctx, s, srcs, dir, desc, form)
		}
	}
	return fail(ReasonFormat, "layer %s of type %q is in no format that can be loaded lazily", desc.Digest, desc.MediaType)
}

// recall opens the layer from its record. An error that is damaged means that
// there is no record of use.
func (f *FS) recall(ctx context.Context, s *shared, srcs []source.Source, dir string, labels map[string]string) error {
	rec, err := cache.LoadRecord(dir)
	if err != nil {
		return fmt.Errorf("reading the record of layer %s: %w", s.id, err)
	}
	want, err := claim(asRecorded(srcs[0].Target, rec.Descriptor, labels), labels[labelDiffID])
	if err != nil {
		return err
	}
	if sameContent(rec.Descriptor, want) == nil {
		why := doubts(rec)
		if err := f.reopen(ctx, s, srcs, dir, rec, nil); err != nil || why == nil {
			return err
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.condemn(s, why)
		return nil
	}
	return f.reclaim(ctx, s, srcs, dir, rec, want)
}

// asRecorded returns what labels say of a layer or, where they do not say it, what
// was recorded, so that no manifest is needed. The recorded claim is another
// image's: what this image gives must be held against the record on its own.
func asRecorded(target, rec ocispec.Descriptor, labels map[string]string) ocispec.Descriptor {
	if described(target) {
		return target
	}
	if labels[labelDiffID] != "" {
		rec.Annotations = maps.Clone(rec.Annotations)
		delete(rec.Annotations, chunk.AnnotationUncompressedDigest)
	}
	return rec
}

// reclaim opens a layer from its record for an image that claims another digest of
// the whole than the image for which it was recorded. A claim that no complete
// layer has confirmed is that image's word alone and must not stand in the way of
// others; one that was confirmed makes this one false.
func (f *FS) reclaim(ctx context.Context, s *shared, srcs []source.Source, dir string, rec cache.Record, want ocispec.Descriptor) error {
	differ := sameContent(rec.Descriptor, want)
	if want.Annotations[chunk.AnnotationUncompressedDigest] == "" {
		return differ
	}
	rec.Descriptor.Annotations = maps.Clone(rec.Descriptor.Annotations)
	for _, key := range []string{chunk.AnnotationUncompressedDigest, chunk.LabelUncompressedDigest} {
		rec.Descriptor.Annotations[key] = want.Annotations[chunk.AnnotationUncompressedDigest]
	}
	if err := sameContent(rec.Descriptor, want); err != nil {
		return err // it differs in more
	}
	rec.Condemned = ""
	return f.reopen(ctx, s, srcs, dir, rec, func(file *cache.File) error {
		if file.Verified() {
			return differ
		}
		return cache.SaveRecord(dir, rec)
	})
}

// first opens a layer that this node sees for the first time and records what the
// next process needs.
func (f *FS) first(ctx context.Context, s *shared, srcs []source.Source, dir string, desc ocispec.Descriptor, form format.Format) error {
	blob, err := remote.Open(ctx, f.c.Resolver, srcs, desc, f.c.Remote)
	if err != nil {
		return fmt.Errorf("finding layer %s: %w", desc.Digest, err)
	}
	desc.Size = blob.Size()
	early := layer.StartEarly(ctx, blob, desc)
	tape := format.Record(early)
	plan, err := form.Open(ctx, tape, desc)
	if err != nil {
		early.Release()
		return fmt.Errorf("reading the index of layer %s: %w", desc.Digest, err)
	}
	err = f.assemble(s, dir, desc, plan, early, func(*cache.File) error {
		if err := cache.SaveIndex(dir, tape.Bytes()); err != nil {
			return err
		}
		return cache.SaveRecord(dir, cache.Record{
			Descriptor: desc, Format: form.Name(), Size: plan.Data.Size(), Refs: refs(srcs),
			Driver: f.c.Drivers[0].Name(), // most likely: spares a second write
		})
	})
	if err != nil {
		early.Release()
		return err
	}
	s.early = early
	return nil
}

func refs(srcs []source.Source) []string {
	out := make([]string, len(srcs))
	for i, s := range srcs {
		out[i] = s.Name.String()
	}
	return out
}

// reopen opens a layer from its record: no request is made. save is assemble's.
func (f *FS) reopen(ctx context.Context, s *shared, srcs []source.Source, dir string, rec cache.Record, save func(*cache.File) error) error {
	blob, err := remote.Open(ctx, f.c.Resolver, srcs, rec.Descriptor, f.c.Remote)
	if err != nil {
		return fmt.Errorf("finding layer %s: %w", s.id, err)
	}
	tape, err := cache.LoadIndex(dir)
	if err != nil {
		return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
	}
	replay, err := format.Replay(blob, tape)
	if err != nil {
		return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
	}
	for _, form := range f.c.Formats {
		if form.Name() != rec.Format {
			continue
		}
		plan, err := form.Open(ctx, replay, rec.Descriptor)
		if err != nil {
			return fmt.Errorf("reading the recorded index of layer %s: %w", s.id, err)
		}
		return f.assemble(s, dir, rec.Descriptor, plan, blob, save)
	}
	return fail(ReasonFormat, "layer %s was recorded in the format %q, which this build does not know", s.id, rec.Format)
}

// assemble makes the layer from its parts. save, if any, runs once its directory
// exists and its data file is open.
func (f *FS) assemble(s *shared, dir string, desc ocispec.Descriptor, plan *format.Plan, blob remote.Blob, save func(*cache.File) error) error {
	o := cache.Options{ID: s.id, Map: plan.Data}
	if f.c.Writer != nil {
		o.Writer = f.c.Writer(layerID(s.id))
	}
	file, err := f.c.Store.OpenFile(o)
	if err != nil {
		return fmt.Errorf("opening the data file of layer %s: %w", s.id, err)
	}
	undo := func(err error) error {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return errors.Join(err, file.Close(ctx))
	}
	if save != nil {
		if err := save(file); err != nil {
			return undo(fmt.Errorf("recording layer %s: %w", s.id, err))
		}
	}
	var meta *os.File
	if plan.Meta != nil {
		if meta, err = saveMeta(filepath.Join(dir, metaName), plan); err != nil {
			return undo(err)
		}
	}
	l, err := layer.New(layer.Config{
		Plan: plan, Blob: blob, File: file, Meta: meta, Slots: f.c.Slots, Trace: f.c.Trace, Seal: f.c.Seal,
		Finished: func(err error) { f.finished(s, err) },
	})
	if err != nil {
		if meta != nil {
			err = errors.Join(err, meta.Close())
		}
		return undo(err)
	}
	s.layer, s.desc = l, desc
	return nil
}

// finished hears that a layer is complete, or that as a whole it is not what its
// descriptor says.
func (f *FS) finished(s *shared, err error) {
	if err == nil {
		log.G(f.ctx).WithField("layer", s.id).Info("layer is complete")
		return
	}
	f.remember(s, err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.condemn(s, err)
}

// remember records a verdict of content, so that a successor of this process need
// not find it again before it may say no.
func (f *FS) remember(s *shared, verdict error) {
	var corrupt *chunk.CorruptError
	if !errors.As(verdict, &corrupt) {
		return
	}
	if err := f.amend(s, func(r *cache.Record) { r.Condemned = verdict.Error() }); err != nil {
		log.G(f.ctx).WithError(err).WithField("layer", s.id).Warn("cannot record that a layer is wrong")
	}
}

// saveMeta writes metadata that was made on this node beside the data file.
func saveMeta(name string, plan *format.Plan) (*os.File, error) {
	w, err := os.CreateTemp(filepath.Dir(name), metaName+".new-*")
	if err != nil {
		return nil, fmt.Errorf("writing local metadata: %w", err)
	}
	_, err = io.Copy(w, io.NewSectionReader(plan.Meta, 0, plan.MetaSize))
	if err == nil {
		err = w.Sync()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(w.Name(), name)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("writing local metadata: %w", err), os.Remove(w.Name()))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("opening local metadata: %w", err)
	}
	return f, nil
}
