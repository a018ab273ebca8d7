package rootless

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// maxAnswer bounds what a client reads of an answer, maxRequest what a server
// reads of a request, in bytes. A layer's labels are some kilobytes.
const (
	maxAnswer  = 64 << 20
	maxRequest = 16 << 20
)

// Client asks the daemon at a socket. It implements Service.
type Client struct {
	// Address is the path of the socket.
	Address string
}

var _ Service = Client{}

// Mount asks for a mount.
func (c Client) Mount(ctx context.Context, m Mount) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	return c.do(ctx, http.MethodPost, path, body, nil)
}

// Unmount asks for the end of a mount.
func (c Client) Unmount(ctx context.Context, target string) error {
	return c.do(ctx, http.MethodDelete, path+"?"+url.Values{"target": {target}}.Encode(), nil, nil)
}

// List asks for all mounts.
func (c Client) List(ctx context.Context) ([]Mount, error) {
	var all []Mount
	err := c.do(ctx, http.MethodGet, path, nil, &all)
	return all, err
}

func (c Client) do(ctx context.Context, method, to string, body []byte, answer any) (err error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.Address)
	}}
	req, err := http.NewRequestWithContext(ctx, method, "http://lazyerofsd"+to, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("asking the daemon at %s: %w", c.Address, err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("asking the daemon at %s: %w", c.Address, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("reading the answer of the daemon at %s: %w", c.Address, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		var f Failure
		if err := json.Unmarshal(b, &f); err != nil || f.Message == "" {
			return fmt.Errorf("the daemon at %s answers %s", c.Address, resp.Status)
		}
		return &f
	}
	if answer == nil {
		return nil
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return errors.Join(fmt.Errorf("reading the answer of the daemon at %s", c.Address), err)
	}
	return nil
}
