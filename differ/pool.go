package differ

import (
	"context"
	"crypto/sha256"

	"golang.org/x/sync/errgroup"
)

// job is one chunk on its way through a pool. Its buffers are used again.
type job struct {
	data   []byte            // image data, a multiple of the block size
	store  []byte            // the bytes of the chunk in the blob
	sum    [sha256.Size]byte // of store
	leaves []byte            // digests of data for the hash tree, if there is one
	piece  piece             // what to load into data, second pass only
	err    error
	done   chan struct{}
}

// pool works on chunks on several cores and hands them on in the order in which
// they came, so that the number of workers never shows in the result. The
// number of jobs bounds its memory.
type pool struct {
	ctx   context.Context
	group *errgroup.Group
	free  chan *job
	work  chan *job
	order chan *job
}

// newPool starts workers that call do, each with a codec of its own, and one
// goroutine that calls sink. The first error of either ends the pool.
func newPool(ctx context.Context, cfg Config, do func(*codec, *job) error, sink func(*job) error) *pool {
	jobs := 2*cfg.Workers + 2
	p := &pool{
		free:  make(chan *job, jobs),
		work:  make(chan *job, jobs),
		order: make(chan *job, jobs),
	}
	p.group, p.ctx = errgroup.WithContext(ctx)
	for range jobs {
		p.free <- &job{done: make(chan struct{}, 1)}
	}
	for range cfg.Workers {
		p.group.Go(func() error { return p.run(cfg, do) })
	}
	p.group.Go(func() error { return p.drain(sink) })
	return p
}

func (p *pool) run(cfg Config, do func(*codec, *job) error) error {
	c, err := newCodec(cfg)
	if err != nil {
		return err
	}
	defer c.close()
	for j := range p.work {
		if p.ctx.Err() == nil {
			j.err = do(c, j)
		}
		j.done <- struct{}{}
	}
	return nil
}

func (p *pool) drain(sink func(*job) error) error {
	for j := range p.order {
		select {
		case <-j.done:
		case <-p.ctx.Done():
			return context.Cause(p.ctx)
		}
		if j.err != nil {
			return j.err
		}
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if err := sink(j); err != nil {
			return err
		}
		j.data, j.store = j.data[:0], j.store[:0]
		p.free <- j
	}
	return nil
}

// get waits for a job with empty buffers.
func (p *pool) get() (*job, error) {
	select {
	case j := <-p.free:
		return j, nil
	case <-p.ctx.Done():
		return nil, context.Cause(p.ctx)
	}
}

// submit hands in a job that came from get. It never blocks: each channel has
// room for every job.
func (p *pool) submit(j *job) {
	p.order <- j
	p.work <- j
}

// wait ends the pool after the jobs that were submitted, or at once when its
// context has ended, and returns the first error. It must be called exactly once.
func (p *pool) wait() error {
	close(p.work)
	close(p.order)
	return p.group.Wait()
}
