// Package progress shows how a conversion gets on: bars on a terminal, one line
// per layer elsewhere.
package progress
