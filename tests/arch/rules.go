package arch

import "strings"

// Module is the import path that starts every package of ours.
const Module = "github.com/lazyerofs/lazyerofs"

// rule says what the packages below prefix may depend on, directly or through
// others. Paths are relative to Module; an entry allows the package and what is
// below it, an entry that ends in "$" only the package itself.
type rule struct {
	prefix  string
	allowed []string
	why     string
}

// rules is read from the top: the first prefix that matches decides. A package
// that no rule names is itself an offence, so that a new part cannot come in
// without a line here.
var rules = []rule{
	{"fs/chunk", nil, "chunk is the vocabulary of all parts"},
	{"fs/kernel", nil, "probes know nothing of what uses them"},
	{"fs/fdstore", nil, "the keeper of descriptors must not fail with what it outlives"},
	{"fs/erofs", []string{"fs/kernel", "fs/chunk"}, "erofs is used by both sides, so it knows neither"},
	{"fs/remote", []string{"fs/chunk"}, "remote fetches, cache keeps, only layer joins them"},
	{"fs/fsverity", []string{"fs/kernel"}, "sealing a file is a system call"},
	{"fs/dmverity", []string{"fs/chunk", "fs/kernel"}, "a hash tree knows images and no layers"},
	{"fs/cache", []string{"fs/chunk", "fs/kernel", "fs/fsverity"}, "the cache works and starts without a network"},
	{"fs/format/all", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/remote", "fs/format", "estargz-compat"}, "the list of formats"},
	{"fs/format", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/remote", "fs/format"}, "a format yields a plan and mounts nothing"},
	{"fs/driver/all", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/fdstore", "fs/dmverity", "fs/driver"}, "the list of drivers"},
	{"fs/driver/lifetime", nil, "what drivers share knows no driver"},
	{"fs/driver/mountproc", []string{"fs/chunk", "fs/kernel", "fs/erofs"}, "a child that knew drivers could hold what it waits for"},
	{"fs/driver", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/fdstore", "fs/dmverity", "fs/driver"}, "a driver that knew the network could not answer the kernel"},
	{"fs/layer", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/remote", "fs/cache", "fs/fsverity", "fs/format$"}, "a layer is the same whatever its format and its driver"},
	{"fs", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/fdstore", "fs/fsverity", "fs/remote", "fs/cache", "fs/layer", "fs/format$", "fs/driver$"}, "a file system gets its formats and drivers from cmd"},
	{"snapshot", nil, "the snapshotter knows containerd and one small interface, no EROFS"},
	{"differ", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/dmverity"}, "converting needs no mount and no registry"},
	{"estargz-compat", []string{"fs/chunk", "fs/kernel", "fs/erofs", "fs/remote", "fs/format$"}, "foreign formats are formats like any other"},
	{"cmd", []string{""}, "commands put everything together"},
	{"tests", []string{""}, "tests may look at anything"},
	{"deploy", nil, "deployment files hold no logic"},
}

// ruleOf finds the rule of pkg, a path relative to Module.
func ruleOf(pkg string) (rule, bool) {
	for _, r := range rules {
		if under(pkg, r.prefix) {
			return r, true
		}
	}
	return rule{}, false
}

// allows reports whether a package under r may depend on pkg.
func (r rule) allows(pkg string) bool {
	for _, a := range r.allowed {
		if exact, ok := strings.CutSuffix(a, "$"); ok {
			if pkg == exact {
				return true
			}
		} else if under(pkg, a) {
			return true
		}
	}
	return false
}

// under reports whether pkg is prefix or below it.
func under(pkg, prefix string) bool {
	return prefix == "" || pkg == prefix || strings.HasPrefix(pkg, prefix+"/")
}

// forTests reports whether pkg exists only for tests of other packages
// (drivertest, formattest): nothing that ships may import it.
func forTests(pkg string) bool {
	base := pkg[strings.LastIndex(pkg, "/")+1:]
	return under(pkg, "tests") || strings.HasSuffix(base, "test")
}
