package differ

import (
	"context"
	"crypto/sha256"
	"sync"

	"golang.org/x/sync/errgroup"
)

// job is one chunk on its way through a pool. Its buffers are used again.
type job struct {
	data   []byte            // image data, a multiple of the block size
	store  []byte            // the bytes of the chunk in the blob
	sum    [sha256.Size]byte // of store
	leaves []byte            // digests of data for the hash tree, if there is one
	piece  piece             // what to load into data, second pass only
	passed int               // steps that are behind it; under pool.mu
}

// pool works on chunks on several cores and shows them to its sinks in the order in
// which they came, so that the number of workers never shows in the result. The
// number of jobs bounds its memory.
//
// The workers are the only goroutines. Whoever has worked on a chunk is the one that
// shows it, and any that wait behind it, to a sink at which nobody is, and gets the
// next. Handing chunks from thread to thread would cost a tenth of the time: those
// that are in libzstd cannot run another goroutine.
type pool struct {
	ctx   context.Context
	group *errgroup.Group
	free  chan *job
	work  chan *job
	sinks []func(*job) error

	mu    sync.Mutex
	order []*job          // between submit and free
	at    []bool          // whether somebody is at the sink
	next  func(*job) bool // gives a free job something to do; may be nil
	fed   chan struct{}   // closed when next has nothing more
}

// newPool starts workers that call do, each with a codec of its own. Each of sinks
// sees every job, after those before it. The first error of any ends the pool.
func newPool(ctx context.Context, cfg Config, do func(*codec, *job) error, sinks ...func(*job) error) *pool {
	jobs := 2*cfg.Workers + 2
	p := &pool{
		free:  make(chan *job, jobs),
		work:  make(chan *job, jobs),
		sinks: sinks,
		at:    make([]bool, len(sinks)),
	}
	p.group, p.ctx = errgroup.WithContext(ctx)
	for range jobs {
		p.free <- &job{}
	}
	for range cfg.Workers {
		p.group.Go(func() error { return p.run(cfg, do) })
	}
	return p
}

func (p *pool) run(cfg Config, do func(*codec, *job) error) error {
	c, err := newCodec(cfg)
	if err != nil {
		return err
	}
	defer c.close()
	for j := range p.work {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		if err := do(c, j); err != nil {
			return err
		}
		if err := p.pass(j); err != nil {
			return err
		}
	}
	return nil
}

// pass notes that j was worked on, and does what can be done then.
func (p *pool) pass(j *job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	j.passed++
	for {
		j, k := p.ready()
		if j == nil {
			return nil
		}
		p.at[k] = true
		p.mu.Unlock()
		err := p.sinks[k](j)
		p.mu.Lock()
		p.at[k] = false
		if err != nil {
			return err
		}
		if j.passed++; j.passed > len(p.sinks) {
			p.order = p.order[1:]
			p.recycle(j)
		}
	}
}

// ready finds a job that a sink can see, and which sink. The last ones come first,
// for they make room.
func (p *pool) ready() (*job, int) {
	for k := len(p.sinks) - 1; k >= 0; k-- {
		if p.at[k] {
			continue
		}
		for _, j := range p.order {
			if j.passed == k+1 {
				return j, k
			}
			if j.passed <= k {
				break
			}
		}
	}
	return nil, 0
}

// recycle gives a job something to do, or keeps it for get.
func (p *pool) recycle(j *job) {
	j.data, j.store, j.passed = j.data[:0], j.store[:0], 0
	if p.next != nil {
		if p.next(j) {
			p.order = append(p.order, j)
			p.work <- j // has room for all
			return
		}
		p.next = nil
		close(p.fed)
	}
	p.free <- j // has room for all
}

// feed lets next give jobs something to do until it returns false, and waits until
// then. Nobody may call submit meanwhile.
func (p *pool) feed(next func(*job) bool) error {
	p.mu.Lock()
	p.next, p.fed = next, make(chan struct{})
	for idle := true; idle && p.next != nil; {
		select {
		case j := <-p.free:
			p.recycle(j)
		default:
			idle = false
		}
	}
	p.mu.Unlock()
	select {
	case <-p.fed:
		return nil
	case <-p.ctx.Done():
		return context.Cause(p.ctx)
	}
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

// submit hands in a job that came from get. It never blocks.
func (p *pool) submit(j *job) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.order = append(p.order, j)
	p.work <- j
}

// wait ends the pool after the jobs that were submitted, or at once when its
// context has ended, and returns the first error. It must be called exactly once.
func (p *pool) wait() error {
	p.mu.Lock()
	p.next = nil // what it would give could not be handed on
	close(p.work)
	p.mu.Unlock()
	return p.group.Wait()
}
