package remote

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"oras.land/oras-go/v2/registry/remote/credentials"
)

// helperTimeout bounds one call of a credential helper, which is an external
// program that may itself wait for a network.
const helperTimeout = 15 * time.Second

// DockerCredentials looks a host up in docker's config.json (directory
// DOCKER_CONFIG, else ~/.docker), its credHelpers and credsStore. The file is
// read on every call, so a login or a rotated token counts from the next token
// fetch on. A host without an entry, or no file at all, is anonymous.
//
// An identity token is returned with an empty user name, which is how
// containerd's authorizer takes it.
func DockerCredentials(host string) (user, secret string, err error) {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", "", nil // a service without HOME has no docker config: anonymous
		}
		dir = filepath.Join(home, ".docker")
	}
	store, err := credentials.NewStore(filepath.Join(dir, "config.json"), credentials.StoreOptions{})
	if err != nil {
		return "", "", fmt.Errorf("reading docker credentials in %s: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	cred, err := store.Get(ctx, credentials.ServerAddressFromHostname(host))
	if err != nil {
		return "", "", fmt.Errorf("looking up docker credentials for %s: %w", host, err)
	}
	if cred.RefreshToken != "" {
		return "", cred.RefreshToken, nil
	}
	return cred.Username, cred.Password, nil
}
