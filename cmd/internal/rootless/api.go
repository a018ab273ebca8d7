package rootless

import "context"

// path is that of all requests.
const path = "/v1/mounts"

// Mount is an image at a directory.
type Mount struct {
	// Target is an absolute path without symbolic links.
	Target string `json:"target"`
	// Image is the reference, for people.
	Image string `json:"image"`
	// Layers are the labels of each layer, bottom first.
	Layers []map[string]string `json:"layers"`
}

// Failure is why a request was refused.
type Failure struct {
	// Message is one sentence.
	Message string `json:"message"`
	// Reason is a word of package fs, or "" when no layer is at fault.
	Reason string `json:"reason,omitempty"`
	// Layer is the number of the layer that could not be opened, from 0.
	Layer int `json:"layer,omitempty"`
}

// Error returns the sentence.
func (f *Failure) Error() string { return f.Message }

// Service is both sides of the protocol.
type Service interface {
	// Mount mounts an image. Its error may be a *Failure.
	Mount(ctx context.Context, m Mount) error
	// Unmount unmounts what is at target and returns when nothing uses it.
	Unmount(ctx context.Context, target string) error
	// List returns what is mounted.
	List(ctx context.Context) ([]Mount, error)
}
