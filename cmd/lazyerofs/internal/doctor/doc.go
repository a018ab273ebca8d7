// Package doctor finds out what this machine can do for lazy layers, and why
// not, by trying each thing once. It changes nothing that outlives it.
package doctor
