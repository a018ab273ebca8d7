// Package all is the one list of layer formats. Only cmd imports it; it has no
// other content, no state and no init.
package all
