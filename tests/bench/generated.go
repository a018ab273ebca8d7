package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
)

// What a generated layer is made of, as shares of its size: an image for machine
// learning has weights, which do not compress, libraries, which do, and thousands
// of modules.
const (
	weightsShare = 4 // of 10
	libraryShare = 4
	hugeFile     = 512 << 20 // bytes of the largest weights and libraries
	moduleFile   = 40 << 10  // bytes of the largest module
	modulesInDir = 200
)

// words is how much text there is to compose libraries and modules of: so little
// that a chunk has everything several times.
const words = 64 << 10

// generate writes the tar of a layer of about size bytes to w. The same size
// gives the same bytes.
func generate(w io.Writer, size int64) error {
	g := &generator{tw: tar.NewWriter(w), noise: rand.NewChaCha8([32]byte{7}), buf: make([]byte, 256<<10)}
	g.rnd = rand.New(g.noise)
	g.text = make([]byte, words)
	for i := range g.text {
		g.text[i] = "etaoinshrdlu cmfwypvbgkjqxz_()=.\n"[min(g.rnd.IntN(33), g.rnd.IntN(33))]
	}
	large := min(hugeFile, max(size/20, 1))
	// Kinds alternate, as they do in a real tree.
	var weights, library, modules int64
	for n := 0; weights+library+modules < size; n++ {
		var err error
		switch done := weights + library + modules; {
		case weights*10 <= done*weightsShare:
			weights += large
			err = g.file(fmt.Sprintf("models/weights-%03d.bin", n), large, g.random)
		case library*10 <= done*libraryShare:
			library += large
			err = g.file(fmt.Sprintf("usr/lib/lib%03d.so", n), large, g.composed)
		default:
			for range modulesInDir {
				size := 1 + g.rnd.Int64N(min(moduleFile, large))
				modules += size
				fill := g.composed
				if g.rnd.IntN(4) == 0 {
					fill = g.random
				}
				if err = g.file(fmt.Sprintf("srv/modules-%05d/module-%07d.py", n, g.files), size, fill); err != nil {
					break
				}
			}
		}
		if err != nil {
			return fmt.Errorf("generating a layer: %w", err)
		}
	}
	return g.tw.Close()
}

// generator writes files.
type generator struct {
	tw    *tar.Writer
	noise *rand.ChaCha8
	rnd   *rand.Rand // from noise
	text  []byte
	buf   []byte
	files int
}

func (g *generator) file(name string, size int64, fill func([]byte)) error {
	g.files++
	if err := g.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}); err != nil {
		return err
	}
	for size > 0 {
		p := g.buf[:min(int64(len(g.buf)), size)]
		fill(p)
		if _, err := g.tw.Write(p); err != nil {
			return err
		}
		size -= int64(len(p))
	}
	return nil
}

// random fills p with bytes that do not compress.
func (g *generator) random(p []byte) { _, _ = g.noise.Read(p) } // never fails

// composed fills p with pieces of the text, as code repeats itself.
func (g *generator) composed(p []byte) {
	for len(p) > 0 {
		at := g.rnd.IntN(len(g.text) - 256)
		n := copy(p, g.text[at:at+16+g.rnd.IntN(240)])
		p = p[n:]
	}
}

// generated is a layer that is generated while it is read.
func generated(ctx context.Context, size int64) io.ReadCloser {
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(generate(w, size)) // nil is the end
	}()
	return &pipe{PipeReader: r, stop: stop, ended: ended}
}

// pipe ends with what writes to it.
type pipe struct {
	*io.PipeReader
	stop  func() bool
	ended chan struct{}
}

// Close ends the generation, however far it is.
func (p *pipe) Close() error {
	p.stop()
	err := p.PipeReader.CloseWithError(errors.New("not read to the end"))
	<-p.ended
	return err
}
