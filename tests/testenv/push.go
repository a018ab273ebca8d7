package testenv

import (
	"context"
	"fmt"

	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
)

// Push copies the image to ref, "host:port/name:tag", over plain HTTP.
func (i *Image) Push(ctx context.Context, ref string) error {
	store, err := oci.NewWithContext(ctx, i.Dir)
	if err != nil {
		return fmt.Errorf("opening the image %s: %w", i.Name, err)
	}
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return fmt.Errorf("pushing %s to %s: %w", i.Name, ref, err)
	}
	repo.PlainHTTP = true
	if _, err := oras.Copy(ctx, store, "latest", repo, repo.Reference.Reference, oras.DefaultCopyOptions); err != nil {
		return fmt.Errorf("pushing %s to %s: %w", i.Name, ref, err)
	}
	return nil
}
